//! Who is at the other end of the control socket, and what they may ask for.
//!
//! The kernel says who connected (SO_PEERCRED, SO_PEERGROUPS), and the daemon decides request by request: root, the
//! daemon's own user and the `admin_group` may ask for everything, the `control_group` for what changes nothing and
//! tells no secrets.

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

/// Whom the daemon lets do what.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The daemon's own user.
    pub own_uid: u32,
    /// Those who may read.
    pub control_group: Option<Group>,
    /// Those who may change.
    pub admin_group: Option<Group>,
}

/// Whoever connected, as the kernel saw them at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user.
    pub uid: u32,
    /// The effective group, and all others.
    pub gids: Vec<u32>,
}

/// A peer's request comes with this.
#[derive(Clone, Debug)]
pub struct Caller {
    uid: u32,
    access: Option<Access>,
    rules: Arc<Rules>,
}

impl Rules {
    /// Those of a configuration, for a daemon that runs as `own_uid`.
    pub fn new(config: &Config, own_uid: u32) -> Self {
        let (control_group, admin_group) = (config.control_group.clone(), config.admin_group.clone());
        Self { own_uid, control_group, admin_group }
    }

    /// Whether others than root and the daemon's user may ask for anything.
    pub const fn name_groups(&self) -> bool {
        self.control_group.is_some() || self.admin_group.is_some()
    }

    /// Whether this is root or the daemon's own user, who are never told to wait for others.
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

    /// Why a request that needs `wanted` is refused, and whom to join.
    fn refusal(&self, wanted: Access) -> String {
        let (what, groups) = match wanted {
            Access::Change => {
                ("changes something or tells secrets", vec![("admin_group", &self.admin_group)])
            }
            Access::Read => (
                "tells how this node does",
                vec![("control_group", &self.control_group), ("admin_group", &self.admin_group)],
            ),
        };
        let named: Vec<_> = groups
            .iter()
            .filter_map(|(field, group)| Some(format!("`{}` ({field})", group.as_ref()?.name)))
            .collect();
        let mend = match named.as_slice() {
            [] => "run as root, or set `admin_group` in the daemon's configuration to a group of yours"
                .to_owned(),
            named => format!("join group {}, or run as root", named.join(" or ")),
        };
        format!("not allowed: this {what}; {mend}")
    }
}

impl Peer {
    /// Whoever connected this stream.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let mut gids = peer_groups(stream)?;
        gids.push(credentials.gid());
        Ok(Self { uid: credentials.uid(), gids })
    }
}

/// unix(7): the supplementary groups (SO_PEERGROUPS, Linux 4.13).
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    // As many as most users have; the kernel says how many there are where they are more.
    let mut groups = vec![0u32; 64];
    loop {
        let mut len = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `len` bytes to `groups`, which has so many, and the length to `len`.
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

    async fn asks(&self, wanted: Access, request: Request, next: Next) -> Response {
        if self.access >= Some(wanted) {
            return next.run(request).await;
        }
        // Whoever is still sending when the answer comes may not see it.
        let _ = to_bytes(request.into_body(), BODY_MAX).await;
        let error = self.rules.refusal(wanted);
        (StatusCode::FORBIDDEN, Json(Failure { error })).into_response()
    }
}

/// The layer around everything.
pub async fn may_read(Extension(caller): Extension<Caller>, request: Request, next: Next) -> Response {
    caller.asks(Access::Read, request, next).await
}

/// The layer around what changes something or tells secrets. All that is logged of it names who asked.
pub async fn may_change(Extension(caller): Extension<Caller>, request: Request, next: Next) -> Response {
    // Of the gravest level, so that it is there whatever is logged.
    let span = error_span!("caller", uid = caller.uid);
    caller.asks(Access::Change, request, next).instrument(span).await
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
