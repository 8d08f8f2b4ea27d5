mod lifetimes;
mod properties;
mod slots;
mod transfer;

use super::*;

const START: u64 = 1_700_000_000;
const DAY: u64 = 86_400;
const POLICY: KeyPolicy = KeyPolicy { service_id: 42, max_ttl: 3600, rotation: Some(DAY), quota: 64 };
const BY_HAND: KeyPolicy = KeyPolicy { rotation: None, ..POLICY };

/// The same bytes in every run (splitmix64, Steele et al., OOPSLA 2014).
fn random(mut seed: u64) -> impl FnMut(&mut [u8]) {
    move |buffer| {
        for chunk in buffer.chunks_mut(8) {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A keyring with one key of `POLICY`'s service, active since `START`.
fn started() -> (Keyring, KeyId, impl FnMut(&mut [u8])) {
    let mut random = random(1);
    let mut keyring = Keyring::default();
    let events = keyring.tick(START, &[POLICY], &mut random);
    let [Event::Staged { service_id: 42, key_id }] = events[..] else { panic!("{events:?}") };
    keyring.confirm_installed(key_id, START).unwrap();
    (keyring, key_id, random)
}

fn state(keyring: &Keyring, id: KeyId) -> Option<KeyState> {
    keyring.key(id).map(|key| key.state)
}

fn stored(keyring: &Keyring) -> String {
    serde_json::to_string(keyring).unwrap()
}

fn restored(text: &str) -> Result<Keyring, serde_json::Error> {
    serde_json::from_str(text)
}
