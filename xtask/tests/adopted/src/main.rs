//! A shop: a server that knows nothing of deploys yet.

use axum::{routing::get, Router};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, router()).await
}

fn router() -> Router {
    Router::new()
        .route("/goods", get(|| async { catalog::names() }))
        .route("/version", get(|| async { env!("CARGO_PKG_VERSION") }))
}
