//! The files of `app/pages/`. What is deployed has them inside the binary; under `cargo run`
//! the app reads them from the disk, so that a reload shows an edit.

use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rust_embed::{Embed, EmbeddedFile};

use crate::routes::App;

#[derive(Embed)]
#[folder = "pages/"]
struct Pages;

pub async fn page(State(app): State<App>, uri: Uri, headers: HeaderMap) -> Response {
    let path = match uri.path().trim_start_matches('/') {
        "" => "index.html",
        path => path,
    };
    let Some(file) = Pages::get(path) else {
        return (StatusCode::NOT_FOUND, "404: there is no such page\n").into_response();
    };

    let etag = etag(&file);
    // A browser keeps it, but asks each time whether it has changed, so that after a switch no
    // page meets an old style from the cache.
    let caching = [
        (ETAG, etag.clone()),
        (CACHE_CONTROL, "no-cache".to_string()),
    ];
    if is_known(&headers, &etag) {
        return (StatusCode::NOT_MODIFIED, caching).into_response();
    }
    app.pages_sent.fetch_add(1, Ordering::Relaxed);
    let content_type = [(CONTENT_TYPE, content_type(&file))];
    (caching, content_type, file.data).into_response()
}

fn content_type(file: &EmbeddedFile) -> String {
    let mime = file.metadata.mimetype();
    let charset = if mime.starts_with("text/") {
        "; charset=utf-8"
    } else {
        ""
    };
    format!("{mime}{charset}")
}

fn etag(file: &EmbeddedFile) -> String {
    let hash = &file.metadata.sha256_hash()[..16];
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{hex}\"")
}

/// If-None-Match holds `*` or a list, and compares weakly (RFC 9110, 13.1.2).
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == etag)
}
