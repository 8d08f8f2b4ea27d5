//! Slots, generations, and the stored form.

use std::time::Duration;

use super::*;
use crate::keyring::slots::{REST, Used, fingerprint};
use lb_common::{keyslot::GENERATION_MAX, maps::KEY_SLOTS_MAX};

/// A keyring in which every slot has had a key; those of `listed` still have it, retiring until `START + DAY`.
fn full(listed: impl Fn(u32) -> bool, used: impl Fn(u32) -> Used) -> Keyring {
    let mut keyring = Keyring::default();
    for slot in 0..KEY_SLOTS_MAX {
        let used = used(slot);
        if listed(slot) {
            let id = KeyId::new(slot, used.generation).unwrap();
            keyring.keys.insert(id, key(id, KeyState::Retiring, Some(START + DAY)));
        }
        keyring.slots.0.insert(slot, used);
    }
    keyring
}

fn key(id: KeyId, state: KeyState, not_after: Option<u64>) -> Key {
    Key {
        id,
        service_id: 1,
        state,
        master: MasterKey::from_bytes([3; 32]),
        created_at: START,
        activated_at: None,
        sign_until: START,
        not_after,
        max_ttl: 3600,
        imported: false,
    }
}

fn used(generation: u32, free_at: u64) -> Used {
    Used {
        generation,
        fingerprint: fingerprint(&MasterKey::from_bytes([3; 32])),
        revoked: false,
        free_at,
        service_id: 1,
    }
}

#[test]
fn slots_that_never_had_a_key_come_first() {
    let mut random = random(5);
    let mut keyring = Keyring::default();
    let policies: Vec<_> = (1..=KEY_SLOTS_MAX).map(|service_id| KeyPolicy { service_id, ..POLICY }).collect();
    let events = keyring.tick(START, &policies, &mut random);
    assert!(events.iter().all(|event| matches!(event, Event::Staged { .. })));
    let slots: std::collections::BTreeSet<_> = keyring.keys().map(|key| key.id.slot()).collect();
    assert_eq!(slots.len(), KEY_SLOTS_MAX as usize);
    assert!(keyring.keys().all(|key| key.id.0 != 0 && (1..=0xffff).contains(&key.id.generation())));

    let one_more = KeyPolicy { service_id: 5000, ..POLICY };
    let events = keyring.tick(START, &[one_more], &mut random);
    let [Event::Blocked { service_id: 5000, error: error @ KeyringError::SlotsFull { next_free_at: None } }] =
        &events[..]
    else {
        panic!("{events:?}")
    };
    assert!(error.to_string().contains("all 4096 key slots are in use; revoke retiring keys"), "{error}");
    assert!(keyring.keys().all(|key| key.service_id != 5000));
}

#[test]
fn then_the_one_that_is_free_for_longest() {
    let free_at = |slot| START - 1000 + u64::from((slot + 4000) % KEY_SLOTS_MAX);
    let mut keyring = full(|_| false, |slot| used(9, free_at(slot)));
    for slot in 96..99 {
        let id = keyring.rotate(&POLICY, START, &mut random(1)).unwrap().staged;
        assert_eq!(id, KeyId::new(slot, 10).unwrap());
        keyring.revoke(id, START).unwrap();
    }
    assert_eq!(keyring.keys().count(), 3, "revoked keys are listed as long as there are free slots");
}

#[test]
fn a_slot_rests_before_it_is_used_again() {
    let resting = |slot| used(9, if slot == 7 { START + 10 } else { START + 20 });
    let mut keyring = full(|_| false, resting);
    let error = keyring.rotate(&POLICY, START + 9, &mut random(1)).unwrap_err();
    assert_eq!(error, KeyringError::SlotsFull { next_free_at: Some(START + 10) });
    assert!(error.to_string().contains("the first is free at 2023-11-14T22:13:30Z"), "{error}");
    let id = keyring.rotate(&POLICY, START + 10, &mut random(1)).unwrap().staged;
    assert_eq!(id, KeyId::new(7, 10).unwrap());
}

/// Other nodes may still verify with a key for a moment after this node has removed it.
#[test]
fn the_slot_of_a_key_that_ended_rests_before_it_is_used_again() {
    let mut keyring = full(|slot| slot == 7, |slot| used(if slot == 7 { 9 } else { GENERATION_MAX }, 0));
    let ended = KeyId::new(7, 9).unwrap();
    let end = START + DAY;
    assert_eq!(keyring.tick(end - 1, &[], &mut random(1)), []);
    assert_eq!(keyring.tick(end, &[], &mut random(1)), [Event::Ended { service_id: 1, key_id: ended }]);
    let mut keyring = restored(&stored(&keyring)).unwrap();
    for now in [end, end + REST - 1] {
        let error = keyring.rotate(&POLICY, now, &mut random(1)).unwrap_err();
        assert_eq!(error, KeyringError::SlotsFull { next_free_at: Some(end + REST) });
    }
    let id = keyring.rotate(&POLICY, end + REST, &mut random(1)).unwrap().staged;
    assert_eq!(id, KeyId::new(7, 10).unwrap());
}

