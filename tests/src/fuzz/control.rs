//! Requests on the control socket: they are understood and handed to the loop, or refused without it.

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
    control::{Command, Handle},
    token,
};
use tower::ServiceExt as _;

/// A request: the method, a space and the path, then, after a line's end, the body. From root, and from somebody who may
/// ask for nothing.
pub fn check(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    if let Some(request) = request(bytes) {
        match runtime.block_on(answer(request, 0)) {
            // Nobody answers for the loop.
            (true, status) => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
            (false, status) => assert!(status.is_client_error(), "{status}"),
        }
    }
    if let Some(request) = request(bytes) {
        assert_eq!(runtime.block_on(answer(request, 1000)), (false, StatusCode::FORBIDDEN));
    }
}

/// Whether a user's request came to the loop, and its answer.
async fn answer(request: Request<Body>, uid: u32) -> (bool, StatusCode) {
    let rules = Arc::new(Rules { own_uid: 0, control_group: None, admin_group: None });
    let caller = Caller::new(&rules, &Peer { uid, gids: Vec::new() });
    let (handle, mut commands) = Handle::new();
    let router = server::control(handle).layer(Extension(caller));
    let mut answer = std::pin::pin!(router.oneshot(request));
    tokio::select! {
        response = &mut answer => (false, response.expect("a router always answers").status()),
        Some(asked) = commands.recv() => {
            look_at(asked.command);
            (true, answer.await.expect("a router always answers").status())
        }
    }
}

fn request(bytes: &[u8]) -> Option<Request<Body>> {
    let (line, body) = bytes.split_at_checked(bytes.iter().position(|byte| *byte == b'\n')? + 1)?;
    let (method, path) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).ok()?)
        .uri(path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body.to_vec()))
        .ok()
}

/// Whatever came in goes out as the same, and a token is looked into whatever it says.
fn look_at(command: Command) {
    match command {
        Command::Import(keyset, _) => again(&keyset),
        Command::Mint(request, _) => again(&request),
        Command::RevokeSessions(request, _) => again(&request),
        Command::UnrevokeSessions(request, _) => again(&request),
        Command::RevokeToken(request, _) | Command::UnrevokeToken(request, _) => again(&request),
        Command::RevokeBefore(request, _) => again(&request),
        Command::Inspect(request, _) => {
            again(&request);
            if let Ok(inspection) = token::inspect(&request, None, &[], None, 1_700_000_010) {
                again(&inspection);
            }
        }
        _ => {}
    }
}

fn again<T: Serialize + DeserializeOwned + PartialEq>(value: &T) {
    let text = serde_json::to_string(value).expect("a message can be written");
    let read: T = serde_json::from_str(&text).expect("what was written is read");
    assert!(read == *value, "and it is what was written");
}
