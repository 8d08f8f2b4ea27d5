//! Two nodes, two services, an issuer with old keysets, and random operations in any order.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::keyring::slots::REST;

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Rotate { node: usize, service: usize },
    Confirm { node: usize, service: usize },
    Revoke { node: usize, which: usize },
    MaxTtl { service: usize, seconds: u64 },
    Remove { service: usize },
    Export { node: usize, service: usize },
    Import { node: usize, which: usize },
    SignLocally { node: usize, service: usize },
    SignWithKeyset { which: usize },
    Restart { node: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (node, service, which) = (0..2usize, 0..2usize, any::<usize>());
    let pair = (node.clone(), service.clone());
    prop_oneof![
        4 => prop_oneof![0..10u64, 0..4000u64, 0..200_000u64].prop_map(Step::Wait),
        3 => pair.clone().prop_map(|(node, service)| Step::Rotate { node, service }),
        6 => pair.clone().prop_map(|(node, service)| Step::Confirm { node, service }),
        1 => (node.clone(), which).prop_map(|(node, which)| Step::Revoke { node, which }),
        1 => (service.clone(), 1..100_000u64).prop_map(|(service, seconds)| Step::MaxTtl { service, seconds }),
        1 => service.prop_map(|service| Step::Remove { service }),
        3 => pair.clone().prop_map(|(node, service)| Step::Export { node, service }),
        3 => (node.clone(), which).prop_map(|(node, which)| Step::Import { node, which }),
        4 => pair.prop_map(|(node, service)| Step::SignLocally { node, service }),
        4 => which.prop_map(|which| Step::SignWithKeyset { which }),
        1 => node.prop_map(|node| Step::Restart { node }),
    ]
}

#[derive(Debug)]
struct Token {
    key: KeyId,
    /// Includes the skew that the program tolerates.
    verifies_until: u64,
    /// The nodes that must accept it.
    nodes: BTreeSet<usize>,
}

type Fill = dyn FnMut(&mut [u8]);

