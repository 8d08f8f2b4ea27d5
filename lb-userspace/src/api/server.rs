//! What the two servers answer: requests in JSON on the control socket, metrics and health on TCP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Query, Request, State},
    handler::Handler,
    http::{HeaderMap, Method, StatusCode, header},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use hyper::body::Body as _;
use lb_common::keyslot::KeyId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex, watch};

use super::{
    access::{self, Access},
    messages::{
        AcceptClockRequest, BODY_MAX, ExportRequest, Failure, MintRequest, RevokeBeforeRequest,
        RevokeRequest, RevokeSessionsRequest, RevokeTokenRequest, RotateRequest, UnrevokeSessionsRequest,
    },
    metrics,
};
use crate::{
    control::{Command, Handle, Readiness, RequestError},
    keyring::Keyset,
    token::InspectRequest,
};

/// A request that the control socket answers.
pub struct Route {
    /// GET or POST.
    pub method: Method,
    /// The path, without parameters.
    pub path: &'static str,
    /// What its caller must be allowed.
    pub access: Access,
    handler: MethodRouter<Handle>,
}

impl Route {
    /// Changes nothing and tells no secrets: also for the `control_group`. Its parameters are in the query.
    fn read<H: Handler<T, Handle>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::GET, path, access: Access::Read, handler: get(handler) }
    }

    /// The same, with the parameters in a body.
    fn read_of_body<H: Handler<T, Handle>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::POST, path, access: Access::Read, handler: post(handler) }
    }

    /// Changes something or tells secrets: for root, the daemon's user and the `admin_group` alone.
    fn change<H: Handler<T, Handle>, T: 'static>(path: &'static str, handler: H) -> Self {
        Self { method: Method::POST, path, access: Access::Change, handler: post(handler) }
    }
}

/// All that the control socket answers. How a route is declared decides who may ask for it.
pub fn routes() -> Vec<Route> {
    vec![
        Route::read("/v1/status", async |State(to): State<Handle>, _: Parameters<Nothing>| {
            json(to.ask(Command::Status).await)
        }),
        Route::read(
            "/v1/counters",
            async |State(to): State<Handle>, Parameters(of): Parameters<OfService>| {
                json(to.ask(|reply| Command::Counters(of.service, reply)).await)
            },
        ),
        Route::read(
            "/v1/backends",
            async |State(to): State<Handle>, Parameters(of): Parameters<OfService>| {
                json(to.ask(|reply| Command::Backends(of.service, reply)).await)
            },
        ),
        Route::read("/v1/keys", async |State(to): State<Handle>, _: Parameters<Nothing>| {
            json(to.ask(Command::Keys).await)
        }),
        Route::read(
            "/v1/sessions",
            async |State(to): State<Handle>, Parameters(of): Parameters<SomeOfService>| {
                json(to.ask(|reply| Command::Sessions(of.service, of.limit, reply)).await)
            },
        ),
        Route::read(
            "/v1/sessions/revoked",
            async |State(to): State<Handle>, Parameters(of): Parameters<OfService>| {
                json(to.ask(|reply| Command::Revocations(of.service, reply)).await)
            },
        ),
        Route::read("/v1/services", async |State(to): State<Handle>, _: Parameters<Nothing>| {
            json(to.ask(Command::Services).await)
        }),
        Route::read("/v1/clock", async |State(to): State<Handle>, _: Parameters<Nothing>| {
            json(to.ask(Command::Clock).await)
        }),
        Route::read_of_body(
            "/v1/token/inspect",
            async |State(to): State<Handle>, Body(request): Body<InspectRequest>| {
                json(to.ask(|reply| Command::Inspect(request, reply)).await)
            },
        ),
        Route::change(
            "/v1/keys/rotate",
            async |State(to): State<Handle>, Body(request): Body<RotateRequest>| {
                json(to.ask(|reply| Command::Rotate(request.service, reply)).await)
            },
        ),
        Route::change(
            "/v1/keys/revoke",
            async |State(to): State<Handle>, Body(request): Body<RevokeRequest>| {
                json(to.ask(|reply| Command::Revoke(KeyId(request.key_id), reply)).await)
            },
        ),
        Route::change(
            "/v1/keys/export",
            async |State(to): State<Handle>, Body(request): Body<ExportRequest>| {
                json(to.ask(|reply| Command::Export(request.service, reply)).await)
            },
        ),
        Route::change("/v1/keys/import", async |State(to): State<Handle>, Body(keyset): Body<Keyset>| {
            json(to.ask(|reply| Command::Import(keyset, reply)).await)
        }),
        Route::change(
            "/v1/token/mint",
            async |State(to): State<Handle>, Body(request): Body<MintRequest>| {
                json(to.ask(|reply| Command::Mint(request, reply)).await)
            },
        ),
        Route::change(
            "/v1/token/revoke",
            async |State(to): State<Handle>, Body(request): Body<RevokeTokenRequest>| {
                json(to.ask(|reply| Command::RevokeToken(request, reply)).await)
            },
        ),
        Route::change(
            "/v1/token/unrevoke",
            async |State(to): State<Handle>, Body(request): Body<RevokeTokenRequest>| {
                json(to.ask(|reply| Command::UnrevokeToken(request, reply)).await)
            },
        ),
        Route::change(
            "/v1/sessions/revoke",
            async |State(to): State<Handle>, Body(request): Body<RevokeSessionsRequest>| {
                json(to.ask(|reply| Command::RevokeSessions(request, reply)).await)
            },
        ),
        Route::change(
            "/v1/sessions/unrevoke",
            async |State(to): State<Handle>, Body(request): Body<UnrevokeSessionsRequest>| {
                json(to.ask(|reply| Command::UnrevokeSessions(request, reply)).await)
            },
        ),
        Route::change(
            "/v1/services/revoke-before",
            async |State(to): State<Handle>, Body(request): Body<RevokeBeforeRequest>| {
                json(to.ask(|reply| Command::RevokeBefore(request, reply)).await)
            },
        ),
        Route::change("/v1/clock/accept", async |State(to): State<Handle>, _: Body<AcceptClockRequest>| {
            json(to.ask(Command::AcceptClock).await)
        }),
    ]
}

