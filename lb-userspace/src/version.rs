//! Version and commit of this build.

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Git commit, if `cargo xtask build` knew it.
pub const COMMIT: &str = match option_env!("TOLLGATE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
