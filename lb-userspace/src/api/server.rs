//! What the two servers answer: requests in JSON on the control socket, metrics and health on TCP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Query, Request, State},
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
    messages::{BODY_MAX, ExportRequest, Failure, RevokeRequest, RotateRequest},
    metrics,
};
use crate::control::{Command, Handle, Readiness, Reply, RequestError};

/// What the control socket answers.
pub fn control(handle: Handle) -> Router {
    Routes::all()
        .router
        .fallback(async || {
            (StatusCode::NOT_FOUND, failure("there is no such request: is it another version?"))
        })
        .method_not_allowed_fallback(async || {
            (
                StatusCode::METHOD_NOT_ALLOWED,
                failure("this request takes another method: GET reads, POST changes"),
            )
        })
        .layer(from_fn(access::may_read))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(handle)
}

/// A route of the control socket, as it is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// GET takes its input from the query, POST from the body, which is JSON.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// What a caller must be allowed to do.
    pub access: Access,
}

/// All routes of the control socket.
pub fn routes() -> Vec<Route> {
    Routes::all().declared
}

/// The routes that are declared so far.
struct Routes {
    router: Router<Handle>,
    declared: Vec<Route>,
}

impl Routes {
    fn all() -> Self {
        let none = Self { router: Router::new(), declared: Vec::new() };
        none.read("/v1/status", |(), reply| Command::Status(reply))
            .read("/v1/counters", |of: OfService, reply| Command::Counters(of.service, reply))
            .read("/v1/backends", |of: OfService, reply| Command::Backends(of.service, reply))
            .read("/v1/keys", |(), reply| Command::Keys(reply))
            .read("/v1/sessions", |of: SomeOfService, reply| Command::Sessions(of.service, of.limit, reply))
            .read("/v1/sessions/revoked", |of: OfService, reply| Command::Revocations(of.service, reply))
            .read("/v1/services", |(), reply| Command::Services(reply))
            .read("/v1/clock", |(), reply| Command::Clock(reply))
            .post("/v1/token/inspect", Access::Read, Command::Inspect)
            .change("/v1/keys/rotate", |of: RotateRequest, reply| Command::Rotate(of.service, reply))
            .change("/v1/keys/revoke", |of: RevokeRequest, reply| Command::Revoke(KeyId(of.key_id), reply))
            .change("/v1/keys/export", |of: ExportRequest, reply| Command::Export(of.service, reply))
            .change("/v1/keys/import", Command::Import)
            .change("/v1/token/mint", Command::Mint)
            .change("/v1/token/revoke", Command::RevokeToken)
            .change("/v1/token/unrevoke", Command::UnrevokeToken)
            .change("/v1/sessions/revoke", Command::RevokeSessions)
            .change("/v1/sessions/unrevoke", Command::UnrevokeSessions)
            .change("/v1/services/revoke-before", Command::RevokeBefore)
            .change("/v1/clock/accept", |(), reply| Command::AcceptClock(reply))
    }

    /// Changes nothing and tells no secrets: also for the `control_group`. The query is the input.
    fn read<I: Input, T: Output>(self, path: &'static str, command: fn(I, Reply<T>) -> Command) -> Self {
        let handler = async move |State(to): State<Handle>, Parameters(input): Parameters<I>| {
            json(to.ask(|reply| command(input, reply)).await)
        };
        self.declare(Method::GET, path, Access::Read, get(handler))
    }

    /// Changes something or tells secrets: for root, the daemon's user and the `admin_group` alone.
    fn change<I: Input, T: Output>(self, path: &'static str, command: fn(I, Reply<T>) -> Command) -> Self {
        self.post(path, Access::Change, command)
    }

    /// The body is the input.
    fn post<I: Input, T: Output>(
        self,
        path: &'static str,
        access: Access,
        command: fn(I, Reply<T>) -> Command,
    ) -> Self {
        let handler = async move |State(to): State<Handle>, Body(input): Body<I>| {
            json(to.ask(|reply| command(input, reply)).await)
        };
        self.declare(Method::POST, path, access, post(handler))
    }

    fn declare(
        mut self,
        method: Method,
        path: &'static str,
        access: Access,
        handler: MethodRouter<Handle>,
    ) -> Self {
        // Whoever may read comes to all routes, by the layer around them.
        let handler = match access {
            Access::Read => handler,
            Access::Nothing | Access::Change => handler.route_layer(from_fn(access::may_change)),
        };
        self.router = self.router.route(path, handler);
        self.declared.push(Route { method, path, access });
        self
    }
}

