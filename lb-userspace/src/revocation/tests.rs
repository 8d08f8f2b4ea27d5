use lb_common::revocation::REVOKED_TOKEN;
use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_700_000_000;

const fn session(of: u64) -> RevocationKey {
    RevocationKey { service_id: 42, kind: REVOKED_SESSION, of }
}

const fn token(of: u64) -> RevocationKey {
    RevocationKey { service_id: 42, kind: REVOKED_TOKEN, of }
}

fn restored(revocations: &Revocations) -> Revocations {
    serde_json::from_str(&serde_json::to_string(revocations).unwrap()).unwrap()
}

fn full() -> Revocations {
    let mut revocations = Revocations::default();
    let all: Vec<_> = (0..REVOCATIONS_MAX.into()).map(session).collect();
    revocations.revoke(&all, NOW + 100, NOW).unwrap();
    revocations
}

#[test]
fn a_revocation_ends_when_it_should_and_not_before() {
    let mut revocations = Revocations::default();
    let revoked = revocations.revoke(&[session(7), token(7)], NOW + 100, NOW).unwrap();
    assert_eq!(revoked, [(session(7), NOW + 100), (token(7), NOW + 100)]);
    assert_eq!(revocations.until(&session(7), NOW + 99), Some(NOW + 100));
    assert_eq!(revocations.until(&session(7), NOW + 100), None);
    assert_eq!(revocations.until(&session(8), NOW), None);
    // A shorter revocation does not shorten an existing one.
    assert_eq!(revocations.revoke(&[session(7)], NOW + 10, NOW).unwrap(), [(session(7), NOW + 100)]);
    assert_eq!(revocations.revoke(&[session(7)], NOW + 200, NOW).unwrap(), [(session(7), NOW + 200)]);
    assert_eq!(revocations.in_force(NOW + 150).collect::<Vec<_>>(), [(session(7), NOW + 200)]);
    assert_eq!(revocations.revoke(&[session(7)], NOW, NOW), Err(RevocationError::NoTime));
}

#[test]
fn what_is_kept_has_ends_of_its_own() {
    let mut revocations = Revocations::default();
    revocations.revoke(&[session(7), session(8)], NOW + 100, NOW).unwrap();
    revocations.keep([(session(7), NOW + 200), (session(8), NOW + 50), (token(9), NOW + 10)], NOW).unwrap();
    let expected = [(session(7), NOW + 200), (session(8), NOW + 100), (token(9), NOW + 10)];
    assert_eq!(revocations.in_force(NOW).collect::<Vec<_>>(), expected);
    // Either all or none. Only revocations in force use capacity.
    let mut full = full();
    let before = full.clone();
    let error = full.keep([(session(0), NOW + 200), (token(9), NOW + 50)], NOW).unwrap_err();
    let room = REVOCATIONS_MAX as usize;
    assert_eq!(error, RevocationError::Full { held: room, wanted: 1, first_ends: NOW + 100 });
    assert_eq!(full, before);
    full.keep([(token(9), NOW + 200)], NOW + 100).unwrap();
    assert_eq!(full.in_force(NOW + 100).collect::<Vec<_>>(), [(token(9), NOW + 200)]);
    let too_many = (0..=u64::from(REVOCATIONS_MAX)).map(|of| (token(of), NOW + 7 + of));
    let error = Revocations::default().keep(too_many, NOW).unwrap_err();
    assert_eq!(error, RevocationError::Full { held: 0, wanted: room + 1, first_ends: NOW + 7 });
}

#[test]
fn a_revocation_is_lifted_or_shortened() {
    let mut revocations = Revocations::default();
    revocations.revoke(&[session(7), session(8), token(7)], NOW + 100, NOW).unwrap();
    let before = revocations.clone();
    let refused = revocations.unrevoke(&[session(7), session(9)], NOW).unwrap_err();
    assert_eq!(refused, RevocationError::NotRevoked(session(9)));
    assert!(refused.to_string().contains("session 9 is not revoked"), "{refused}");
    assert_eq!(revocations.unrevoke(&[token(8)], NOW), Err(RevocationError::NotRevoked(token(8))));
    assert_eq!(revocations.unrevoke(&[session(8)], NOW + 100), Err(RevocationError::NotRevoked(session(8))));
    assert_eq!(revocations, before);
    let lifted = revocations.unrevoke(&[session(7), session(7)], NOW).unwrap();
    assert_eq!(lifted, [(session(7), NOW + 100); 2]);
    assert_eq!(revocations.until(&session(7), NOW), None);
    assert_eq!(revocations.in_force(NOW).count(), 2);
    assert_eq!(revocations.revoke(&[session(7)], NOW + 10, NOW).unwrap(), [(session(7), NOW + 10)]);
    assert_eq!(restored(&revocations), revocations);
}

