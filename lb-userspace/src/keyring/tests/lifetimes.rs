//! First keys, rotations, revocations, and when keys end.

use lb_common::{
    reason::Reason,
    service::{ACCEPT_BEARER, Service},
    token::{Claims, Source, mint::Grant, verify::verify},
};

use super::*;

#[test]
fn a_first_key_signs_once_it_is_installed() {
    let mut random = random(1);
    let mut keyring = Keyring::default();
    let events = keyring.tick(START, &[POLICY], &mut random);
    let [Event::Staged { key_id, .. }] = events[..] else { panic!("{events:?}") };
    assert_eq!((keyring.signer(42), keyring.staged(42).unwrap().id), (None, key_id));
    assert_eq!(keyring.verifying().count(), 1, "staged keys verify");
    assert_eq!(keyring.tick(START, &[POLICY], &mut random), [], "nothing more to do");

    let activation = keyring.confirm_installed(key_id, START + 1).unwrap();
    assert_eq!(activation, Some(Activation { active: key_id, retiring: None }));
    assert_eq!(keyring.signer(42).unwrap().activated_at, Some(START + 1));
    assert_eq!(keyring.confirm_installed(key_id, START + 2), Ok(None), "once more changes nothing");
    assert_eq!(keyring.signer(42).unwrap().activated_at, Some(START + 1));
}

#[test]
fn a_rotation_is_staged_then_active_then_over() {
    let (mut keyring, first, mut random) = started();
    let at = START + 100;
    let rotation = keyring.rotate(&POLICY, at, &mut random).unwrap();
    let second = rotation.staged;
    assert_eq!(rotation, Rotation { staged: second, active: Some(first), joined: false });
    assert_eq!(
        state(&keyring, first),
        Some(KeyState::Active),
        "the old key signs until the new one is installed"
    );
    let again = keyring.rotate(&POLICY, at + 1, &mut random).unwrap();
    assert_eq!(again, Rotation { joined: true, ..rotation });

    let activation = keyring.confirm_installed(second, at + 5).unwrap();
    assert_eq!(activation, Some(Activation { active: second, retiring: Some(first) }));
    let end = at + 5 + POLICY.max_ttl + LATE;
    assert_eq!(keyring.key(first).unwrap().not_after, Some(end));
    assert_eq!(keyring.next_deadline(&[POLICY]), Some(end));
    assert_eq!(keyring.tick(end - 1, &[POLICY], &mut random), []);
    assert_eq!(keyring.tick(end, &[POLICY], &mut random), [Event::Ended { service_id: 42, key_id: first }]);
    assert_eq!(state(&keyring, first), None);
    let error = keyring.confirm_installed(first, end).unwrap_err();
    assert_eq!(error, KeyringError::NoSuchKey(first));
}

#[test]
fn rotation_by_time_begins_when_it_is_due() {
    let (mut keyring, first, mut random) = started();
    assert_eq!(keyring.next_deadline(&[POLICY]), Some(START + DAY));
    assert_eq!(keyring.next_deadline(&[BY_HAND]), None);
    assert_eq!(keyring.tick(START + DAY - 1, &[POLICY], &mut random), []);
    assert_eq!(keyring.tick(START + 9 * DAY, &[BY_HAND], &mut random), []);
    assert_eq!(keyring.tick(START + 9 * DAY, &[], &mut random), [], "a service that is gone rests");
    let events = keyring.tick(START + DAY, &[POLICY], &mut random);
    let [Event::Staged { key_id: second, .. }] = events[..] else { panic!("{events:?}") };
    assert_eq!(keyring.tick(START + 2 * DAY, &[POLICY], &mut random), [], "one at a time");
    keyring.confirm_installed(second, START + 2 * DAY).unwrap();
    assert_eq!(state(&keyring, first), Some(KeyState::Retiring));
    assert_eq!(keyring.signer(42).unwrap().id, second);
}

/// The rule of the module's documentation: the promise of an export is kept.
#[test]
fn an_export_may_be_signed_with_until_it_said() {
    for (policy, horizon) in
        [(POLICY, DAY), (BY_HAND, DAY), (KeyPolicy { rotation: Some(600), ..POLICY }, 600)]
    {
        let (mut keyring, first, mut random) = started();
        let at = START + 500;
        let keyset = keyring.export("game", &policy, at);
        assert_eq!(keyset.keys[0].sign_until, at + horizon);
        assert_eq!(keyset.keys[0].not_after, at + horizon + policy.max_ttl + LATE);
        let rotation = keyring.rotate(&policy, at + 1, &mut random).unwrap();
        keyring.confirm_installed(rotation.staged, at + 2).unwrap();
        assert_eq!(keyring.key(first).unwrap().not_after, Some(keyset.keys[0].not_after));
        let later = keyring.export("game", &policy, at + 10);
        let old = later.keys.iter().find(|key| key.key_id == first.0).unwrap();
        assert_eq!(
            (old.state, old.sign_until),
            (KeyState::Retiring, at + horizon),
            "no promise grows any more"
        );
    }
}