#[test]
fn a_full_table_is_helped_by_revoking() {
    let mut keyring = full(|_| true, |_| used(9, 0));
    let error = keyring.rotate(&POLICY, START, &mut random(1)).unwrap_err();
    assert_eq!(error, KeyringError::SlotsFull { next_free_at: Some(START + DAY + REST) });
    let revoked = KeyId::new(1234, 9).unwrap();
    keyring.revoke(revoked, START).unwrap();
    let error = keyring.rotate(&POLICY, START + REST - 1, &mut random(1)).unwrap_err();
    assert_eq!(error, KeyringError::SlotsFull { next_free_at: Some(START + REST) });
    let id = keyring.rotate(&POLICY, START + REST, &mut random(1)).unwrap().staged;
    assert_eq!(id, KeyId::new(1234, 10).unwrap());
    assert_eq!(state(&keyring, revoked), None, "it made room");
}

fn services(count: u32, max_ttl: Duration, rotation: Option<Duration>) -> impl Iterator<Item = KeySettings> {
    (1..=count).map(move |service_id| KeySettings { service_id, max_ttl, rotation })
}

#[test]
fn a_quota_is_what_rotation_needs_and_a_share_of_the_rest() {
    let hour = Duration::from_hours(1);
    let quotas = |count, max_ttl, rotation| {
        let policies = KeyPolicy::of(services(count, max_ttl, rotation));
        assert!(policies.iter().map(|policy| policy.quota).sum::<u64>() <= u64::from(KEY_SLOTS_MAX));
        policies[0].quota
    };
    assert_eq!(quotas(1, hour, None), 64);
    assert_eq!(quotas(64, hour, None), 64);
    assert_eq!(quotas(255, hour, None), 16);
    assert_eq!(quotas(1, 24 * hour, Some(Duration::from_mins(1))), 5 + 1441);
    assert_eq!(slots_needed(Duration::from_secs(1), Some(Duration::from_secs(1))), 5 + 65);
}