#[test]
fn a_full_list_says_so_and_forgets_nothing() {
    let mut revocations = full();
    let before = revocations.clone();
    let refused = revocations.revoke(&[token(1), session(1), token(2)], NOW + 500, NOW + 50);
    let expected = RevocationError::Full { held: 65_536, wanted: 2, first_ends: NOW + 100 };
    assert_eq!(refused, Err(expected.clone()));
    let said = expected.to_string();
    assert!(said.contains("NOT revoked") && said.contains("2023-11-14T22:15:00Z"), "{said}");
    assert_eq!(revocations, before);
    // A revocation that exists needs no capacity.
    revocations.revoke(&[session(1)], NOW + 500, NOW + 50).unwrap();
    // Revocations that have ended free capacity.
    revocations.revoke(&[token(1), token(2)], NOW + 500, NOW + 100).unwrap();
    assert_eq!(revocations.in_force(NOW + 100).count(), 3);
    assert_eq!(revocations.named.len(), 3);
}

#[test]
fn what_is_revoked_by_age_is_never_taken_back() {
    let mut revocations = Revocations::default();
    assert_eq!(revocations.before(42), 0);
    assert_eq!(revocations.revoke_before(42, NOW, NOW), Ok(NOW as u32));
    assert_eq!(revocations.revoke_before(42, NOW - 5, NOW), Ok(NOW as u32));
    assert_eq!(revocations.revoke_before(42, NOW + SKEW, NOW), Ok((NOW + SKEW) as u32));
    let future = RevocationError::Future { at: NOW + SKEW + 1, now: NOW };
    assert_eq!(revocations.revoke_before(42, NOW + SKEW + 1, NOW), Err(future));
    assert!(revocations.revoke_before(42, 1 << 32, 1 << 32).is_err(), "a token has 32 bits for it");
    assert_eq!((revocations.before(42), revocations.before(43)), ((NOW + SKEW) as u32, 0));
    assert_eq!(restored(&revocations), revocations);
}

#[test]
fn what_is_stored_is_checked() {
    let one = r#"{"service_id":42,"kind":"session","of":18446744073709551615,"until":1700000001}"#;
    let read = |named: &str| {
        serde_json::from_str::<Revocations>(&format!(r#"{{"named":[{named}],"before":{{"42":7}}}}"#))
    };
    let revocations = read(one).unwrap();
    assert_eq!(revocations.until(&session(u64::MAX), NOW), Some(NOW + 1));
    assert_eq!(revocations.before(42), 7);
    assert!(read(&[one, one].join(",")).unwrap_err().to_string().contains("twice"));
    assert!(read(&one.replace("session", "key")).is_err());
    let all = full();
    assert_eq!(restored(&all), all);
    let too_many = serde_json::to_string(&all).unwrap().replacen('[', &format!("[{one},"), 1);
    let refused = serde_json::from_str::<Revocations>(&too_many).unwrap_err();
    assert!(refused.to_string().contains("65537"), "{refused}");
}

proptest! {
    /// After any sequence of requests and restarts, each session or token is revoked exactly until the latest end that
    /// was requested.
    #[test]
    fn nothing_ends_early_or_late(
        steps in proptest::collection::vec((0..2u64, 0..4u64, 0..40u64, 0..20u64, any::<bool>()), 1..80)
    ) {
        let (mut revocations, mut now) = (Revocations::default(), NOW);
        let mut expected = BTreeMap::<RevocationKey, u64>::new();
        for (kind, of, seconds, wait, restart) in steps {
            let key = if kind == 0 { session(of) } else { token(of) };
            let until = expected.get(&key).copied().unwrap_or(0).max(now + seconds);
            match revocations.revoke(&[key], now + seconds, now) {
                Ok(revoked) => {
                    prop_assert_eq!(revoked, [(key, until)]);
                    expected.insert(key, until);
                }
                Err(error) => prop_assert_eq!((error, seconds), (RevocationError::NoTime, 0)),
            }
            now += wait;
            if restart {
                revocations = restored(&revocations);
            }
            expected.retain(|_, until| *until > now);
            prop_assert_eq!(revocations.in_force(now).collect::<BTreeMap<_, _>>(), expected.clone());
        }
    }
}
