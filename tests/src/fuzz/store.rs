//! The file of the store: it is read, or rejected with a hint how to fix it. What was read can be written and read
//! again.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use tollgate::store::{FileStore, Store as _, StoreError};

/// Any file, and any content of a file with a correct checksum, which no fuzzer finds.
pub fn check(bytes: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory for the store");
    open(directory.path(), bytes);
    if let Ok(content) = std::str::from_utf8(bytes) {
        let sha256 = hex::encode(Sha256::digest(content));
        open(
            directory.path(),
            format!("{{\"format\":4,\"sha256\":{},\"content\":{content}}}", json!(sha256)).as_bytes(),
        );
    }
}

fn open(directory: &Path, file: &[u8]) {
    let state = directory.join("state.json");
    fs::write(&state, file)
        .and_then(|()| fs::set_permissions(&state, Permissions::from_mode(0o600)))
        .expect("a file");
    let store = match FileStore::open(directory) {
        Ok(store) => store,
        Err(error @ (StoreError::Damaged { .. } | StoreError::Newer { .. })) => {
            assert!(!error.to_string().is_empty());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let found = store.snapshot().await.expect("a snapshot");
        let written = match store.commit(found.commit.revision, (*found.state).clone()).await {
            Ok(written) => written,
            Err(StoreError::LastRevision) if found.commit.revision == u64::MAX => return,
            Err(error) => panic!("{error}"),
        };
        drop(store);
        let again = FileStore::open(directory).expect("what was written is read");
        assert!(again.snapshot().await.expect("a snapshot") == written, "and it is what was written");
    });
    // There is no copy if the revision is the last possible one.
    let _ = fs::remove_file(directory.join("state.json.prev"));
}
