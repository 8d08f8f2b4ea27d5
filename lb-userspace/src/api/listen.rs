//! The control socket and the metrics port, bound before anything is served and while the daemon may still bind them.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// Why a server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A daemon answers there.
    #[error("{} is in use by process {pid}, a running tollgate; stop that one first, or give this one another `control`",
            path.display())]
    Running {
        /// The socket.
        path: PathBuf,
        /// The daemon's process.
        pid: i32,
    },
    /// Something else is in its place.
    #[error("{}: this is not a socket; move it away, or set another `control`", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The control socket.
    #[error("control socket {}: {source}; check that its directory can be written", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metrics port.
    #[error("metrics on {address}: {source}; set `metrics` to a free address, or to \"\" for none")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// The control socket, in the place of one that a dead daemon left. For the user that binds it alone, or for everybody to
/// connect to, where the daemon decides who is answered.
///
/// # Errors
/// If a daemon answers there, or the socket cannot be made.
pub fn control(path: &Path, for_everybody: bool) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Control { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {
            if let Ok(stream) = UnixStream::connect(path) {
                return Err(ServerError::Running { path: path.to_owned(), pid: process_of(&stream) });
            }
            fs::remove_file(path).map_err(failed)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Nobody else may connect between bind and chmod.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.map_err(failed)?;
    let mode = if for_everybody { 0o666 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The process that listens at the other end.
fn process_of(stream: &UnixStream) -> i32 {
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
        .map_or(0, |credentials| credentials.pid())
}

/// The metrics port.
///
/// # Errors
/// If it is taken, or not this host's.
pub fn metrics(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let failed = |source| ServerError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
