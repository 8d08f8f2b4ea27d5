//! Checks that the store continues from the commit that the kernel state of this host was made from.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use tracing::warn;

use super::StartError;
use crate::{
    config::{Config, StoreLocation},
    datapath::{DatapathError, LastCommit, Pins},
    store::{self, Commit, StoreId},
};

/// A store that does not continue from the kernel state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}. {LOST} Filtering continues with the kernel state. {}", self.difference(), self.hint())]
pub struct Mismatch {
    cause: Cause,
    store: PathBuf,
    found: Commit,
    remembered: Commit,
}

/// The value of `--accept-store`, `FOUND:REMEMBERED:DIGEST`: the revision of the store, and the commit that is recorded
/// in the kernel, by its revision and the first 4 bytes of its digest. It accepts once, because the commit that is
/// recorded afterwards has a higher revision. The digest distinguishes the recorded commit from one of another history,
/// which is recorded if the first record was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acceptance {
    found: u64,
    remembered: u64,
    digest: [u8; 4],
}

impl fmt::Display for Acceptance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.found, self.remembered, hex::encode(self.digest))
    }
}

impl FromStr for Acceptance {
    type Err = NoAcceptance;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<_> = text.split(':').collect();
        let [found, remembered, digest] = parts[..] else { return Err(NoAcceptance) };
        let revision = |text: &str| text.parse().map_err(|_| NoAcceptance);
        let mut value = Self { found: revision(found)?, remembered: revision(remembered)?, digest: [0; 4] };
        hex::decode_to_slice(digest, &mut value.digest).map_err(|_| NoAcceptance)?;
        Ok(value)
    }
}

/// Not a value of `--accept-store`.
#[derive(Debug, thiserror::Error)]
#[error(
    "expected FOUND:REMEMBERED:DIGEST, such as 41:43:9f3a21c0; start the daemon without this option: if it refuses \
     the store, its error names the value"
)]
pub struct NoAcceptance;

const LOST: &str = "Revocations, keys and key exports may be missing from it.";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Empty,
    OtherStore,
    RolledBack,
    Forked,
}

impl Mismatch {
    /// What differs, without the consequences.
    pub fn difference(&self) -> String {
        let Self { cause, store, found, remembered } = self;
        let (store, now, before) = (store.display(), found.revision, remembered.revision);
        match cause {
            Cause::Empty => format!(
                "the store {store} is empty, but this host's kernel state was made from revision {before} of a \
                 store ({})",
                remembered.store
            ),
            Cause::OtherStore => format!(
                "the store {store} ({}, revision {now}) is not the one that this host's kernel state was made from \
                 ({}, revision {before})",
                found.store, remembered.store
            ),
            Cause::RolledBack => format!(
                "the store {store} was rolled back: it is at revision {now}, but this host's kernel state was made \
                 from its revision {before}"
            ),
            Cause::Forked => format!(
                "the store {store} was rolled back and changed since: its revision {now} is not the revision \
                 {before} that this host's kernel state was made from"
            ),
        }
    }

    /// The value of `--accept-store` that accepts exactly this store in this state.
    pub fn acceptance(&self) -> Acceptance {
        let [a, b, c, d, ..] = self.remembered.digest;
        Acceptance { found: self.found.revision, remembered: self.remembered.revision, digest: [a, b, c, d] }
    }

    /// The newest commit that is recorded in the kernel.
    pub(super) const fn remembered(&self) -> &Commit {
        &self.remembered
    }

    fn hint(&self) -> String {
        let restore = match self.cause {
            Cause::Empty | Cause::OtherStore => "Is its file system mounted? If so, restore the newest store",
            Cause::RolledBack | Cause::Forked => "Restore the newest store",
        };
        format!(
            "{restore}, or, to use this one, start the daemon once with its usual options and `--accept-store {}`",
            self.acceptance()
        )
    }
}

/// Compares the commit of the store with the newest one that was recorded in the kernel.
///
/// # Errors
/// If the store does not continue from it.
pub fn compare(store: &Path, found: &Commit, remembered: &Commit) -> Result<(), Mismatch> {
    // A store without an ID is identified by its revisions and digests.
    let may_be_other = remembered.store != StoreId::NONE && remembered.store != found.store;
    let cause = if remembered.revision == 0 {
        return Ok(());
    } else if found.revision == 0 {
        Cause::Empty
    } else if may_be_other {
        Cause::OtherStore
    } else if found.revision < remembered.revision {
        Cause::RolledBack
    } else if found.revision == remembered.revision && found.digest != remembered.digest {
        Cause::Forked
    } else {
        return Ok(());
    };
    Err(Mismatch { cause, store: store.to_owned(), found: *found, remembered: *remembered })
}

/// Refuses a store that does not continue from the recorded commit. Returns the mismatch if `accept` names it.
pub(super) fn verify(
    config: &Config,
    found: &Commit,
    pins: &Pins,
    accept: Option<&Acceptance>,
) -> Result<Option<Mismatch>, StartError> {
    let StoreLocation::File(directory) = &config.store;
    let remembered = remembered(pins)?;
    if remembered.is_none() && !pins.is_empty()? {
        warn!(
            "it is not known which commit of the store the kernel state was made from: a store that was rolled back \
             would not be noticed"
        );
    }
    match compare(directory, found, &remembered.unwrap_or_default()) {
        Err(mismatch) if accept == Some(&mismatch.acceptance()) => Ok(Some(mismatch)),
        Err(mismatch) => Err(mismatch.into()),
        Ok(()) => {
            if accept.is_some() {
                warn!(
                    "`--accept-store` had no effect, because the store continues from the kernel state; remove it"
                );
            }
            Ok(None)
        }
    }
}