#[test]
fn a_staged_key_is_exported_and_not_signed_with() {
    let (mut keyring, _, mut random) = started();
    let staged = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    let keyset = keyring.export("game", &POLICY, START);
    let key = keyset.keys.iter().find(|key| key.key_id == staged.0).unwrap();
    assert_eq!((key.state, key.sign_until), (KeyState::Staged, 0));
    assert_eq!(key.not_after, START + POLICY.max_ttl + LATE);
}

#[test]
fn a_higher_max_ttl_reaches_keys_that_may_still_sign() {
    let (mut keyring, first, mut random) = started();
    let sign_until = keyring.export("game", &POLICY, START).keys[0].sign_until;
    let second = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    keyring.confirm_installed(second, START).unwrap();
    let longer = KeyPolicy { max_ttl: 10 * 3600, ..POLICY };
    let shorter = KeyPolicy { max_ttl: 60, ..POLICY };
    keyring.tick(START + 1, &[shorter], &mut random);
    assert_eq!(keyring.key(first).unwrap().not_after, Some(sign_until + 3600 + LATE), "none gets shorter");
    keyring.tick(sign_until, &[longer], &mut random);
    assert_eq!(keyring.key(first).unwrap().not_after, Some(sign_until + 36_000 + LATE));
    let longest = KeyPolicy { max_ttl: 100 * 3600, ..POLICY };
    keyring.tick(sign_until + LATE + 1, &[longest], &mut random);
    assert_eq!(
        keyring.key(first).unwrap().not_after,
        Some(sign_until + 36_000 + LATE),
        "no issuer may sign with it any more"
    );
}

#[test]
fn a_revoked_key_stops_at_once_and_is_replaced() {
    let (mut keyring, first, mut random) = started();
    let revocation = keyring.revoke(first, START + 10).unwrap();
    assert_eq!(revocation, Revocation { was: KeyState::Active, service_id: 42, signer_left: false });
    assert_eq!(keyring.verifying().count(), 0);
    assert_eq!(keyring.key(first).unwrap().to_slot().state, STATE_OFF);
    assert_eq!(
        keyring.revoke(first, START + 20).unwrap().was,
        KeyState::Revoked,
        "once more changes nothing"
    );
    assert_eq!(keyring.key(first).unwrap().not_after, Some(START + 10));
    let error = keyring.confirm_installed(first, START + 20).unwrap_err();
    assert!(error.to_string().contains("is revoked, and only a staged key can become active"), "{error}");

    let events = keyring.tick(START + 20, &[POLICY], &mut random);
    assert!(matches!(events[..], [Event::Staged { key_id, .. }] if key_id != first), "{events:?}");
    assert_eq!(
        state(&keyring, first),
        Some(KeyState::Revoked),
        "it is listed as long as there are tokens of it"
    );
    let end = START + 10 + POLICY.max_ttl + LATE;
    assert_eq!(keyring.tick(end, &[POLICY], &mut random), [Event::Ended { service_id: 42, key_id: first }]);
    assert_eq!(keyring.revoke(first, end), Err(KeyringError::NoSuchKey(first)));
}

#[test]
fn a_revoked_staged_key_leaves_the_signer_alone() {
    let (mut keyring, first, mut random) = started();
    let staged = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    let revocation = keyring.revoke(staged, START).unwrap();
    assert_eq!(revocation, Revocation { was: KeyState::Staged, service_id: 42, signer_left: true });
    assert_eq!(keyring.signer(42).unwrap().id, first);
    assert_ne!(keyring.rotate(&POLICY, START, &mut random).unwrap().staged, staged);
}

#[test]
fn a_clock_that_jumps_back_shortens_nothing() {
    let (mut keyring, first, mut random) = started();
    let staged = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    keyring.confirm_installed(staged, START - 5000).unwrap();
    assert_eq!(keyring.key(first).unwrap().not_after, Some(START + POLICY.max_ttl + LATE));
}

