//! An axum server with what a deploy has to take care of: slow requests, an event stream,
//! a WebSocket, work in threads, a shutdown hook, and a command of its own.

use std::convert::Infallible;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{ConnectInfo, Path};
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cutover::Client;
use futures_util::stream::{self, Stream, StreamExt};
use tokio::time::sleep;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("greet") => {
            println!("hello from {}", cutover::version());
            ExitCode::SUCCESS
        }
        _ => cutover::serve(router),
    }
}

async fn router() -> Result<Router, &'static str> {
    if std::env::var_os("NO_DATABASE").is_some() {
        return Err("cannot open the database");
    }
    if std::env::var_os("SLOW_START").is_some() {
        tracing::info!("opening the database");
        sleep(Duration::from_secs(60)).await;
    }
    cutover::on_shutdown(async { tracing::info!("the database is closed") });
    cutover::on_shutdown(async {
        sleep(Duration::from_millis(200)).await;
        tracing::info!("the queue is empty");
    });
    Ok(Router::new()
        .route("/", get(async || "hello\n"))
        .route("/healthz", get(async || "fine\n"))
        .route("/slow/{milliseconds}", get(slow))
        .route("/write-later", post(write_later))
        .route("/events", get(events))
        .route("/socket", get(socket))
        .route("/client", get(client)))
}

async fn slow(Path(milliseconds): Path<u64>) -> &'static str {
    sleep(Duration::from_millis(milliseconds)).await;
    "done\n"
}

/// Answers at once, and writes the file that the environment names from a thread.
async fn write_later(body: Bytes) -> &'static str {
    tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_secs(2));
        let file = std::env::var_os("FILE").expect("the test sets it");
        fs::write(file, body).expect("the test's folder is writable");
    });
    "begun\n"
}

async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let first = stream::iter([Ok(Event::default().data("hello"))]);
    Sse::new(first.chain(stream::pending()))
}

async fn socket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(echo)
}

/// Sends each message back, and says goodbye when the process drains.
async fn echo(mut socket: WebSocket) {
    loop {
        tokio::select! {
            message = socket.recv() => {
                let Some(Ok(message)) = message else { return };
                if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
                    return;
                }
            }
            () = cutover::draining() => {
                sleep(Duration::from_secs(1)).await; // it may have something to finish
                let goodbye = CloseFrame { code: close_code::RESTART, reason: "".into() };
                let _ = socket.send(Message::Close(Some(goodbye))).await;
                return;
            }
        }
    }
}

async fn client(
    client: Client,
    ConnectInfo(address): ConnectInfo<std::net::SocketAddr>,
    headers: HeaderMap,
) -> impl IntoResponse {
    let names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(address.ip(), client.ip);
    format!("{} {} {}\n", client.ip, client.scheme, names.join(" "))
}
