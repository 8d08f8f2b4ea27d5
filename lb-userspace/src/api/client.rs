//! Asks a running daemon over its control socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request,
    body::Bytes,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::messages::{BODY_MAX, Failure};

/// How long an answer is waited for: as long as the daemon gives itself for one.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers on {}: {source}; is `tollgate run` running? Name another socket with --control", path.display())]
    NoDaemon {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// This user may not ask.
    #[error(
        "{}: permission denied; run as root, or let the daemon's configuration name a group of yours as \
         `control_group` or `admin_group`", path.display()
    )]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon would not take it.
    #[error(
        "the request has {bytes} bytes, and the daemon takes {BODY_MAX} at most; is this the right file?"
    )]
    TooLarge {
        /// Of the request.
        bytes: usize,
    },
    /// The daemon went away, or is none.
    #[error(
        "the daemon on {} gave no answer: {cause}; is it another version, or do you have many requests under way?",
        path.display()
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        cause: String,
    },
    /// The daemon is there, and does nothing.
    #[error(
        "the daemon on {} has not answered for {} s: {}. What was asked for may still be done: look before you ask again",
        path.display(), PATIENCE.as_secs(), stopped(*pid)
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// The daemon's process, if the system tells.
        pid: Option<i32>,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
}

fn stopped(pid: Option<i32>) -> String {
    let pid = pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string());
    format!(
        "is it stopped (`ps -o stat= {pid}` says T; `kill -CONT {pid}`), or does its disk keep it waiting (D)?"
    )
}

/// The way to a daemon.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// By its control socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Asks for what `path` names.
    ///
    /// # Errors
    /// If no daemon answers, or it refuses.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Vec::new())
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If no daemon answers, or it refuses.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.broken(error))?;
        if body.len() > BODY_MAX {
            return Err(ClientError::TooLarge { bytes: body.len() });
        }
        self.request(Method::POST, path, body)
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (good, answer) =
            runtime.map_err(|error| self.broken(error))?.block_on(self.send(method, path, body))?;
        if good {
            return serde_json::from_slice(&answer).map_err(|error| self.broken(error));
        }
        match serde_json::from_slice::<Failure>(&answer) {
            Ok(failure) => Err(ClientError::Refused(failure.error)),
            Err(_) => Err(self.broken(String::from_utf8_lossy(&answer).trim())),
        }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(bool, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { path: self.socket.clone() },
            _ => ClientError::NoDaemon { path: self.socket.clone(), source },
        })?;
        let pid = stream.peer_cred().ok().and_then(|daemon| daemon.pid());
        let silent = |_| ClientError::Silent { path: self.socket.clone(), pid };
        timeout(PATIENCE, self.ask(stream, method, path, body)).await.map_err(silent)?
    }

    async fn ask(
        &self,
        stream: UnixStream,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(bool, Bytes), ClientError> {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(error))?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "tollgate")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.broken(error))?;
        let answer = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let good = answer.status().is_success();
        let body = answer.into_body().collect().await.map_err(|error| self.broken(error))?;
        Ok((good, body.to_bytes()))
    }

    fn broken(&self, cause: impl ToString) -> ClientError {
        ClientError::Broken { path: self.socket.clone(), cause: cause.to_string() }
    }
}