struct World {
    now: u64,
    nodes: [Keyring; 2],
    policies: [KeyPolicy; 2],
    configured: [bool; 2],
    random: Box<Fill>,
    /// Each keyset with the nodes that know its keys, by key.
    keysets: Vec<(Keyset, BTreeMap<u32, BTreeSet<usize>>)>,
    tokens: Vec<Token>,
    /// By node: every key that ever existed, and when each slot last verified.
    ever: [BTreeMap<KeyId, MasterKey>; 2],
    verified: [BTreeMap<u32, (KeyId, u64)>; 2],
    revoked: BTreeSet<(usize, KeyId)>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now: START,
            nodes: Default::default(),
            policies: [POLICY, KeyPolicy { service_id: 7, max_ttl: 60, rotation: None, quota: 64 }],
            configured: [true; 2],
            random: Box::new(random(seed)),
            keysets: Vec::new(),
            tokens: Vec::new(),
            ever: Default::default(),
            verified: Default::default(),
            revoked: BTreeSet::new(),
        }
    }

    fn sign(&mut self, key: KeyId, policy: usize, nodes: BTreeSet<usize>) {
        // An issuer's clock may be late by the skew. Then it issues the token earlier, and the token expires earlier.
        let verifies_until = self.now + self.policies[policy].max_ttl + LATE / 2;
        self.tokens.push(Token { key, verifies_until, nodes });
    }

    fn take(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Wait(seconds) => self.now += seconds,
            Step::Rotate { node, service } => {
                self.nodes[node].rotate(&self.policies[service], now, &mut *self.random).unwrap();
            }
            Step::Confirm { node, service } => {
                let staged = self.nodes[node].staged(self.policies[service].service_id).map(|key| key.id);
                if let Some(id) = staged {
                    assert!(self.nodes[node].confirm_installed(id, now).unwrap().is_some());
                }
            }
            Step::Revoke { node, which } => {
                let ids: Vec<_> = self.nodes[node].keys().map(|key| key.id).collect();
                if !ids.is_empty() {
                    let id = ids[which % ids.len()];
                    self.nodes[node].revoke(id, now).unwrap();
                    self.revoked.insert((node, id));
                }
            }
            Step::MaxTtl { service, seconds } => self.policies[service].max_ttl = seconds,
            Step::Remove { service } => self.configured[service] ^= true,
            Step::Export { node, service } => {
                let keyset = self.nodes[node].export("", &self.policies[service], now);
                let known = keyset.keys.iter().map(|key| (key.key_id, BTreeSet::from([node]))).collect();
                self.keysets.push((keyset, known));
            }
            Step::Import { node, which } => self.import(node, which),
            Step::SignLocally { node, service } => {
                let signer = self.nodes[node].signer(self.policies[service].service_id).map(|key| key.id);
                if let Some(id) = signer.filter(|_| self.configured[service]) {
                    self.sign(id, service, BTreeSet::from([node]));
                }
            }
            Step::SignWithKeyset { which } => self.sign_with_keyset(which),
            Step::Restart { node } => {
                let text = stored(&self.nodes[node]);
                self.nodes[node] = restored(&text).unwrap();
            }
        }
    }

    fn import(&mut self, node: usize, which: usize) {
        if self.keysets.is_empty() {
            return;
        }
        let which = which % self.keysets.len();
        let (keyset, known) = &mut self.keysets[which];
        let Some(policy) = self.policies.iter().find(|policy| policy.service_id == keyset.service_id) else {
            return;
        };
        let before = self.nodes[node].clone();
        match self.nodes[node].import(keyset, policy, self.now) {
            Ok(imported) => {
                for id in imported.added.iter().chain(&imported.known) {
                    known.get_mut(&id.0).unwrap().insert(node);
                }
            }
            Err(_) => assert_eq!(before, self.nodes[node]),
        }
    }

    fn sign_with_keyset(&mut self, which: usize) {
        if self.keysets.is_empty() {
            return;
        }
        let (keyset, known) = &self.keysets[which % self.keysets.len()];
        let service = self.policies.iter().position(|policy| policy.service_id == keyset.service_id).unwrap();
        let active = keyset.keys.iter().find(|key| key.state == KeyState::Active);
        if let Some(key) = active.filter(|key| self.now <= key.sign_until && self.configured[service]) {
            let (id, nodes) = (KeyId(key.key_id), known[&key.key_id].clone());
            self.sign(id, service, nodes);
        }
    }

    /// The daemon's reaction to each operation.
    fn tick(&mut self) {
        let configured = self.policies.iter().zip(self.configured).filter(|(_, configured)| *configured);
        let policies: Vec<_> = configured.map(|(policy, _)| *policy).collect();
        for node in &mut self.nodes {
            for event in node.tick(self.now, &policies, &mut *self.random) {
                assert!(!matches!(event, Event::Blocked { .. }), "{event:?}");
            }
            assert!(node.next_deadline(&policies).is_none_or(|deadline| deadline > self.now));
            for policy in &policies {
                let id = policy.service_id;
                assert!(node.signer(id).or(node.staged(id)).is_some(), "a key is active or staged");
            }
        }
    }

    fn check(&mut self) {
        for (node, keyring) in self.nodes.iter().enumerate() {
            let (ever, verified) = (&mut self.ever[node], &mut self.verified[node]);
            let (mut slots, mut roles) = (BTreeSet::new(), BTreeSet::new());
            for key in keyring.keys() {
                assert!(slots.insert(key.id.slot()), "two keys in a slot");
                let goes_on = matches!(key.state, KeyState::Active | KeyState::Staged);
                assert!(!goes_on || roles.insert((key.service_id, key.state)), "two {} keys", key.state);
                assert_eq!(goes_on, key.not_after.is_none());
                let first = ever.entry(key.id).or_insert_with(|| key.master.clone());
                assert!(*first == key.master, "an id was given twice");
                assert!(!key.verifies() || !self.revoked.contains(&(node, key.id)), "a revoked key verifies");
                if key.verifies() {
                    let (last, at) =
                        verified.insert(key.id.slot(), (key.id, self.now)).unwrap_or((key.id, 0));
                    assert!(last.generation() <= key.id.generation());
                    assert!(last == key.id || at + REST <= self.now, "no rest");
                }
            }
            assert_eq!(&restored(&stored(keyring)).unwrap(), keyring);
        }
        for token in self.tokens.iter().filter(|token| self.now < token.verifies_until) {
            for node in token.nodes.iter().filter(|node| !self.revoked.contains(&(**node, token.key))) {
                let key = self.nodes[*node].key(token.key).filter(|key| key.verifies());
                let verifies =
                    key.is_some_and(|key| key.not_after.is_none_or(|end| end >= token.verifies_until));
                assert!(verifies, "node {node} at {} does not take {token:?}: {key:?}", self.now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_that_happens_breaks_a_promise(seed: u64, steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = World::new(seed);
        for step in steps {
            world.tick();
            world.take(step);
            world.tick();
            world.check();
        }
    }
}
