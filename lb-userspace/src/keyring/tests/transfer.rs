//! Keysets between nodes.

use super::*;
use crate::keyring::slots::REST;

/// A node with other random numbers than `started`'s, without keys.
fn elsewhere() -> Keyring {
    Keyring::default()
}

fn json(keyset: &Keyset) -> serde_json::Value {
    serde_json::to_value(keyset).unwrap()
}

#[test]
fn a_keyset_has_the_form_of_the_contract() {
    let (mut keyring, id, _) = started();
    let keyset = keyring.export("game", &POLICY, START);
    let master = hex::encode(keyset.keys[0].master.as_bytes());
    let expected = serde_json::json!({
        "service": "game",
        "service_id": 42,
        "keys": [{
            "key_id": id.0,
            "state": "active",
            "master": master,
            "not_after": START + DAY + 3600 + LATE,
            "sign_until": START + DAY,
        }],
    });
    assert_eq!(json(&keyset), expected);
    assert_eq!(serde_json::from_value::<Keyset>(expected).unwrap(), keyset);
}

#[test]
fn an_empty_node_goes_on_signing_with_the_imported_key() {
    let (mut keyring, id, mut random) = started();
    let keyset = keyring.export("game", &POLICY, START);
    let mut new = elsewhere();
    let imported = new.import(&keyset, &POLICY, START + 5).unwrap();
    assert_eq!(imported, Imported { added: vec![id], ..Imported::default() });
    assert_eq!(new.staged(42).unwrap().id, id, "it signs only once it is installed here");
    assert_eq!(new.tick(START + 5, &[POLICY], &mut random), [], "no key of its own");
    new.confirm_installed(id, START + 6).unwrap();
    assert_eq!(new.signer(42).unwrap().sign_until, keyset.keys[0].sign_until, "the promise came with it");
}

#[test]
fn a_node_with_a_signer_verifies_imported_keys() {
    let (mut keyring, theirs, _) = started();
    let keyset = keyring.export("game", &POLICY, START);
    let mut node = elsewhere();
    let mut random = random(2);
    node.tick(START, &[POLICY], &mut random);
    let ours = node.staged(42).unwrap().id;
    node.confirm_installed(ours, START).unwrap();

    let imported = node.import(&keyset, &POLICY, START).unwrap();
    assert_eq!(imported.added, [theirs]);
    let key = node.key(theirs).unwrap();
    assert_eq!(
        (key.state, key.imported, key.not_after),
        (KeyState::Retiring, true, Some(keyset.keys[0].not_after))
    );
    assert_eq!(node.signer(42).unwrap().id, ours);

    let before = node.clone();
    let again = node.import(&keyset, &POLICY, START + 7).unwrap();
    assert_eq!((again.known, again.added), (vec![theirs], vec![]));
    assert_eq!(node, before, "the same keyset twice changes nothing");

    let later = keyring.export("game", &POLICY, START + 100);
    node.import(&later, &POLICY, START + 100).unwrap();
    assert_eq!(node.key(theirs).unwrap().not_after, Some(later.keys[0].not_after), "a later one extends");
}

#[test]
fn a_keyset_of_this_node_changes_nothing() {
    let (mut keyring, id, mut random) = started();
    keyring.rotate(&POLICY, START, &mut random).unwrap();
    let keyset = keyring.export("game", &POLICY, START);
    let before = keyring.clone();
    assert_eq!(keyring.import(&keyset, &POLICY, START).unwrap().known.len(), 2);
    assert_eq!(keyring, before);
    assert_eq!(state(&keyring, id), Some(KeyState::Active));
}

#[test]
fn what_was_revoked_stays_revoked() {
    let (mut keyring, id, mut random) = started();
    let keyset = keyring.export("game", &POLICY, START);
    keyring.revoke(id, START).unwrap();
    let skipped = vec![(id, Skipped::Revoked)];
    assert_eq!(keyring.import(&keyset, &POLICY, START).unwrap().skipped, skipped);
    // No longer listed, but recorded by its slot.
    keyring.tick(START + DAY + 2 * 3600, &[], &mut random);
    assert_eq!(state(&keyring, id), None);
    let mut long_lived = keyset.clone();
    long_lived.keys[0].not_after = START + 900 * DAY;
    assert_eq!(keyring.import(&long_lived, &POLICY, START + 2 * DAY).unwrap().skipped, skipped);
    assert_eq!(state(&keyring, id), None);
    let mut theirs = keyset;
    theirs.keys[0].state = KeyState::Revoked;
    assert_eq!(elsewhere().import(&theirs, &POLICY, START).unwrap().skipped, skipped);
}

