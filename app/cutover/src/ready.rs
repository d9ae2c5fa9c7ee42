//! Readiness. The process says that it is ready, and later that it is alive, only when it
//! has just passed its own check.

use std::io;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::HOST;
use axum::http::{Request, StatusCode};
use sd_notify::NotifyState;
use tokio::time::{sleep, timeout};

use crate::connections::Peer;
use crate::respond::respond;
use crate::{drain, identity};

/// For the first check. The watchdog sets the pace of the others.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// How many checks systemd's watchdog leaves time for: a single one that fails does no harm.
const ATTEMPTS: u32 = 4;

/// Runs `check`, then tells systemd that the process is ready, and keeps systemd's watchdog
/// fed as long as `check` succeeds. From here on SIGTERM drains.
///
/// Call it in the tokio runtime that serves, when the [`Listener`](crate::Listener) listens.
pub async fn ready<C, F>(check: C) -> io::Result<()>
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    drain::watch_signals()?;
    check_first(&check).await?;
    announce(check);
    Ok(())
}

pub async fn check_first<F>(check: &impl Fn() -> F) -> io::Result<()>
where
    F: Future<Output = io::Result<()>>,
{
    within(FIRST_CHECK_TIMEOUT, check()).await
}

pub fn announce<C, F>(check: C)
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let version = identity::version();
    tracing::info!("ready: {}", identity::instance().unwrap_or(version));
    notify(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving {version}")),
    ]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(feed_watchdog(check, limit / ATTEMPTS));
    }
}

/// Asks the user's own health route, without the network between.
pub async fn check_health(router: Router) -> io::Result<()> {
    let request = Request::get("/healthz")
        .header(HOST, "localhost")
        .body(Body::empty())
        .map_err(io::Error::other)?;
    match respond(router, Peer::Proxy, request).await.status() {
        StatusCode::OK => Ok(()),
        status => Err(io::Error::other(format!(
            "not healthy: /healthz answers {status}"
        ))),
    }
}

/// systemd listens only to units of `Type=notify`.
pub fn notify(states: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot notify systemd: {e}");
    }
}

/// A server that stalls or fails its check is not fed for, so systemd restarts it.
async fn feed_watchdog<C, F>(check: C, interval: Duration)
where
    C: Fn() -> F,
    F: Future<Output = io::Result<()>>,
{
    loop {
        match within(interval, check()).await {
            Ok(()) => notify(&[NotifyState::Watchdog]),
            Err(e) => tracing::warn!("{e}"),
        }
        sleep(interval).await;
    }
}

async fn within(limit: Duration, check: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    match timeout(limit, check).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::other(format!(
            "not healthy: no answer from the health check in {limit:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn only_an_answer_of_200_in_time_is_healthy() {
        let check = |router| within(Duration::from_millis(50), check_health(router));

        let healthy = Router::new().route("/healthz", get(|| async {}));
        assert!(check(healthy).await.is_ok());

        let failing = get(|| async { StatusCode::SERVICE_UNAVAILABLE });
        let failing = Router::new().route("/healthz", failing);
        assert!(
            check(failing)
                .await
                .unwrap_err()
                .to_string()
                .contains("503")
        );

        let stalled = Router::new().route("/healthz", get(pending::<()>));
        assert!(
            check(stalled)
                .await
                .unwrap_err()
                .to_string()
                .contains("no answer")
        );
    }
}
