//! The life of a server, from its arguments to its end.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::connections::Connections;
use crate::listen::{Socket, socket};
use crate::{arguments, drain, log, ready, shutdown};

/// What shutdown hooks and blocking threads get even if connections used up the drain.
const MIN_SHUTDOWN: Duration = Duration::from_secs(1);

/// What [`serve`] accepts from an app: a [`Router`], or a `Result` whose error ends the
/// process.
pub trait IntoRouter {
    /// The router, or a message for the log.
    fn into_router(self) -> Result<Router, String>;
}

impl IntoRouter for Router {
    fn into_router(self) -> Result<Router, String> {
        Ok(self)
    }
}

impl<E: Display> IntoRouter for Result<Router, E> {
    fn into_router(self) -> Result<Router, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// Serves the router that `build` makes, until SIGTERM and to the last request.
///
/// `build` is an async function that returns a [`Router`] or a `Result` of one. It runs
/// before any client is accepted, so it is the place to open a database. The router must
/// answer `/healthz` with 200 when the app is well; anything else keeps it from being
/// deployed, and later has systemd restart it.
///
/// ```no_run
/// use axum::{Router, routing::get};
///
/// fn main() -> std::process::ExitCode {
///     cutover::serve(router)
/// }
///
/// async fn router() -> Router {
///     Router::new()
///         .route("/", get(async || "hello"))
///         .route("/healthz", get(async || "ok"))
/// }
/// ```
///
/// It takes the arguments `healthcheck`, `--version` and `--help`, and refuses others. An app
/// that has commands of its own looks for them first:
///
/// ```no_run
/// # use std::process::ExitCode;
/// # async fn router() -> axum::Router { axum::Router::new() }
/// # fn migrate() -> ExitCode { ExitCode::SUCCESS }
/// fn main() -> ExitCode {
///     match std::env::args().nth(1).as_deref() {
///         Some("migrate") => migrate(),
///         _ => cutover::serve(router),
///     }
/// }
/// ```
pub fn serve<B, A>(build: B) -> ExitCode
where
    B: AsyncFnOnce() -> A,
    A: IntoRouter,
{
    if let Some(code) = arguments::arguments() {
        return code;
    }
    log::install();
    match run(build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run<A: IntoRouter>(build: impl AsyncFnOnce() -> A) -> io::Result<()> {
    // Before the runtime has threads and opens descriptors of its own.
    let socket = socket()?;
    let runtime = Runtime::new()?;
    let result = runtime.block_on(async {
        let result = start_and_drain(socket, build).await;
        let _ = timeout(shutdown_timeout(), shutdown::run_hooks()).await;
        result
    });
    // Threads that block, such as a database's, may finish what they do.
    runtime.shutdown_timeout(shutdown_timeout());
    result
}

fn shutdown_timeout() -> Duration {
    drain::remaining().max(MIN_SHUTDOWN)
}

async fn start_and_drain<A: IntoRouter>(
    socket: Socket,
    build: impl AsyncFnOnce() -> A,
) -> io::Result<()> {
    drain::watch_signals()?;
    tokio::select! {
        connections = start(socket, build) => drain_connections(connections?).await,
        () = drain::draining() => {
            tracing::info!("stopped before it was ready");
            Ok(())
        }
    }
}

async fn start<A: IntoRouter>(
    socket: Socket,
    build: impl AsyncFnOnce() -> A,
) -> io::Result<Connections> {
    let router = build().await.into_router().map_err(io::Error::other)?;
    let checked = router.clone();
    let check = move || ready::check_health(checked.clone());
    ready::check_first(&check).await?;

    let listener = socket.listen()?;
    tracing::info!("listening on {listener}");
    let connections = Connections::accept(listener, router)?;
    ready::announce(check);
    Ok(connections)
}

async fn drain_connections(connections: Connections) -> io::Result<()> {
    tokio::select! {
        biased; // a drain cuts them off, too
        () = drain::draining() => {}
        // systemd starts the process again, with a new socket.
        () = connections.cut_off() => {
            drain::skip();
            return Err(io::Error::other("no connection can come any more"));
        }
    }
    tracing::info!("draining: {} open", connections.count());
    tokio::select! {
        () = connections.ended() => tracing::info!("drained"),
        () = drain::deadline() => tracing::warn!("cut off: {} open", connections.count()),
    }
    Ok(())
}