/// A script that rotates in a loop, with tokens of an hour.
#[test]
fn a_service_at_its_quota_leaves_the_rest_to_others() {
    let mut random = random(5);
    let mut keyring = Keyring::default();
    let mut policies = KeyPolicy::of(services(255, Duration::from_hours(1), None));
    let looping = policies.pop().unwrap();
    let mut rotations = 0;
    let error = loop {
        match keyring.rotate(&looping, START + rotations, &mut random) {
            Ok(rotation) => keyring.confirm_installed(rotation.staged, START + rotations).unwrap(),
            Err(error) => break error,
        };
        rotations += 1;
    };
    assert_eq!(rotations, 15);
    let free_at = START + 1 + 3600 + LATE + REST;
    let wanted =
        KeyringError::QuotaUsed { service_id: 255, held: 15, quota: 16, next_free_at: Some(free_at) };
    assert_eq!(error, wanted);
    let text = error.to_string();
    assert!(text.contains("service 255 holds 15 of its 16 key slots"), "{text}");
    assert!(text.contains("the first is free at 2023-11-14T23:14:25Z"), "{text}");
    for policy in &policies {
        assert!(!keyring.rotate(policy, START + rotations, &mut random).unwrap().joined);
    }

    // A revoked key is replaced immediately, and its slot is free after its rest.
    let now = START + rotations;
    let signer = keyring.signer(255).unwrap().id;
    assert!(!keyring.revoke(signer, now).unwrap().signer_left);
    let [Event::Staged { service_id: 255, key_id }] = keyring.tick(now, &[looping], &mut random)[..] else {
        panic!("no new key")
    };
    keyring.confirm_installed(key_id, now).unwrap();
    let retiring = keyring.keys().find(|key| key.service_id == 255 && key.state == KeyState::Retiring);
    let retiring = retiring.unwrap().id;
    keyring.revoke(retiring, now).unwrap();
    let error = keyring.rotate(&looping, now + REST - 1, &mut random).unwrap_err();
    assert!(error.to_string().contains("the first is free at"), "{error}");
    keyring.rotate(&looping, now + REST, &mut random).unwrap();

    // Slots that rest after their keys have ended count, even for a daemon that has just started.
    let end = free_at - REST + 20;
    keyring.tick(end, &[], &mut random);
    let mut keyring = restored(&stored(&keyring)).unwrap();
    assert_eq!(keyring.keys().filter(|key| key.service_id == 255).count(), 2);
    let staged = keyring.staged(255).unwrap().id;
    keyring.confirm_installed(staged, end).unwrap();
    let held = |keyring: &Keyring| match keyring.check_quota(&looping, 16, end) {
        Err(KeyringError::QuotaUsed { held, .. }) => held,
        other => panic!("{other:?}"),
    };
    assert_eq!(held(&keyring), 15, "13 rest; the slots of the two revoked keys are free");
    keyring.tick(end + REST, &[], &mut random);
    keyring.rotate(&looping, end + REST, &mut random).unwrap();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    /// A service can rotate regardless of what other services do with their keys.
    #[test]
    fn nobody_keeps_a_service_from_rotating(
        seed: u64,
        steps in proptest::collection::vec((0..3usize, 0..4usize, 0..40u64), 1..100),
    ) {
        let mut random = random(seed);
        let free_at = |slot| if slot < 20 { 0 } else { u64::MAX };
        let mut keyring = full(|_| false, |slot| Used { service_id: 0, ..used(9, free_at(slot)) });
        let policy = |service_id, max_ttl| KeyPolicy { service_id, max_ttl, rotation: None, quota: 5 };
        let policies = [policy(1, 1), policy(2, 60), policy(3, 3600)];
        let mut now = START;
        for (service, action, seconds) in steps {
            let policy = &policies[service];
            match action {
                0 => now += seconds,
                1 => if let Some(id) = keyring.signer(policy.service_id).map(|key| key.id) {
                    keyring.revoke(id, now).unwrap();
                },
                _ => if let Ok(rotation) = keyring.rotate(policy, now, &mut random) {
                    keyring.confirm_installed(rotation.staged, now).unwrap();
                },
            }
            keyring.tick(now, &[], &mut random);
            let mut other = keyring.clone();
            for _ in 0..4 {
                let policy = KeyPolicy { service_id: 4, ..policies[2] };
                let staged = other.rotate(&policy, now, &mut random).unwrap().staged;
                other.confirm_installed(staged, now).unwrap();
            }
        }
    }
}

#[test]
fn a_slot_without_generations_is_never_used_again() {
    let mut keyring = full(|_| false, |slot| used(if slot == 5 { 9 } else { GENERATION_MAX }, 0));
    assert_eq!(keyring.rotate(&POLICY, START, &mut random(1)).unwrap().staged, KeyId::new(5, 10).unwrap());
    let other = KeyPolicy { service_id: 43, ..POLICY };
    let error = keyring.rotate(&other, START, &mut random(1)).unwrap_err();
    assert_eq!(error, KeyringError::SlotsFull { next_free_at: None });
}

#[test]
fn what_is_stored_comes_back() {
    let (mut keyring, _, mut random) = started();
    keyring.export("game", &POLICY, START);
    let staged = keyring.rotate(&POLICY, START, &mut random).unwrap().staged;
    keyring.confirm_installed(staged, START).unwrap();
    keyring.revoke(staged, START).unwrap();
    assert_eq!(restored(&stored(&keyring)).unwrap(), keyring);
    assert_eq!(restored(&stored(&Keyring::default())).unwrap(), Keyring::default());
}

#[test]
fn a_contradiction_is_not_a_keyring() {
    let (keyring, id, _) = started();
    let sound = stored(&keyring);
    let key = sound.split("[").nth(1).unwrap().split("]").next().unwrap();
    let number = id.0.to_string();
    let cases = [
        (sound.replace(key, &format!("{key},{key}")), "service 42 has two keys that are active"),
        (sound.replace(&format!("\"key_id\":{number}"), "\"key_id\":0"), "key 0 is not the last of its slot"),
        (
            sound.replace(&format!("\"{}\":{{\"gen", id.slot()), "\"4096\":{\"gen"),
            "slot 4096 or its generation",
        ),
        (sound.replace("\"revoked\":false", "\"revoked\":7"), "invalid type"),
        (sound.replace("\"active\"", "\"retiring\""), "is retiring, and its end says otherwise"),
        (sound.replace("\"active\"", "\"alive\""), "unknown variant `alive`"),
        (sound.replace("\"master\":\"", "\"master\":\"x"), "a master key is 64 hexadecimal digits"),
        (sound.replace("\"imported\"", "\"imparted\""), "unknown field"),
    ];
    for (text, expected) in cases {
        let error = restored(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
}