/// The newest commit that was recorded, in a map next to the pins; `None` if there is no such map or it is empty.
fn remembered(pins: &Pins) -> Result<Option<Commit>, DatapathError> {
    match LastCommit::find(pins)? {
        Some(last) => last.read(),
        None => Ok(None),
    }
}

/// Compares the store of a configuration with the recorded commit. Takes no lock, so do not use it while a daemon runs.
///
/// # Errors
/// If the store does not continue from the recorded commit, or one of the two cannot be read.
pub fn check_store(config: &Config) -> Result<Commit, StartError> {
    let StoreLocation::File(directory) = &config.store;
    let found = store::inspect(&config.store)?.commit;
    // Without a BPF file system, no commit is recorded.
    if let Ok(pins) = Pins::new(&config.bpffs)
        && let Some(remembered) = remembered(&pins)?
    {
        compare(directory, &found, &remembered)?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StoreId = StoreId([1; 16]);
    const B: StoreId = StoreId([2; 16]);

    fn commit(store: StoreId, revision: u64, content: u8) -> Commit {
        Commit { store, revision, digest: [content; 16] }
    }

    #[test]
    fn a_store_continues_from_what_was_remembered() {
        let (none, old) = (Commit::default(), StoreId::NONE);
        for (found, remembered, cause) in [
            // Nothing is recorded: every store is accepted.
            (none, none, None),
            (commit(A, 7, 1), none, None),
            (commit(old, 7, 1), none, None),
            // The same commit, or a later one.
            (commit(A, 7, 1), commit(A, 7, 1), None),
            (commit(A, 8, 2), commit(A, 7, 1), None),
            (commit(A, u64::MAX, 2), commit(A, 1, 1), None),
            (commit(A, 6, 1), commit(A, 7, 1), Some(Cause::RolledBack)),
            (commit(A, 1, 1), commit(A, u64::MAX, 1), Some(Cause::RolledBack)),
            (commit(A, 7, 2), commit(A, 7, 1), Some(Cause::Forked)),
            // Another store, whatever its revision.
            (commit(B, 6, 1), commit(A, 7, 1), Some(Cause::OtherStore)),
            (commit(B, 7, 1), commit(A, 7, 1), Some(Cause::OtherStore)),
            (commit(B, 8, 1), commit(A, 7, 1), Some(Cause::OtherStore)),
            (none, commit(A, 7, 1), Some(Cause::Empty)),
            // Written by a version before format 4: a copy from before the store had an ID.
            (commit(old, 9, 1), commit(A, 7, 1), Some(Cause::OtherStore)),
            // The store had no ID when its commit was recorded.
            (commit(old, 7, 1), commit(old, 7, 1), None),
            (commit(A, 8, 2), commit(old, 7, 1), None),
            (commit(old, 6, 1), commit(old, 7, 1), Some(Cause::RolledBack)),
            (commit(A, 6, 1), commit(old, 7, 1), Some(Cause::RolledBack)),
            (commit(old, 7, 2), commit(old, 7, 1), Some(Cause::Forked)),
            (none, commit(old, 7, 1), Some(Cause::Empty)),
        ] {
            let result = compare(Path::new("/store"), &found, &remembered);
            assert_eq!(result.err().map(|mismatch| mismatch.cause), cause, "{found:?} after {remembered:?}");
        }
    }

    #[test]
    fn an_acceptance_names_both_commits() {
        let acceptance =
            |found, remembered| compare(Path::new("/s"), &found, &remembered).unwrap_err().acceptance();
        let one = acceptance(commit(A, 6, 1), commit(A, 7, 1));
        assert_eq!(one.to_string().parse::<Acceptance>().unwrap(), one);
        for (found, remembered) in [
            (commit(A, 5, 1), commit(A, 7, 1)),
            (commit(A, 6, 1), commit(A, 8, 1)),
            (commit(A, 6, 1), commit(A, 7, 2)),
        ] {
            assert_ne!(acceptance(found, remembered), one, "{found:?} after {remembered:?}");
        }
        for text in [
            "",
            "0",
            "6:7",
            "6:7:",
            "6:7:0101",
            "6:7:0101010101",
            "6:7:0101010g",
            "6:-7:01010101",
            "6:7:01010101:",
        ] {
            let error = text.parse::<Acceptance>().unwrap_err().to_string();
            assert!(error.contains("FOUND:REMEMBERED:DIGEST"), "{text}: {error}");
        }
    }

    #[test]
    fn a_mismatch_says_what_to_do() {
        let text = |found| compare(Path::new("/s"), &found, &commit(A, 7, 1)).unwrap_err().to_string();
        let rolled_back = text(commit(A, 6, 1));
        for part in [
            "revision 6",
            "revision 7",
            "Filtering continues",
            "Revocations",
            "`--accept-store 6:7:01010101`",
        ] {
            assert!(rolled_back.contains(part), "{part}: {rolled_back}");
        }
        let empty = text(Commit::default());
        for part in ["/s is empty", &A.to_string(), "file system mounted", "--accept-store 0:7:01010101"] {
            assert!(empty.contains(part), "{part}: {empty}");
        }
        let other = text(commit(B, 9, 1));
        for part in
            [A.to_string(), B.to_string(), "revision 9".to_owned(), "--accept-store 9:7:01010101".to_owned()]
        {
            assert!(other.contains(&part), "{part}: {other}");
        }
        assert!(text(commit(A, 7, 2)).contains("rolled back and changed since"));
    }
}