/// The control socket's answers to [`routes`], and to what is none of them.
pub fn control(handle: Handle) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, route| {
        let handler = match route.access {
            Access::Change => route.handler.route_layer(from_fn(access::may_change)),
            Access::Read | Access::Nothing => route.handler,
        };
        router.route(route.path, handler)
    });
    router
        .fallback(async || {
            (StatusCode::NOT_FOUND, failure("there is no such request: is it another version?"))
        })
        .method_not_allowed_fallback(async |method: Method| {
            let error = format!("this request is not made with {method}: is it another version?");
            (StatusCode::METHOD_NOT_ALLOWED, failure(error))
        })
        .layer(from_fn(access::may_read))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(handle)
}

type Rejection = (StatusCode, Json<Failure>);

/// A request's JSON; what is none, or has fields that the request does not have, is refused in JSON, too.
struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, state: &S) -> Result<Self, Rejection> {
        // Whoever says so beforehand is told before all of it is sent.
        if request.body().size_hint().lower() > BODY_MAX as u64 {
            let error = format!("a request has at most {BODY_MAX} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, failure(error)));
        }
        if let Some(query) = request.uri().query() {
            let error = format!("this request takes no parameters in its path, and has `{query}`");
            return Err((StatusCode::BAD_REQUEST, failure(error)));
        }
        match Json::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err((rejection.status(), failure(rejection.body_text()))),
        }
    }
}

/// A request's query; parameters that the request does not have are refused in JSON, and so is a body.
struct Parameters<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Parameters<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, _: &S) -> Result<Self, Rejection> {
        // Also one whose length is not said beforehand.
        if !request.body().is_end_stream() {
            return Err((StatusCode::BAD_REQUEST, failure("this request takes no body")));
        }
        match Query::try_from_uri(request.uri()) {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err((rejection.status(), failure(rejection.body_text()))),
        }
    }
}

/// No parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfService {
    service: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
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
        .with_state(Arc::new(Mutex::new(handle)))
        // The process answers.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move || ready(&readiness)))
}

/// One page at a time, so that whoever asks for many keeps no other request waiting for more than one.
async fn scrape(State(to): State<Arc<Mutex<Handle>>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::accepted(accept);
    let to = to.lock().await;
    let page = match to.ask(Command::Metrics).await {
        Ok(report) => metrics::page(report, format),
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    };
    ([(header::CONTENT_TYPE, format.content_type())], page).into_response()
}

/// It filters, or 503 and the reasons why it does not.
fn ready(readiness: &watch::Receiver<Readiness>) -> Response {
    match readiness.borrow().reasons().as_slice() {
        [] => "ok\n".into_response(),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reasons.join("\n"))).into_response(),
    }
}
