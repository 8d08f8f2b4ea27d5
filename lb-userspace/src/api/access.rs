//! Access control of the control socket.
//!
//! The kernel reports the user and groups of a peer (SO_PEERCRED, SO_PEERGROUPS), and each request is checked against
//! its access: root, the user of the daemon and members of `admin_group` may send all requests, members of
//! `control_group` only those with read access.

use std::{io, os::fd::AsRawFd as _, sync::Arc};

use axum::{
    Json,
    body::to_bytes,
    extract::{Extension, Request},
    http::StatusCode,
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use tokio::net::UnixStream;
use tracing::{Instrument as _, error_span};

use crate::{
    config::{Config, Group},
    protocol::{Access, BODY_MAX, Failure},
};

/// The users and groups that have access.
#[derive(Clone, Debug)]
pub struct Rules {
    /// User of the daemon.
    pub own_uid: u32,
    /// Group with read access.
    pub control_group: Option<Group>,
    /// Group with change access.
    pub admin_group: Option<Group>,
}

/// User and groups of a peer when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id, and the supplementary ones.
    pub gids: Vec<u32>,
}

/// The peer of a request, as an extension of the request.
#[derive(Clone, Debug)]
pub struct Caller {
    uid: u32,
    access: Option<Access>,
    rules: Arc<Rules>,
}

impl Rules {
    /// The rules of a configuration, for a daemon that runs as `own_uid`.
    pub fn new(config: &Config, own_uid: u32) -> Self {
        let (control_group, admin_group) = (config.control_group.clone(), config.admin_group.clone());
        Self { own_uid, control_group, admin_group }
    }

    /// Whether anyone but root and the user of the daemon has access.
    pub const fn name_groups(&self) -> bool {
        self.control_group.is_some() || self.admin_group.is_some()
    }

    /// Whether the peer is root or the user of the daemon, which have connection limits of their own.
    pub const fn is_own(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own_uid
    }

    /// The access of a peer; `None`: it may send no request.
    pub fn access(&self, peer: &Peer) -> Option<Access> {
        let in_group =
            |group: &Option<Group>| group.as_ref().is_some_and(|group| peer.gids.contains(&group.gid));
        if self.is_own(peer) || in_group(&self.admin_group) {
            Some(Access::Change)
        } else if in_group(&self.control_group) {
            Some(Access::Read)
        } else {
            None
        }
    }

    /// Why a request is refused, and how to get access.
    fn refusal(&self, wanted: Access) -> String {
        let (what, groups) = match wanted {
            Access::Change => {
                ("changes something or reveals secrets", vec![("admin_group", &self.admin_group)])
            }
            Access::Read => (
                "shows the state of this node",
                vec![("control_group", &self.control_group), ("admin_group", &self.admin_group)],
            ),
        };
        let named: Vec<_> = groups
            .iter()
            .filter_map(|(field, group)| Some(format!("`{}` ({field})", group.as_ref()?.name)))
            .collect();
        let hint = match named.as_slice() {
            [] => {
                "run as root, or set `admin_group` in the configuration of the daemon to one of your groups"
                    .to_owned()
            }
            named => format!("join group {}, or run as root", named.join(" or ")),
        };
        format!("not allowed: this request {what}; {hint}")
    }
}

impl Peer {
    /// The peer of a stream.
    ///
    /// # Errors
    /// If the kernel does not report it.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut gids = peer_groups(stream)?;
        gids.push(credentials.gid());
        Ok(Self { uid: credentials.uid(), gids })
    }
}

/// The supplementary groups of the peer (SO_PEERGROUPS, unix(7), Linux 4.13).
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    // Enough for most users; if not, the kernel reports the number.
    let mut groups = vec![0u32; 64];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `len` bytes to `groups`, which has this many, and the length to `len`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let error = io::Error::last_os_error();
        let count = len as usize / size_of::<u32>();
        match result {
            0 => {
                groups.truncate(count);
                return Ok(groups);
            }
            _ if error.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0);
            }
            _ => return Err(error),
        }
    }
}

impl Caller {
    /// A peer under these rules.
    pub fn new(rules: &Arc<Rules>, peer: &Peer) -> Self {
        Self { uid: peer.uid, access: rules.access(peer), rules: Arc::clone(rules) }
    }

    async fn check(&self, wanted: Access, request: Request, next: Next) -> Response {
        if self.access >= Some(wanted) {
            return next.run(request).await;
        }
        // A client that is still sending may not read the answer.
        let _ = to_bytes(request.into_body(), BODY_MAX).await;
        let error = self.rules.refusal(wanted);
        (StatusCode::FORBIDDEN, Json(Failure { error })).into_response()
    }
}

/// The layer around all routes: requires read access.
pub async fn may_read(Extension(caller): Extension<Caller>, request: Request, next: Next) -> Response {
    caller.check(Access::Read, request, next).await
}

/// The layer around routes with change access. Log messages of such a request contain the user of the caller.
pub async fn may_change(Extension(caller): Extension<Caller>, request: Request, next: Next) -> Response {
    // At the highest level, so that the span exists at every log level.
    let span = error_span!("caller", uid = caller.uid);
    caller.check(Access::Change, request, next).instrument(span).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, gid: u32) -> Option<Group> {
        Some(Group { name: name.to_owned(), gid })
    }

    #[test]
    fn groups_decide_for_everybody_but_root_and_the_daemons_user() {
        let closed = Rules { own_uid: 900, control_group: None, admin_group: None };
        let open =
            Rules { control_group: group("readers", 10), admin_group: group("admins", 20), ..closed.clone() };
        for (rules, uid, gids, expected) in [
            (&closed, 0, &[0][..], Some(Access::Change)),
            (&closed, 900, &[900], Some(Access::Change)),
            (&closed, 1000, &[0, 10, 20], None),
            (&open, 1000, &[1000], None),
            (&open, 1000, &[1000, 10], Some(Access::Read)),
            (&open, 1000, &[1000, 20], Some(Access::Change)),
            (&open, 1000, &[20, 10], Some(Access::Change)),
            (&open, 0, &[0], Some(Access::Change)),
        ] {
            let peer = Peer { uid, gids: gids.to_vec() };
            assert_eq!(rules.access(&peer), expected, "{peer:?} {rules:?}");
        }
    }

    #[test]
    fn a_refusal_names_the_group_to_join() {
        let rules =
            Rules { own_uid: 0, control_group: group("readers", 10), admin_group: group("admins", 20) };
        assert!(rules.refusal(Access::Change).contains("`admins` (admin_group)"));
        assert!(!rules.refusal(Access::Change).contains("readers"));
        assert!(rules.refusal(Access::Read).contains("`readers` (control_group) or `admins` (admin_group)"));
        let rules = Rules { admin_group: None, ..rules };
        assert!(rules.refusal(Access::Change).contains("set `admin_group`"));
    }

    #[tokio::test]
    async fn the_kernel_tells_who_connected() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = Peer::of(&here).unwrap();
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert!(peer.gids.contains(&nix::unistd::getegid().as_raw()));
    }
}
