//! The client of the control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, time::timeout};

use crate::protocol::{BODY_MAX, Failure, Request};

/// How long to wait for an answer: the time that the daemon limits a request to.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens.
    #[error(
        "no daemon answers on {}: {source}; is `tollgate run` running? Use another socket with --control",
        path.display()
    )]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// This user has no access.
    #[error(
        "{}: permission denied; run as root, or set `control_group` or `admin_group` in the configuration of the \
         daemon to one of your groups", path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The request is too large.
    #[error(
        "the request has {bytes} bytes, and the daemon takes {BODY_MAX} at most; is this the right file?"
    )]
    TooLarge {
        /// Size of the request.
        bytes: usize,
    },
    /// The connection broke, or the answer is not understood.
    #[error(
        "the daemon on {} gave no answer: {cause}; is it another version, or does this user have too many connections?",
        path.display()
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// The cause.
        cause: String,
    },
    /// The daemon does not answer in time.
    #[error(
        "the daemon on {} has not answered for {} s: {}. The request may still be carried out: check \
         before you repeat it",
        path.display(), PATIENCE.as_secs(), stopped(*pid)
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// Process id of the daemon, if known.
        pid: Option<i32>,
    },
    /// The daemon refused the request.
    #[error("{0}")]
    Refused(String),
}

fn stopped(pid: Option<i32>) -> String {
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    format!(
        "is it stopped (`ps -o stat= {pid}` says T; `kill -CONT {pid}`), or does its disk keep it waiting (D)?"
    )
}

/// A client of a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for this control socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// If no daemon answers, or it refuses.
    pub fn ask<R: Request>(&self, request: &R) -> Result<R::Answer, ClientError> {
        let Encoded { uri, body } = Encoded::new(request).map_err(|error| self.broken(error))?;
        if body.len() > BODY_MAX {
            return Err(ClientError::TooLarge { bytes: body.len() });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (ok, answer) =
            runtime.map_err(|error| self.broken(error))?.block_on(self.send(R::METHOD, &uri, body))?;
        if ok {
            return serde_json::from_slice(&answer).map_err(|error| self.broken(error));
        }
        match serde_json::from_slice::<Failure>(&answer) {
            Ok(failure) => Err(ClientError::Refused(failure.error)),
            Err(_) => Err(self.broken(String::from_utf8_lossy(&answer).trim())),
        }
    }

    async fn send(&self, method: Method, uri: &str, body: Vec<u8>) -> Result<(bool, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: self.socket.clone() },
            _ => ClientError::NoDaemon { path: self.socket.clone(), source },
        })?;
        let pid = stream.peer_cred().ok().and_then(|daemon| daemon.pid());
        let silent = |_| ClientError::Silent { path: self.socket.clone(), pid };
        timeout(PATIENCE, self.exchange(stream, method, uri, body)).await.map_err(silent)?
    }

    async fn exchange(
        &self,
        stream: UnixStream,
        method: Method,
        uri: &str,
        body: Vec<u8>,
    ) -> Result<(bool, Bytes), ClientError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(uri)
            .header(HOST, "tollgate")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.broken(error))?;
        let answer = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let ok = answer.status().is_success();
        let body = answer.into_body().collect().await.map_err(|error| self.broken(error))?;
        Ok((ok, body.to_bytes()))
    }

    fn broken(&self, cause: impl ToString) -> ClientError {
        ClientError::Broken { path: self.socket.clone(), cause: cause.to_string() }
    }
}

/// A request as it is sent: a GET request has its fields in the query, a POST request in the body.
pub(super) struct Encoded {
    pub(super) uri: String,
    pub(super) body: Vec<u8>,
}

impl Encoded {
    pub(super) fn new<R: Request>(request: &R) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        if R::METHOD != Method::GET {
            return Ok(Self { uri: R::PATH.to_owned(), body: serde_json::to_vec(request)? });
        }
        let uri = match serde_urlencoded::to_string(request)?.as_str() {
            "" => R::PATH.to_owned(),
            query => format!("{}?{query}", R::PATH),
        };
        Ok(Self { uri, body: Vec::new() })
    }
}
