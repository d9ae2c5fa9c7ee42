//! Whether the app is well, and which version it is.

use axum::Json;
use axum::http::HeaderName;
use axum::http::header::CACHE_CONTROL;
use axum::response::IntoResponse;
use serde_json::{Value, json};

const NO_STORE: [(HeaderName, &str); 1] = [(CACHE_CONTROL, "no-store")];

/// A version that does not answer with 200 does not go live. Later, systemd and Kubernetes
/// restart an app that stops doing so. Check here what a new version must not lack, and what
/// a restart can repair.
pub async fn healthz() -> impl IntoResponse {
    (NO_STORE, "ok\n")
}

pub async fn version() -> impl IntoResponse {
    (NO_STORE, Json(this_process()))
}

/// `instance` is null if the app was not deployed, as under `cargo run`.
pub fn this_process() -> Value {
    json!({
        "version": cutover::version(),
        "instance": cutover::instance(),
        "pid": std::process::id(),
    })
}
