//! The app that the tests of https and of state deploy: notes in SQLite, behind a secret.

use std::{
    convert::Infallible,
    env, io,
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{
        State,
        ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code},
    },
    http::{HeaderMap, StatusCode},
    response::sse::{Event, Sse},
    routing::{get, post},
};
use cutover::Client;
use futures_util::stream::{self, Stream};
use rusqlite::Connection;

/// Longer than two versions hold the lock for, also while one of them starts.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

type Database = Arc<Mutex<Connection>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("count") => finish(open().and_then(|database| count(&database))),
        Some("say") => {
            println!("{}", arguments[1..].join("|"));
            eprintln!("an error");
            ExitCode::from(7)
        }
        Some("copy") => {
            io::copy(&mut io::stdin(), &mut io::stdout()).expect("both are open");
            ExitCode::SUCCESS
        }
        Some("sleep") => {
            println!("sleeping");
            std::thread::sleep(Duration::from_secs(600));
            ExitCode::SUCCESS
        }
        _ => cutover::serve(router),
    }
}

fn finish(count: rusqlite::Result<i64>) -> ExitCode {
    match count {
        Ok(count) => {
            println!("{count}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn router() -> Result<Router, String> {
    let secret = env::var("SECRET").map_err(|error| format!("SECRET: {error}"))?;
    let database = open().map_err(|error| format!("the database: {error}"))?;
    Ok(Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/version", get(async || "ok\n"))
        .route("/echo", post(async |body: String| body))
        .route("/slow", post(slow))
        .route("/secret", get(async move || secret))
        .route("/client", get(client))
        .route("/events", get(events))
        .route(
            "/socket",
            get(async |upgrade: WebSocketUpgrade| upgrade.on_upgrade(socket)),
        )
        .route("/notes", get(list).post(add))
        .with_state(Arc::new(Mutex::new(database))))
}

/// WAL lets two versions read and write at once; the timeout lets one wait for the other.
fn open() -> rusqlite::Result<Connection> {
    let folder = env::var("STATE_DIRECTORY").unwrap_or_default();
    let database = Connection::open(Path::new(&folder).join("notes.sqlite"))?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.pragma_update(None, "synchronous", "normal")?;
    migrate(&database)?;
    Ok(database)
}

/// Only adds, so that the version before can go on with what it finds.
fn migrate(database: &Connection) -> rusqlite::Result<()> {
    database.execute_batch(
        "begin immediate;
         create table if not exists notes (text text not null);
         commit;",
    )
}

async fn list(State(database): State<Database>) -> Result<String, (StatusCode, String)> {
    let database = database.lock().expect("not poisoned");
    let read = || -> rusqlite::Result<Vec<String>> {
        let mut query = database.prepare("select text from notes")?;
        query.query_map([], |row| row.get(0))?.collect()
    };
    read().map(|notes| notes.join("\n")).map_err(internal)
}

async fn add(
    State(database): State<Database>,
    note: String,
) -> Result<String, (StatusCode, String)> {
    let write = move || {
        let database = database.lock().expect("not poisoned");
        database
            .execute("insert into notes values (?1)", [&note])
            .map(|_| note)
    };
    tokio::task::spawn_blocking(write)
        .await
        .expect("it does not panic")
        .map_err(internal)
}

fn count(database: &Connection) -> rusqlite::Result<i64> {
    database.query_row("select count(*) from notes", [], |row| row.get(0))
}

fn internal(error: rusqlite::Error) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

async fn slow(body: String) -> String {
    tokio::time::sleep(Duration::from_millis(500)).await;
    body
}

async fn client(client: Client, headers: HeaderMap) -> String {
    let names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    format!("{} {} {}", client.ip, client.scheme, names.join(" "))
}

/// Ten a second.
async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(stream::unfold((), async |()| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Some((Ok(Event::default().data("tick")), ()))
    }))
}

/// Sends each message back, and says goodbye when the process drains.
async fn socket(mut socket: WebSocket) {
    loop {
        tokio::select! {
            message = socket.recv() => {
                let Some(Ok(message)) = message else { return };
                if matches!(message, Message::Text(_)) && socket.send(message).await.is_err() {
                    return;
                }
            }
            () = cutover::draining() => {
                let frame = CloseFrame { code: close_code::RESTART, reason: "".into() };
                let _ = socket.send(Message::Close(Some(frame))).await;
                // The client's close frame ends the connection on both sides.
                while let Some(Ok(_)) = socket.recv().await {}
                return;
            }
        }
    }
}
