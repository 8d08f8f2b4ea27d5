//! The routes of the two servers: requests on the control socket, metrics and health on TCP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, FromRequest, Query, Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::from_fn,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper::body::Body as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::{Mutex, watch};

use super::{access, metrics};
use crate::{
    control::{Answers, Controller, Handle, Readiness, RequestError},
    protocol::{self, Access, BODY_MAX, Failure, for_each_request},
};

/// The routes of the control socket.
pub fn control(handle: Handle) -> Router {
    Routes::all()
        .router
        .fallback(async || {
            (StatusCode::NOT_FOUND, failure("there is no such request; is the daemon another version?"))
        })
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, failure("this request has another method; see docs/api.md"))
        })
        .layer(from_fn(access::may_read))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(handle)
}

/// A route of the control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// GET takes its input from the query, POST from the body, which is JSON.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// The access that a caller needs.
    pub access: Access,
}

/// All routes of the control socket.
pub fn routes() -> Vec<Route> {
    Routes::all().declared
}

/// Routes, made from types of requests.
#[derive(Default)]
struct Routes {
    router: Router<Handle>,
    declared: Vec<Route>,
}

impl Routes {
    /// All types of requests.
    fn all() -> Self {
        macro_rules! with {
            ($($request:ident)*) => { Self::default()$(.with::<protocol::$request>())* };
        }
        for_each_request!(with)
    }

    fn with<R: protocol::Request>(mut self) -> Self
    where
        Controller: Answers<R>,
    {
        let handler = if R::METHOD == Method::GET {
            get(async |State(handle): State<Handle>, Parameters(request): Parameters<R>| {
                json(handle.ask(request).await)
            })
        } else {
            post(async |State(handle): State<Handle>, Body(request): Body<R>| json(handle.ask(request).await))
        };
        // `may_read` is the layer around all routes.
        let handler = match R::ACCESS {
            Access::Read => handler,
            Access::Change => handler.route_layer(from_fn(access::may_change)),
        };
        self.router = self.router.route(R::PATH, handler);
        self.declared.push(Route { method: R::METHOD, path: R::PATH, access: R::ACCESS });
        self
    }
}

/// The fields of a GET request, from its query.
struct Parameters<I>(I);

impl<S: Send + Sync, I: DeserializeOwned> FromRequest<S> for Parameters<I> {
    type Rejection = (StatusCode, Json<Failure>);

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if !request.body().is_end_stream() {
            let error = "this request has its fields in the query and no body";
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

/// The fields of a POST request, from its JSON body; the body is empty if the request has no fields.
struct Body<I>(I);

impl<S: Send + Sync, I: DeserializeOwned> FromRequest<S> for Body<I> {
    type Rejection = (StatusCode, Json<Failure>);

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        if let Some(query) = request.uri().query() {
            let error = format!("this request has its fields in the body and no query: `{query}`");
            return Err((StatusCode::BAD_REQUEST, failure(error)));
        }
        // A client that announces its size is refused before it has sent everything.
        if request.body().size_hint().lower() > BODY_MAX as u64 {
            let error = format!("a request has at most {BODY_MAX} bytes");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, failure(error)));
        }
        // An empty body counts as `null`, which only a request without fields can be read from.
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

/// The routes of the metrics port.
pub fn metrics(handle: Handle, readiness: watch::Receiver<Readiness>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(Arc::new(Mutex::new(handle)))
        // Liveness: the process answers.
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move |Query(of): Query<ReadyOf>| ready(&readiness.borrow(), of)))
}

