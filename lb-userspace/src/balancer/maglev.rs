//! Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4).
//!
//! Every backend has its own permutation of the table's positions. The backends take turns: in its turn, a backend
//! claims the first free position of its permutation. The table depends only on the service, the backend ids and the
//! weights, so every node computes the same table. When a backend is removed, few sessions of other backends move.

use lb_common::{
    balance::{MaglevTable, TABLE_LEN, TABLE_ROOM},
    siphash::{SipHash24, SipKey},
};

/// The share of a backend in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Id of the backend, which determines its positions in the table.
    pub backend_id: u16,
    /// Share of the sessions, relative to the weights of the other backends; 0: no sessions.
    pub weight: u32,
    /// Value that the table has at the backend's positions; not 0.
    pub entry: u16,
}

/// Not a secret: permutations must be the same on every node and in every version.
const PERMUTATIONS: SipKey = SipKey::from_bytes(b"tollgate/maglev1");

/// A full turn, in the unit of `Claimant::turn`.
const FULL_TURN: u64 = 1 << 32;

/// Builds the table of a service. The order of the backends does not matter. All entries are 0 if no backend has
/// weight.
pub fn table(service_id: u32, shares: &[Share]) -> Box<MaglevTable> {
    let mut table: Box<MaglevTable> = Box::new([0; TABLE_ROOM]);
    let mut claimants = claimants(service_id, shares);
    let Some(heaviest) = claimants.iter().map(|claimant| claimant.weight).max() else { return table };
    let mut free = TABLE_LEN;
    while free > 0 {
        for claimant in &mut claimants {
            // In every round, the heaviest backend has a turn; a backend with half its weight has a turn in every other
            // round. This needs no loop over weights.
            claimant.turn += FULL_TURN * u64::from(claimant.weight) / u64::from(heaviest);
            if claimant.turn < FULL_TURN || free == 0 {
                continue;
            }
            claimant.turn -= FULL_TURN;
            while table[claimant.next] != 0 {
                claimant.advance();
            }
            table[claimant.next] = claimant.entry;
            free -= 1;
        }
    }
    table
}

struct Claimant {
    entry: u16,
    weight: u32,
    /// Accumulated fraction of a turn.
    turn: u64,
    /// Next position of its permutation.
    next: usize,
    skip: usize,
}

impl Claimant {
    const fn advance(&mut self) {
        self.next += self.skip;
        if self.next >= TABLE_LEN {
            self.next -= TABLE_LEN;
        }
    }
}

