//! Keysets as `keys import` reads them: an import that fails changes nothing; after an import that succeeds, the
//! keyring can be stored, exported and rotated, and importing the same keyset again changes nothing.

use tollgate::keyring::{KeyPolicy, Keyring, Keyset};

/// Time of all imports, unix seconds.
const NOW: u64 = 1_700_000_010;

/// Any file.
pub fn check(bytes: &[u8]) {
    let Ok(keyset) = serde_json::from_slice::<Keyset>(bytes) else { return };
    let policy =
        KeyPolicy { service_id: keyset.service_id, max_ttl: 3600, rotation: Some(86_400), quota: 64 };
    let mut with_keys = Keyring::default();
    live_on(&mut with_keys, &policy, NOW - 100);
    for keyring in [Keyring::default(), with_keys] {
        import(keyring, &keyset, &policy);
    }
}

fn import(mut keyring: Keyring, keyset: &Keyset, policy: &KeyPolicy) {
    let before = keyring.clone();
    let imported = match keyring.import(keyset, policy, NOW) {
        Ok(imported) => imported,
        Err(error) => {
            assert_eq!(keyring, before, "an import that fails changes nothing: {error}");
            return;
        }
    };
    let counted = imported.added.len() + imported.known.len() + imported.skipped.len();
    assert_eq!(counted, keyset.keys.len(), "every key of the keyset is accounted for");
    for id in &imported.added {
        let key = keyring.key(*id).expect("a key that was added is there");
        assert!(key.verifies() && key.service_id == policy.service_id && key.imported);
    }
    stored(&keyring);

    let mut again = keyring.clone();
    let second = again.import(keyset, policy, NOW).expect("the same keyset is taken again");
    assert!(second.added.is_empty() && again == keyring, "the same keyset twice changes nothing");

    let exported = keyring.export(&keyset.service, policy, NOW);
    Keyring::default().import(&exported, policy, NOW).expect("another node takes what is exported");
    live_on(&mut keyring, policy, NOW);
}

/// Runs the keyring at a few later deadlines, as the daemon does.
fn live_on(keyring: &mut Keyring, policy: &KeyPolicy, from: u64) {
    let mut random = fastrand::Rng::with_seed(from);
    let mut now = from;
    for _ in 0..4 {
        keyring.tick(now, &[*policy], &mut |bytes| random.fill(bytes));
        if let Some(staged) = keyring.staged(policy.service_id).map(|key| key.id) {
            keyring.confirm_installed(staged, now).expect("what is staged becomes active");
        }
        stored(keyring);
        let Some(next) = keyring.next_deadline(&[*policy]) else { return };
        now = next.max(now);
    }
}

fn stored(keyring: &Keyring) {
    let text = serde_json::to_string(keyring).expect("a keyring can be stored");
    let read: Keyring = serde_json::from_str(&text).expect("what was stored is read");
    assert!(read == *keyring, "and it is what was stored");
}