/// What a request says. Types with fields refuse those that they do not know: a misspelt optional field would ask for
/// something else than was meant. `()` says nothing.
trait Input: DeserializeOwned + Send + 'static {}
impl<I: DeserializeOwned + Send + 'static> Input for I {}

/// What a request is answered with.
trait Output: Serialize + Send + 'static {}
impl<T: Serialize + Send + 'static> Output for T {}

/// The input of a request without a body: its query.
struct Parameters<I>(I);

impl<S: Send + Sync, I: Input> FromRequest<S> for Parameters<I> {
    type Rejection = (StatusCode, Json<Failure>);

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if !request.body().is_end_stream() {
            let error = "this request takes its parameters from the query and has no body";
            return Err((StatusCode::BAD_REQUEST, failure(error)));
        }
        let query = request.uri().query().unwrap_or_default().to_owned();
        match Query::from_request(request, state).await {
            Ok(Query(input)) => Ok(Self(input)),
            Err(rejection) => {
                Err((rejection.status(), failure(format!("{}: `{query}`", rejection.body_text()))))
            }
        }
    }
}

/// The input of a request without a query: its body, which is JSON, or empty where the request says nothing.
struct Body<I>(I);

impl<S: Send + Sync, I: Input> FromRequest<S> for Body<I> {
    type Rejection = (StatusCode, Json<Failure>);

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if let Some(query) = request.uri().query() {
            let error =
                format!("this request takes its parameters from the body and has no query: `{query}`");
            return Err((StatusCode::BAD_REQUEST, failure(error)));
        }
        // Whoever says so beforehand is told before all of it is sent.
        if request.body().size_hint().lower() > BODY_MAX as u64 {
            let error = format!("a request has at most {BODY_MAX} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, failure(error)));
        }
        // An empty body is JSON's `null`, which only `()` is read from.
        if request.body().is_end_stream() {
            return match serde_json::from_value(serde_json::Value::Null) {
                Ok(input) => Ok(Self(input)),
                Err(error) => {
                    Err((StatusCode::UNPROCESSABLE_ENTITY, failure(format!("an empty body: {error}"))))
                }
            };
        }
        match Json::from_request(request, state).await {
            Ok(Json(input)) => Ok(Self(input)),
            Err(rejection) => Err((rejection.status(), failure(rejection.body_text()))),
        }
    }
}

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
        .route("/readyz", get(async move |Query(of): Query<ReadyOf>| ready(&readiness.borrow(), of)))
}

