//! What this is a build of.

/// Of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit, where `cargo xtask build` knew it.
pub const COMMIT: &str = match option_env!("TOLLGATE_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
