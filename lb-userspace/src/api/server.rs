//! The two servers: requests and answers in JSON on the control socket, metrics and health on TCP.

use std::{
    fs::{self, Permissions},
    io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use lb_common::keyslot::KeyId;
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use super::{
    messages::{ExportRequest, Failure, MintRequest, RevokeRequest, RotateRequest},
    metrics,
};
use crate::{
    control::{Command, Handle, RequestError},
    keyring::Keyset,
    token::InspectRequest,
};

/// Why a server cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A daemon answers there.
    #[error("{}: another tollgate answers there; stop it first, or give this one another `control`", path.display())]
    Running {
        /// The socket.
        path: PathBuf,
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

/// Whether it filters; if not, why.
pub type Readiness = watch::Receiver<Result<(), Vec<String>>>;

/// The control socket: for root alone, in the place of one that a dead daemon left.
///
/// # Errors
/// If a daemon answers there, or the socket cannot be made.
pub fn bind_control(path: &Path) -> Result<UnixListener, ServerError> {
    let failed = |source| ServerError::Control { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ServerError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ServerError::Running { path: path.to_owned() });
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Nobody else may connect between bind and chmod.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    nix::sys::stat::umask(before);
    let listener = listener.map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// The metrics port.
///
/// # Errors
/// If it is taken, or not this host's.
pub async fn bind_metrics(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Metrics { address, source })
}

/// What the control socket answers.
pub fn control(handle: Handle) -> Router {
    Router::new()
        .route("/v1/status", get(async |State(to): State<Handle>| json(to.ask(Command::Status).await)))
        .route(
            "/v1/counters",
            get(async |State(to): State<Handle>, Query(of): Query<OfService>| {
                json(to.ask(|reply| Command::Counters(of.service, reply)).await)
            }),
        )
        .route(
            "/v1/backends",
            get(async |State(to): State<Handle>, Query(of): Query<OfService>| {
                json(to.ask(|reply| Command::Backends(of.service, reply)).await)
            }),
        )
        .route("/v1/keys", get(async |State(to): State<Handle>| json(to.ask(Command::Keys).await)))
        .route(
            "/v1/keys/rotate",
            post(async |State(to): State<Handle>, Json(request): Json<RotateRequest>| {
                json(to.ask(|reply| Command::Rotate(request.service, reply)).await)
            }),
        )
        .route(
            "/v1/keys/revoke",
            post(async |State(to): State<Handle>, Json(request): Json<RevokeRequest>| {
                json(to.ask(|reply| Command::Revoke(KeyId(request.key_id), reply)).await)
            }),
        )
        .route(
            "/v1/keys/export",
            post(async |State(to): State<Handle>, Json(request): Json<ExportRequest>| {
                json(to.ask(|reply| Command::Export(request.service, reply)).await)
            }),
        )
        .route(
            "/v1/keys/import",
            post(async |State(to): State<Handle>, Json(keyset): Json<Keyset>| {
                json(to.ask(|reply| Command::Import(keyset, reply)).await)
            }),
        )
        .route(
            "/v1/token/mint",
            post(async |State(to): State<Handle>, Json(request): Json<MintRequest>| {
                json(to.ask(|reply| Command::Mint(request, reply)).await)
            }),
        )
        .route(
            "/v1/token/inspect",
            post(async |State(to): State<Handle>, Json(request): Json<InspectRequest>| {
                json(to.ask(|reply| Command::Inspect(request, reply)).await)
            }),
        )
        .with_state(handle)
}

#[derive(Deserialize)]
struct OfService {
    service: Option<String>,
}

fn json<T: Serialize>(answer: Result<T, RequestError>) -> Response {
    match answer {
        Ok(value) => Json(value).into_response(),
        Err(error) => {
            let status = match error {
                RequestError::NoSuchService { .. } => StatusCode::NOT_FOUND,
                RequestError::Ending => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::UNPROCESSABLE_ENTITY,
            };
            (status, Json(Failure { error: error.to_string() })).into_response()
        }
    }
}

/// What the metrics port answers.
pub fn metrics(handle: Handle, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(handle)
        // The process answers.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move || ready(&readiness)))
}

async fn scrape(State(to): State<Handle>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::accepted(accept);
    let page = match to.ask(Command::Metrics).await {
        Ok(report) => metrics::page(report, format),
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    ([(header::CONTENT_TYPE, format.content_type())], page).into_response()
}

/// It filters, or 503 and the reasons why it does not.
fn ready(readiness: &Readiness) -> Response {
    match &*readiness.borrow() {
        Ok(()) => "ok\n".into_response(),
        Err(reasons) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))).into_response()
        }
    }
}
