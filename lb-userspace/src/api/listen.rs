//! Binds the control socket and the metrics port, while the daemon still has the privileges for it.

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

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A running daemon has the socket.
    #[error(
        "{} is in use by process {pid}, a running tollgate; stop that one first, or give this one another \
         `control`",
        path.display()
    )]
    Running {
        /// The socket.
        path: PathBuf,
        /// The daemon's process.
        pid: i32,
    },
    /// The path is not a socket.
    #[error("{}: not a socket; move it away, or set another `control`", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The control socket cannot be bound.
    #[error("control socket {}: {source}; check that its directory can be written", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The metrics port cannot be bound.
    #[error("metrics on {address}: {source}; set `metrics` to a free address, or to \"\" for none")]
    Metrics {
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

/// Binds the control socket; replaces the file of a daemon that has ended. If `for_everybody` is set, every user can
/// connect and the daemon checks their access; otherwise only the user that binds the socket can connect.
///
/// # Errors
/// If a daemon is listening on it, or the socket cannot be created.
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
    // No other user may connect between bind and chmod.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.map_err(failed)?;
    let mode = if for_everybody { 0o666 } else { 0o600 };
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The process that listens on a socket.
fn process_of(stream: &UnixStream) -> i32 {
    nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)
        .map_or(0, |credentials| credentials.pid())
}

/// Binds the metrics port.
///
/// # Errors
/// If the port is in use, or the address is not an address of this host.
pub fn metrics(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let failed = |source| ServerError::Metrics { address, source };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}