/// One page at a time, so that a client that requests many delays another request by one page at most.
async fn scrape(State(to): State<Arc<Mutex<Handle>>>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::accepted(accept);
    let to = to.lock().await;
    let page = match to.metrics().await {
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

/// 200 if packets of the service, or of any service, should be sent to this node; or 503 and the reasons.
fn ready(readiness: &Readiness, of: ReadyOf) -> Response {
    let reasons = match &of.service {
        None => readiness.reasons(),
        Some(name) => match readiness.of_service(name) {
            Some(reasons) => reasons,
            None => {
                let there_are = readiness.services().collect::<Vec<_>>().join(", ");
                let error = format!("there is no service {name}; services: {there_are}\n");
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
        api::{
            access::{Caller, Peer, Rules},
            client::Encoded,
        },
        config::Group,
        protocol::{AcceptClock, InspectToken, ListBackends, Request as _, schema},
    };

    const READERS: u32 = 10;
    const ADMINS: u32 = 20;

    /// Sends a request as a member of a group. Returns whether it reached the loop, and the status and error of its
    /// answer.
    async fn ask(gid: u32, method: &Method, uri: &str, body: &str) -> (bool, StatusCode, String) {
        let group = |name: &str, gid| Some(Group { name: name.to_owned(), gid });
        let rules = Rules {
            own_uid: 0,
            control_group: group("readers", READERS),
            admin_group: group("admins", ADMINS),
        };
        let caller = Caller::new(&Arc::new(rules), &Peer { uid: 1000, gids: vec![gid] });
        let (handle, mut requests) = Handle::new();
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
            // The request is dropped without an answer, which is an error of the daemon.
            Some(asked) = requests.recv() => { drop(asked); (true, answer.await.unwrap()) }
        };
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), BODY_MAX).await.unwrap();
        let error = serde_json::from_slice::<Failure>(&body).map(|failure| failure.error);
        (asked, status, error.unwrap_or_default())
    }

    /// A request: its route, and how it is sent.
    struct Sent {
        route: Route,
        uri: String,
        body: String,
    }

    fn smallest<R: protocol::Request>() -> Sent {
        let Encoded { uri, body } = Encoded::new(&schema::smallest::<R>()).unwrap();
        let route = Route { method: R::METHOD, path: R::PATH, access: R::ACCESS };
        Sent { route, uri, body: String::from_utf8(body).unwrap() }
    }

    /// The smallest request of each type, as the client sends it.
    fn requests() -> Vec<Sent> {
        macro_rules! all {
            ($($request:ident)*) => { vec![$(smallest::<protocol::$request>()),*] };
        }
        for_each_request!(all)
    }

    #[test]
    fn fields_of_a_read_are_in_its_query() {
        let Encoded { uri, body } =
            Encoded::new(&ListBackends { service: Some("a b&c".to_owned()) }).unwrap();
        assert_eq!((uri.as_str(), body.as_slice()), ("/v1/backends?service=a+b%26c", &[][..]));
    }

    #[tokio::test]
    async fn every_route_asks_for_its_access() {
        let requests = requests();
        assert!(requests.len() >= 20, "{} routes", requests.len());
        for Sent { route, uri, body } in &requests {
            for (gid, access) in [(1000, None), (READERS, Some(Access::Read)), (ADMINS, Some(Access::Change))]
            {
                let (asked, status, error) = ask(gid, &route.method, uri, body).await;
                let expected = match access >= Some(route.access) {
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
            let reads = method == Method::GET || path == InspectToken::PATH;
            assert_eq!(access == Access::Read, reads, "{path}");
        }
    }

    #[tokio::test]
    async fn no_route_takes_what_it_does_not_know() {
        for Sent { route, uri, body } in requests() {
            let sign = if uri.contains('?') { '&' } else { '?' };
            let inputs = match route.method {
                Method::GET => {
                    vec![
                        (format!("{uri}{sign}sevice=game"), body),
                        (format!("{}?sevice", route.path), String::new()),
                    ]
                }
                _ => {
                    let fields = body.trim_start_matches("null").trim_matches(['{', '}']);
                    let comma = if fields.is_empty() { "" } else { "," };
                    let unknown = format!(r#"{{{fields}{comma}"sevice":"game"}}"#);
                    [unknown, "[]".to_owned(), "7".to_owned()].map(|body| (uri.clone(), body)).into()
                }
            };
            for (uri, body) in inputs {
                let (asked, status, error) = ask(ADMINS, &route.method, &uri, &body).await;
                assert!(!asked && status.is_client_error(), "{route:?} takes {uri} {body}");
                assert!(!error.is_empty(), "{route:?} does not say what is wrong with {uri} {body}");
            }
        }
    }

    #[tokio::test]
    async fn input_is_taken_from_one_place() {
        for Sent { route, uri, body } in requests() {
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
            let without_fields = route.path == AcceptClock::PATH;
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