/// The last token that an issuer with a late clock can sign passes the program's check until it expires.
#[test]
fn the_last_token_of_a_key_is_valid_to_its_end() {
    let (mut keyring, first, mut random) = started();
    let keyset = keyring.export("game", &POLICY, START);
    let staged = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    keyring.confirm_installed(staged, START).unwrap();

    let issued_at = u32::try_from(keyset.keys[0].sign_until).unwrap();
    let expires_at = issued_at + 3600;
    let grant = Grant {
        claims: Claims { service_id: 42, class: 0, backend_id: 0, session_id: 7 },
        issued_at,
        expires_at,
        nonce: [1; 8],
        bind: None,
        bind_port: None,
    };
    let header = grant.bearer(first, &DerivedKeys::derive(&keyset.keys[0].master, first)).to_bytes();
    let service = Service { id: 42, max_ttl: 3600, accept: ACCEPT_BEARER, ..Service::default() };
    let source = Source::new([192, 0, 2, 1].into(), 4000);
    let key = keyring.key(first).unwrap();
    let at = |now_ns| verify(&header, &source, &service, |_| key.to_slot(), now_ns);
    let end_ns = u64::from(expires_at) * SECOND_NS + SKEW_NS;
    assert_eq!(at(end_ns - 1), Ok(grant.claims));
    assert_eq!(
        at(end_ns + SKEW_NS - 1),
        Err(Reason::Expired),
        "the key is still there, and the reason the true one"
    );
    assert_eq!(at(end_ns + SKEW_NS), Err(Reason::InactiveKey));
    assert_eq!(key.not_after, Some(u64::from(expires_at) + LATE));
}

#[test]
fn services_do_not_share_keys() {
    let other = KeyPolicy { service_id: 43, ..POLICY };
    let (mut keyring, first, mut random) = started();
    let events = keyring.tick(START, &[POLICY, other], &mut random);
    let [Event::Staged { service_id: 43, key_id }] = events[..] else { panic!("{events:?}") };
    keyring.confirm_installed(key_id, START).unwrap();
    assert_eq!(keyring.signer(42).unwrap().id, first);
    assert_eq!(keyring.signer(43).unwrap().id, key_id);
    assert_eq!(keyring.export("other", &other, START).keys.len(), 1);
}

#[test]
fn a_keyset_that_has_a_key_twice_is_not_taken() {
    let (mut keyring, first, _) = started();
    let mut keyset = keyring.export("game", &POLICY, START);
    let mut revoked = keyset.keys[0].clone();
    revoked.state = KeyState::Revoked;
    keyset.keys.insert(0, revoked);
    let mut other = Keyring::default();
    assert_eq!(other.import(&keyset, &POLICY, START), Err(KeyringError::Twice(first)));
    assert_eq!(other, Keyring::default());
}

#[test]
fn nothing_prints_a_secret() {
    let (mut keyring, first, mut random) = started();
    let keyset = keyring.export("game", &POLICY, START);
    let secret = hex::encode(keyset.keys[0].master.as_bytes());
    let mut conflicting = keyset.clone();
    conflicting.keys[0].master = MasterKey::from_bytes([7; 32]);
    let error = keyring.import(&conflicting, &POLICY, START).unwrap_err();
    let events = keyring.tick(START + DAY, &[POLICY], &mut random);
    let key = keyring.key(first).unwrap();
    let shown = format!("{keyring:?} {keyset:?} {error:?} {error} {events:?} {key:?} {:?}", key.to_slot());
    assert!(!shown.contains(&secret[..16]) && !shown.contains("7, 7, 7"), "{shown}");
    assert!(stored(&keyring).contains(&secret), "but it is stored");
}

/// The invariant of rotation: no issuer signs with a key before every kernel has it.
#[test]
fn a_staged_key_never_signs() {
    let mut random = random(3);
    let mut keyring = Keyring::default();
    keyring.tick(START, &[POLICY], &mut random);
    let staged = keyring.staged(42).unwrap().id;
    // Neither time nor any other call confirms it.
    for now in [START, START + DAY, START + 10 * DAY] {
        assert_eq!(keyring.tick(now, &[POLICY], &mut random), []);
        assert!(keyring.rotate(&POLICY, now, &mut random).unwrap().joined);
        assert_eq!(keyring.signer(42), None);
        let exported = keyring.export("game", &POLICY, now);
        assert_eq!(exported.keys.iter().map(|key| key.state).collect::<Vec<_>>(), [KeyState::Staged]);
        assert_eq!(exported.keys[0].sign_until, 0, "no issuer is permitted to sign with it");
        keyring = restored(&stored(&keyring)).unwrap();
    }
    keyring.confirm_installed(staged, START).unwrap();
    assert_eq!(keyring.signer(42).unwrap().id, staged);

    // If a key is active, it continues to sign.
    let next = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    keyring.tick(START + DAY, &[POLICY], &mut random);
    assert_eq!(keyring.signer(42).unwrap().id, staged);
    assert_eq!(state(&keyring, next), Some(KeyState::Staged));
}
