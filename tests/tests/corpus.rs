//! Replays the fuzzer's corpus, so that an input that once violated an invariant never does so again.

use std::{fs, path::PathBuf};

use lb_tests::fuzz::{TARGETS, corpus};

#[test]
fn every_case_keeps_the_promises() {
    for target in TARGETS {
        let cases = files(target.name);
        assert!(!cases.is_empty(), "target {} has no cases in {}", target.name, corpus().display());
        for case in cases {
            println!("{}", case.display());
            (target.check)(&fs::read(&case).expect("a case can be read"));
        }
    }
}

#[test]
fn every_directory_is_a_targets() {
    for entry in fs::read_dir(corpus()).expect("the corpus") {
        let name = entry.expect("the corpus").file_name();
        assert!(
            TARGETS.iter().any(|target| *target.name == *name),
            "{} belongs to no target",
            name.display()
        );
    }
}

fn files(target: &str) -> Vec<PathBuf> {
    let directory = corpus().join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a directory").path()).collect();
    files.sort();
    files
}