/// Sorted by backend id, so that the order of the input does not matter.
fn claimants(service_id: u32, shares: &[Share]) -> Vec<Claimant> {
    let mut shares: Vec<_> = shares.iter().filter(|share| share.weight > 0).collect();
    shares.sort_unstable_by_key(|share| share.backend_id);
    let claimant = |share: &&Share| {
        let place = u64::from(service_id) << 32 | u64::from(share.backend_id);
        let hash = |which: u64| SipHash24::new(PERMUTATIONS).word(place).word(which).finish(0, 16) as usize;
        Claimant {
            entry: share.entry,
            weight: share.weight,
            turn: 0,
            next: hash(0) % TABLE_LEN,
            // The number of positions is a prime, so every step except 0 visits all of them.
            skip: 1 + hash(1) % (TABLE_LEN - 1),
        }
    };
    shares.iter().map(claimant).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shares(weights: &[u32]) -> Vec<Share> {
        let share = |(i, weight): (u16, &u32)| Share { backend_id: 10 + i, weight: *weight, entry: 1 + i };
        (0..).zip(weights).map(share).collect()
    }

    /// Number of positions of each entry.
    fn counts(table: &MaglevTable) -> BTreeMap<u16, usize> {
        let mut counts = BTreeMap::new();
        table[..TABLE_LEN].iter().for_each(|entry| *counts.entry(*entry).or_default() += 1);
        counts
    }

    fn moved(before: &MaglevTable, after: &MaglevTable, but: u16) -> usize {
        let pairs = before.iter().zip(after.iter());
        pairs.filter(|(before, after)| **before != but && before != after).count()
    }

    #[test]
    fn without_backends_it_is_empty() {
        assert!(table(42, &[]).iter().all(|entry| *entry == 0));
        assert!(table(42, &shares(&[0, 0])).iter().all(|entry| *entry == 0));
    }

    #[test]
    fn one_backend_has_all_of_it() {
        let table = table(42, &shares(&[0, 7]));
        assert_eq!(counts(&table), BTreeMap::from([(2, TABLE_LEN)]));
        assert!(table[TABLE_LEN..].iter().all(|entry| *entry == 0), "no session has a position there");
    }

    #[test]
    fn equal_weights_have_equal_shares() {
        for backends in [2, 3, 10, 100, 1000, 4096] {
            let counts = counts(&table(42, &shares(&vec![100; backends])));
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            assert_eq!(counts.len(), backends);
            assert!(most - least <= 1, "{backends} backends: {least} to {most} positions");
        }
    }

    #[test]
    fn weights_are_shares() {
        let weights = [1, 10, 100, 100, 250, 500, 39];
        let counts = counts(&table(42, &shares(&weights)));
        for (entry, weight) in (1..).zip(weights) {
            let expected = TABLE_LEN as f64 * f64::from(weight) / 1000.0;
            let found = counts[&entry] as f64;
            assert!(
                (found - expected).abs() <= 0.01 * expected + 1.0,
                "weight {weight}: {found}, not {expected}"
            );
        }
    }

    /// The most extreme weights that a configuration can have.
    #[test]
    fn the_lightest_backend_is_not_forgotten() {
        let counts = counts(&table(42, &shares(&[65_535, 1])));
        assert_eq!(counts.values().sum::<usize>(), TABLE_LEN);
        assert!(counts.get(&2).is_none_or(|positions| *positions <= 1), "{counts:?}");
    }

    #[test]
    fn removal_moves_few_sessions_of_others() {
        for backends in [3usize, 10, 100, 1000] {
            let all = shares(&vec![100; backends]);
            let before = table(42, &all);
            let mut without = all.clone();
            let gone = without.remove(backends / 2).entry;
            let moved = moved(&before, &table(42, &without), gone);
            let percent = 100.0 * moved as f64 / TABLE_LEN as f64;
            // Figure 12 of the paper shows a few percent at most for tables of 100 positions per backend; smaller
            // tables deviate more.
            let most = if backends <= 100 { 4.0 } else { 7.0 };
            println!("{backends} backends, one removed: {percent:.2} % of all sessions moved without need");
            assert!(percent < most, "{backends} backends: {percent:.2} % of all sessions moved without need");
        }
    }

    #[test]
    fn services_have_tables_of_their_own() {
        let all = shares(&[100; 10]);
        let same = table(1, &all).iter().zip(table(2, &all).iter()).filter(|(a, b)| a == b).count();
        assert!(same < TABLE_LEN / 5, "{same} positions are the same; a tenth is chance");
    }

    /// The expected table is fixed: a different table for the same backends would move sessions on an upgrade, and
    /// nodes of two versions would disagree.
    #[test]
    fn the_table_is_for_good() {
        let table = table(42, &shares(&[100, 50, 25]));
        let hash =
            table.iter().fold(SipHash24::new(PERMUTATIONS), |hash, entry| hash.word(u64::from(*entry)));
        assert_eq!(table[..16], FIRST, "{:?}", &table[..16]);
        assert_eq!(hash.finish(0, 0), WHOLE);
    }

    const FIRST: [u16; 16] = [3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 3];
    const WHOLE: u64 = 17_626_663_774_219_699_456;

    /// Not a benchmark: building the largest table must not block the daemon for long.
    #[test]
    fn the_largest_table_takes_no_time() {
        let all: Vec<_> =
            (1..=4096).map(|id| Share { backend_id: id, weight: 1 + u32::from(id), entry: id }).collect();
        let start = std::time::Instant::now();
        let table = table(42, &all);
        assert!(table[..TABLE_LEN].iter().all(|entry| *entry != 0));
        let took = start.elapsed();
        println!("4096 backends of 4096 weights: {took:?}");
        assert!(took < std::time::Duration::from_secs(2), "{took:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_order_does_not_matter(
            weights in proptest::collection::vec(0u32..1000, 1..40),
            service_id: u32,
            seed: u64,
        ) {
            let all = shares(&weights);
            let mut other = all.clone();
            other.sort_by_key(|share| (u64::from(share.backend_id) ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            prop_assert_eq!(table(service_id, &all), table(service_id, &other));
        }
    }
}
