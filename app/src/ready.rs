//! Readiness. The process says that it is ready, and later that it is alive,
//! only when its own router has just answered.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use sd_notify::NotifyState;
use tower::ServiceExt;

use crate::identity::Identity;
use crate::log;

/// For the first answer. The watchdog sets its own pace.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

pub async fn check(router: &Router) -> Result<(), String> {
    answers(router, FIRST_ANSWER).await
}

/// Tells systemd, which listens only to units of `Type=notify`.
pub fn announce(identity: Identity, router: Router) {
    log::info(&format!("ready: {}", identity.instance));
    notify(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving {}", identity.version)),
    ]);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(feed_watchdog(router, limit / 2));
    }
}

pub fn notify(states: &[NotifyState]) {
    if let Err(e) = sd_notify::notify(states) {
        log::warning(&format!("cannot notify systemd: {e}"));
    }
}

/// A router that stalls or fails is not fed for, so systemd restarts it.
async fn feed_watchdog(router: Router, interval: Duration) {
    loop {
        match answers(&router, interval).await {
            Ok(()) => notify(&[NotifyState::Watchdog]),
            Err(message) => log::warning(&message),
        }
        tokio::time::sleep(interval).await;
    }
}

async fn answers(router: &Router, limit: Duration) -> Result<(), String> {
    let request = Request::get("/healthz")
        .body(Body::empty())
        .expect("is one");
    match tokio::time::timeout(limit, router.clone().oneshot(request)).await {
        Ok(Ok(response)) if response.status() == StatusCode::OK => Ok(()),
        Ok(Ok(response)) => Err(format!("not healthy: /healthz says {}", response.status())),
        Ok(Err(never)) => match never {},
        Err(_) => Err(format!("not healthy: no answer from /healthz in {limit:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn only_an_answer_of_200_in_time_is_healthy() {
        let healthy = |router| answers(router, Duration::from_millis(50));

        let well = Router::new().route("/healthz", get(|| async {}));
        assert_eq!(healthy(&well).await, Ok(()));

        let failing = get(|| async { StatusCode::SERVICE_UNAVAILABLE });
        let failing = Router::new().route("/healthz", failing);
        assert!(healthy(&failing).await.unwrap_err().contains("503"));

        let stalled = Router::new().route("/healthz", get(pending::<()>));
        assert!(healthy(&stalled).await.unwrap_err().contains("no answer"));
    }
}
