//! Tollgate, the daemon and its command line.