/// One page at a time: a client that asks for many keeps no other request waiting for more than one.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::*;
    use crate::{
        api::access::{Caller, Peer, Rules},
        config::Group,
    };

    const READERS: u32 = 10;
    const ADMINS: u32 = 20;

    /// Sends a request as a member of a group. Whether it came to the loop, and the status and error of its answer.
    async fn ask(gid: u32, method: &Method, uri: &str, body: &str) -> (bool, StatusCode, String) {
        let group = |name: &str, gid| Some(Group { name: name.to_owned(), gid });
        let rules = Rules {
            own_uid: 0,
            control_group: group("readers", READERS),
            admin_group: group("admins", ADMINS),
        };
        let caller = Caller::new(&Arc::new(rules), &Peer { uid: 1000, gids: vec![gid] });
        let (handle, mut commands) = Handle::new();
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .body(axum::body::Body::from(body.to_owned()))
            .unwrap();
        let router = control(handle).layer(axum::Extension(caller));
        let mut answer = std::pin::pin!(router.oneshot(request));
        let (asked, response) = tokio::select! {
            response = &mut answer => (false, response.unwrap()),
            // Without an answer, which is an error of the daemon's.
            Some(command) = commands.recv() => { drop(command); (true, answer.await.unwrap()) }
        };
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), BODY_MAX).await.unwrap();
        let error = serde_json::from_slice::<Failure>(&body).map(|failure| failure.error);
        (asked, status, error.unwrap_or_default())
    }

    /// The smallest input of each route that is understood: query or body.
    fn understood(route: &Route) -> &'static str {
        match route.path {
            "/v1/sessions" => "limit=1",
            "/v1/keys/rotate" => "{}",
            "/v1/keys/revoke" => r#"{"key_id":1}"#,
            "/v1/keys/export" => r#"{"service":"game"}"#,
            "/v1/keys/import" => r#"{"service":"game","service_id":42,"keys":[]}"#,
            "/v1/token/inspect" => r#"{"token":"54"}"#,
            "/v1/token/mint" => {
                r#"{"service":"game","session":"1","type":"bearer","ttl":300,"class":0,"backend":0}"#
            }
            "/v1/token/revoke" | "/v1/token/unrevoke" => r#"{"token":"54"}"#,
            "/v1/sessions/revoke" | "/v1/sessions/unrevoke" => r#"{"service":"game","sessions":[1]}"#,
            "/v1/services/revoke-before" => r#"{"service":"game"}"#,
            _ => "",
        }
    }

    fn request(route: &Route, input: &str) -> (String, String) {
        match route.method {
            Method::GET if input.is_empty() => (route.path.to_owned(), String::new()),
            Method::GET => (format!("{}?{input}", route.path), String::new()),
            _ => (route.path.to_owned(), input.to_owned()),
        }
    }

    #[tokio::test]
    async fn every_route_asks_for_its_access() {
        let routes = routes();
        assert!(routes.len() >= 20, "{} routes", routes.len());
        for route in &routes {
            let (uri, body) = request(route, understood(route));
            for (gid, access) in [(1000, Access::Nothing), (READERS, Access::Read), (ADMINS, Access::Change)]
            {
                let (asked, status, error) = ask(gid, &route.method, &uri, &body).await;
                let expected = match access >= route.access {
                    true => (true, StatusCode::SERVICE_UNAVAILABLE),
                    false => (false, StatusCode::FORBIDDEN),
                };
                assert_eq!((asked, status), expected, "{route:?} with {access:?}: {error}");
            }
        }
    }

    #[test]
    fn what_changes_something_or_tells_secrets_is_declared_so() {
        for Route { method, path, access } in routes() {
            let reads = method == Method::GET || path == "/v1/token/inspect";
            assert_eq!(access == Access::Read, reads, "{path}");
        }
    }

    #[tokio::test]
    async fn no_route_takes_what_it_does_not_know() {
        for route in routes() {
            let known = understood(&route);
            let inputs = match route.method {
                Method::GET => vec![format!("{known}&sevice=game"), "sevice".to_owned()],
                _ => {
                    let fields = known.trim_matches(['{', '}']);
                    let comma = if fields.is_empty() { "" } else { "," };
                    vec![format!(r#"{{{fields}{comma}"sevice":"game"}}"#), "[]".to_owned(), "7".to_owned()]
                }
            };
            for input in inputs {
                let (uri, body) = request(&route, &input);
                let (asked, status, error) = ask(ADMINS, &route.method, &uri, &body).await;
                assert!(!asked && status.is_client_error(), "{route:?} takes {input}");
                assert!(!error.is_empty(), "{route:?} does not say what is wrong with {input}");
            }
        }
    }

    #[tokio::test]
    async fn input_is_taken_from_one_place() {
        for route in routes() {
            let (uri, body) = request(&route, understood(&route));
            let (uri, body) = match route.method {
                Method::GET => (uri, "{}".to_owned()),
                _ => (format!("{uri}?service=game"), body),
            };
            let (asked, status, error) = ask(ADMINS, &route.method, &uri, &body).await;
            assert_eq!((asked, status), (false, StatusCode::BAD_REQUEST), "{route:?}: {error}");
        }
    }

    #[tokio::test]
    async fn an_empty_body_asks_for_nothing_that_has_fields() {
        for route in routes().iter().filter(|route| route.method == Method::POST) {
            let (asked, status, error) = ask(ADMINS, &route.method, route.path, "").await;
            let without_fields = route.path == "/v1/clock/accept";
            assert_eq!(asked, without_fields, "{route:?}: {status} {error}");
        }
    }

    #[tokio::test]
    async fn another_method_is_told_so() {
        for route in routes() {
            let (asked, status, error) = ask(ADMINS, &Method::PUT, route.path, "{}").await;
            assert_eq!((asked, status), (false, StatusCode::METHOD_NOT_ALLOWED), "{route:?}");
            assert!(error.contains("method"), "{error}");
        }
    }
}
