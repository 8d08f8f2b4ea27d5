//! What the two servers answer: requests in JSON on the control socket, metrics and health on TCP.

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::body::Body as _;
use lb_common::keyslot::KeyId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    access,
    messages::{
        BODY_MAX, ExportRequest, Failure, MintRequest, RevokeBeforeRequest, RevokeRequest,
        RevokeSessionsRequest, RevokeTokenRequest, RotateRequest, UnrevokeSessionsRequest,
    },
    metrics,
};
use crate::{
    control::{Command, Handle, Readiness, RequestError},
    keyring::Keyset,
    token::InspectRequest,
};

/// What the control socket answers. Each route is declared in one of two places, which decides who may ask for it.
pub fn control(handle: Handle) -> Router {
    let changes = changes().route_layer(from_fn(access::may_change));
    reads()
        .merge(changes)
        .fallback(async || {
            (StatusCode::NOT_FOUND, failure("there is no such request: is it another version?"))
        })
        .layer(from_fn(access::may_read))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(handle)
}

/// What changes nothing and tells no secrets: also for the `control_group`.
fn reads() -> Router<Handle> {
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
            "/v1/token/inspect",
            post(async |State(to): State<Handle>, Body(request): Body<InspectRequest>| {
                json(to.ask(|reply| Command::Inspect(request, reply)).await)
            }),
        )
        .route(
            "/v1/sessions",
            get(async |State(to): State<Handle>, Query(of): Query<SomeOfService>| {
                json(to.ask(|reply| Command::Sessions(of.service, of.limit, reply)).await)
            }),
        )
        .route(
            "/v1/sessions/revoked",
            get(async |State(to): State<Handle>, Query(of): Query<OfService>| {
                json(to.ask(|reply| Command::Revocations(of.service, reply)).await)
            }),
        )
        .route("/v1/services", get(async |State(to): State<Handle>| json(to.ask(Command::Services).await)))
        .route("/v1/clock", get(async |State(to): State<Handle>| json(to.ask(Command::Clock).await)))
}

/// What changes something or tells secrets: for root, the daemon's user and the `admin_group` alone.
fn changes() -> Router<Handle> {
    Router::new()
        .route(
            "/v1/keys/rotate",
            post(async |State(to): State<Handle>, Body(request): Body<RotateRequest>| {
                json(to.ask(|reply| Command::Rotate(request.service, reply)).await)
            }),
        )
        .route(
            "/v1/keys/revoke",
            post(async |State(to): State<Handle>, Body(request): Body<RevokeRequest>| {
                json(to.ask(|reply| Command::Revoke(KeyId(request.key_id), reply)).await)
            }),
        )
        .route(
            "/v1/keys/export",
            post(async |State(to): State<Handle>, Body(request): Body<ExportRequest>| {
                json(to.ask(|reply| Command::Export(request.service, reply)).await)
            }),
        )
        .route(
            "/v1/keys/import",
            post(async |State(to): State<Handle>, Body(keyset): Body<Keyset>| {
                json(to.ask(|reply| Command::Import(keyset, reply)).await)
            }),
        )
        .route(
            "/v1/token/mint",
            post(async |State(to): State<Handle>, Body(request): Body<MintRequest>| {
                json(to.ask(|reply| Command::Mint(request, reply)).await)
            }),
        )
        .route(
            "/v1/token/revoke",
            post(async |State(to): State<Handle>, Body(request): Body<RevokeTokenRequest>| {
                json(to.ask(|reply| Command::RevokeToken(request, reply)).await)
            }),
        )
        .route(
            "/v1/token/unrevoke",
            post(async |State(to): State<Handle>, Body(request): Body<RevokeTokenRequest>| {
                json(to.ask(|reply| Command::UnrevokeToken(request, reply)).await)
            }),
        )
        .route(
            "/v1/sessions/revoke",
            post(async |State(to): State<Handle>, Body(request): Body<RevokeSessionsRequest>| {
                json(to.ask(|reply| Command::RevokeSessions(request, reply)).await)
            }),
        )
        .route(
            "/v1/sessions/unrevoke",
            post(async |State(to): State<Handle>, Body(request): Body<UnrevokeSessionsRequest>| {
                json(to.ask(|reply| Command::UnrevokeSessions(request, reply)).await)
            }),
        )
        .route(
            "/v1/services/revoke-before",
            post(async |State(to): State<Handle>, Body(request): Body<RevokeBeforeRequest>| {
                json(to.ask(|reply| Command::RevokeBefore(request, reply)).await)
            }),
        )
        .route(
            "/v1/clock/accept",
            post(async |State(to): State<Handle>| json(to.ask(Command::AcceptClock).await)),
        )
}

/// A request's JSON; what is none is refused in JSON, too.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = (StatusCode, Json<Failure>);

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        // Whoever says so beforehand is told before all of it is sent.
        if request.body().size_hint().lower() > BODY_MAX as u64 {
            let error = format!("a request has at most {BODY_MAX} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, failure(error)));
        }
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err((rejection.status(), failure(rejection.body_text()))),
        }
    }
}

#[derive(Deserialize)]
struct OfService {
    service: Option<String>,
}

#[derive(Deserialize)]
struct SomeOfService {
    service: Option<String>,
    limit: usize,
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
            (status, failure(error.to_string())).into_response()
        }
    }
}

fn failure(error: impl Into<String>) -> Json<Failure> {
    Json(Failure { error: error.into() })
}

/// What the metrics port answers.
pub fn metrics(handle: Handle, readiness: watch::Receiver<Readiness>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(handle)
        // The process answers.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move |Query(of): Query<ReadyOf>| ready(&readiness.borrow(), of)))
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyOf {
    service: Option<String>,
}

/// 200 if packets are to be sent here, of one service or of any; or 503 and the reasons why not.
fn ready(readiness: &Readiness, of: ReadyOf) -> Response {
    let reasons = match &of.service {
        None => readiness.reasons(),
        Some(name) => match readiness.of_service(name) {
            Some(reasons) => reasons,
            None => {
                let there_are = readiness.services().collect::<Vec<_>>().join(", ");
                let error = format!("there is no service {name}; there are: {there_are}\n");
                return (StatusCode::NOT_FOUND, error).into_response();
            }
        },
    };
    match reasons.as_slice() {
        [] => "ok\n".into_response(),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))).into_response(),
    }
}
