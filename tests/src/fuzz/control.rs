//! Requests on the control socket: each is parsed and passed to the control loop, or refused without reaching it.

use std::sync::Arc;

use axum::{
    Extension,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use serde::{Serialize, de::DeserializeOwned};
use tollgate::{
    api::{
        access::{Caller, Peer, Rules},
        server,
    },
    control::Handle,
    protocol::{
        self, ImportKeys, InspectToken, MintToken, RevokeBefore, RevokeSessions, RevokeToken,
        UnrevokeSessions, UnrevokeToken,
    },
    token,
};
use tower::ServiceExt as _;

/// A request: the method, a space and the path; then, after a line feed, the body. It is sent by root, and by a user
/// without access.
pub fn check(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    if let Some(request) = request(bytes) {
        let (path, body) = (request.uri().path().to_owned(), request.body().clone());
        match runtime.block_on(answer(request.map(Body::from), 0)) {
            // The control loop is not there to answer.
            (true, status) => {
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
                look_at(&path, &body);
            }
            (false, status) => assert!(status.is_client_error(), "{status}"),
        }
    }
    if let Some(request) = request(bytes) {
        assert_eq!(runtime.block_on(answer(request.map(Body::from), 1000)), (false, StatusCode::FORBIDDEN));
    }
}

/// Sends a request as a user. Returns whether it reached the loop, and its status.
async fn answer(request: Request<Body>, uid: u32) -> (bool, StatusCode) {
    let rules = Arc::new(Rules { own_uid: 0, control_group: None, admin_group: None });
    let caller = Caller::new(&rules, &Peer { uid, gids: Vec::new() });
    let (handle, mut requests) = Handle::new();
    let router = server::control(handle).layer(Extension(caller));
    let mut answer = std::pin::pin!(router.oneshot(request));
    tokio::select! {
        response = &mut answer => (false, response.expect("a router always answers").status()),
        Some(asked) = requests.recv() => {
            drop(asked);
            (true, answer.await.expect("a router always answers").status())
        }
    }
}

fn request(bytes: &[u8]) -> Option<Request<Vec<u8>>> {
    let (line, body) = bytes.split_at_checked(bytes.iter().position(|byte| *byte == b'\n')? + 1)?;
    let (method, path) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).ok()?)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_vec())
        .ok()
}

/// The parsed value is written and read back unchanged, and `token inspect` accepts any token.
fn look_at(path: &str, body: &[u8]) {
    again::<ImportKeys>(path, body);
    again::<MintToken>(path, body);
    again::<RevokeSessions>(path, body);
    again::<UnrevokeSessions>(path, body);
    again::<RevokeToken>(path, body);
    again::<UnrevokeToken>(path, body);
    again::<RevokeBefore>(path, body);
    if let Some(request) = again::<InspectToken>(path, body)
        && let Ok(inspection) = token::inspect(&request, None, &[], None, 1_700_000_010)
    {
        written_as_read(&inspection);
    }
}

/// The body parsed as this type of request, if the path is the path of the type.
fn again<R: protocol::Request + PartialEq>(path: &str, body: &[u8]) -> Option<R> {
    let request = (path == R::PATH).then(|| serde_json::from_slice(body).expect("it was understood"));
    request.inspect(written_as_read)
}

fn written_as_read<T: Serialize + DeserializeOwned + PartialEq>(value: &T) {
    let text = serde_json::to_string(value).expect("a message can be written");
    let read: T = serde_json::from_str(&text).expect("what was written is read");
    assert!(read == *value, "and it is what was written");
}
