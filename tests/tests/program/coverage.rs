//! Every reason has a case or a documented exception.

use std::collections::BTreeSet;

use lb_common::reason::Reason;

/// Reasons without a case, and why.
const EXCUSED: [(Reason, &str); 1] =
    [(Reason::Internal, "a helper would have to fail where it never should")];

#[test]
fn every_reason_has_a_case() {
    let covered: BTreeSet<Reason> = crate::matrix::cases().iter().map(|case| case.expected.reason).collect();
    let excused: BTreeSet<Reason> = EXCUSED.iter().map(|(reason, _)| *reason).collect();
    let all: BTreeSet<Reason> = Reason::ALL.iter().copied().collect();
    let missing: Vec<_> = all.difference(&covered.union(&excused).copied().collect()).copied().collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
    let idle: Vec<_> = covered.intersection(&excused).collect();
    assert!(idle.is_empty(), "these have a case and need no excuse: {idle:?}");
}
