//! Which path is answered by which handler. Add yours here.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;

use crate::{events, health, pages, tasks};

/// The state that handlers share. Put a database's pool here.
#[derive(Clone, Default)]
pub struct App {
    pub pages_sent: Arc<AtomicU64>,
}

/// Runs before the first client is accepted, so this is the place to open a database. It may
/// return a `Result`: an error ends the process, and the old version goes on serving.
pub async fn router() -> Router {
    let app = App::default();
    tasks::start(app.clone());
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/version", get(health::version))
        .route("/events", get(events::events))
        .fallback(get(pages::page))
        .layer(map_response(security_headers))
        .with_state(app)
}

async fn security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'self'; base-uri 'none'; frame-ancestors 'self'"),
    );
    response
}