#[test]
fn what_has_ended_is_left_out_and_may_come_back_while_it_lives_elsewhere() {
    let (mut keyring, id, _) = started();
    let keyset = keyring.export("game", &POLICY, START);
    let end = keyset.keys[0].not_after;
    let mut node = elsewhere();
    assert_eq!(node.import(&keyset, &POLICY, end).unwrap().skipped, [(id, Skipped::Ended)]);

    let mut random = random(2);
    node.tick(START, &[POLICY], &mut random);
    node.import(&keyset, &POLICY, START).unwrap();
    let events = node.tick(end, &[], &mut random);
    assert_eq!(events, [Event::Ended { service_id: 42, key_id: id }]);
    let later = keyring.export("game", &POLICY, end);
    assert_eq!(
        node.import(&later, &POLICY, end + 1).unwrap().added,
        [id],
        "the same key: no slot needs to rest"
    );
}

/// A refusal leaves the keyring unchanged, even if an earlier key of the keyset could have been imported.
#[test]
fn conflicts_are_refused_whole() {
    let (mut source, id, mut random) = started();
    let second = source.rotate(&POLICY, START, &mut random).unwrap().staged;
    let keyset = source.export("game", &POLICY, START);
    let with = |change: &dyn Fn(&mut Keyset)| {
        let mut changed = keyset.clone();
        changed.keys.sort_by_key(|key| key.key_id != id.0);
        change(&mut changed);
        changed
    };
    let other_master = MasterKey::from_bytes([9; 32]);
    let neighbour = KeyId::new(second.slot(), second.generation() + 1).unwrap();

    let mut has_other = elsewhere();
    has_other.import(&with(&|set| set.keys[1].master = other_master.clone()), &POLICY, START).unwrap();
    let mut has_neighbour = elsewhere();
    has_neighbour.import(&with(&|set| set.keys[1].key_id = neighbour.0), &POLICY, START).unwrap();
    let mut has_older = elsewhere();
    let older = KeyId::new(second.slot(), second.generation() - 1).unwrap();
    has_older.import(&with(&|set| set.keys[1].key_id = older.0), &POLICY, START).unwrap();
    let mut rests = has_older.clone();
    let end = START + POLICY.max_ttl + LATE;
    rests.tick(end, &[], &mut random);
    let mut forgot = has_other.clone();
    forgot.tick(end, &[], &mut random);

    let plain = with(&|_| {});
    let alive = with(&|set| set.keys[1].not_after = end + DAY);
    let cases = [
        (&has_other, plain.clone(), START, KeyringError::Conflict { id: second }),
        (&forgot, alive.clone(), end, KeyringError::Conflict { id: second }),
        (&has_neighbour, plain.clone(), START, KeyringError::Outdated { id: second }),
        (&has_older, plain.clone(), START, KeyringError::SlotTaken { id: second, by: older }),
        (&rests, alive.clone(), end + REST - 1, KeyringError::SlotRests { id: second, until: end + REST }),
        (&has_older, with(&|set| set.keys[1].key_id = 0), START, KeyringError::KeyIdZero),
        (
            &has_older,
            with(&|set| set.keys[1].not_after = u64::MAX),
            START,
            KeyringError::TooLate { id: second, until: u64::MAX },
        ),
        (
            &has_older,
            with(&|set| set.service_id = 43),
            START,
            KeyringError::OtherService { expected: 42, found: 43 },
        ),
    ];
    for (keyring, keyset, now, expected) in cases {
        let mut tried = keyring.clone();
        let error = tried.import(&keyset, &POLICY, now).unwrap_err();
        assert_eq!(error, expected);
        assert!(error.to_string().contains(';') || error.to_string().contains("which rests"), "{error}");
        assert_eq!(&tried, keyring);
    }
    assert!(rests.import(&alive, &POLICY, end + REST).is_ok());
}

/// The nodes' configurations need not be changed at the same moment.
#[test]
fn an_imported_key_lives_by_the_longer_max_ttl() {
    let (mut keyring, id, _) = started();
    let longer = KeyPolicy { max_ttl: 10 * 3600, ..POLICY };
    let longest = KeyPolicy { max_ttl: 20 * 3600, ..POLICY };
    let mut node = elsewhere();
    let mut random = random(2);
    node.tick(START, &[longer], &mut random);
    let keyset = keyring.export("game", &POLICY, START);
    node.import(&keyset, &longer, START).unwrap();
    assert_eq!(node.key(id).unwrap().not_after, Some(START + DAY + 36_000 + LATE));

    let later = keyring.export("game", &POLICY, START + DAY);
    node.import(&later, &longer, START + DAY).unwrap();
    assert_eq!(node.key(id).unwrap().not_after, Some(START + 2 * DAY + 36_000 + LATE));
    node.tick(START + 2 * DAY, &[longest], &mut random);
    assert_eq!(node.key(id).unwrap().not_after, Some(START + 2 * DAY + 72_000 + LATE));
}
