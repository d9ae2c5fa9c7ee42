//! What is answered where. Yours go here.

use axum::Router;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::drain::{Phase, WatchPhase};
use crate::identity::Identity;
use crate::{events, pages};

#[derive(Clone)]
pub struct App {
    pub identity: Identity,
    pub phase: WatchPhase,
}

pub fn router(identity: Identity, phase: WatchPhase) -> Router {
    let app = App { identity, phase };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/version", get(version))
        .route("/events", get(events::events))
        .fallback(get(pages::page))
        .layer(map_response_with_state(app.clone(), common_headers))
        .with_state(app)
}

async fn healthz(State(app): State<App>) -> impl IntoResponse {
    (
        [(CACHE_CONTROL, "no-store")],
        format!("ok {}\n", app.identity.instance),
    )
}

async fn version(State(app): State<App>) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, app.identity.to_json())
}

async fn common_headers(State(app): State<App>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert("x-version", HeaderValue::from_static(app.identity.version));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'self'; base-uri 'none'; frame-ancestors 'self'"),
    );
    // A client that hears this opens its next connection to the next instance.
    if app.phase.has_reached(Phase::Draining) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
