//! Ending without losing anybody.
//!
//! hyper's graceful shutdown closes idle and just-accepted connections at once,
//! and a request that is on its way to one of them is lost. So on SIGTERM we
//! drain first: nothing new is accepted, whoever is connected goes on being
//! answered, now with `Connection: close`, and only those that stay silent are
//! closed in the end.

use std::future::pending;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::serve::Server;
use crate::{log, ready};

/// How long a silent connection may stay open: its client may be about to use
/// it. At most half of the deadline.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Phase {
    Serving,
    /// Every answer says `Connection: close`; streams end.
    Draining,
    /// Silent connections are closed.
    Closing,
}

#[derive(Clone)]
pub struct WatchPhase(watch::Receiver<Phase>);

pub fn phases() -> (watch::Sender<Phase>, WatchPhase) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (sender, WatchPhase(receiver))
}

impl WatchPhase {
    pub fn has_reached(&self, phase: Phase) -> bool {
        *self.0.borrow() >= phase
    }

    pub async fn reaches(&mut self, phase: Phase) {
        // It fails when the sender is gone, and that is when all this ends.
        let _ = self.0.wait_for(|current| *current >= phase).await;
    }
}

/// Returns when the last connection has ended, or at the deadline.
pub async fn drain(server: Server, phase: watch::Sender<Phase>, deadline: Duration) {
    phase.send_replace(Phase::Draining);
    ready::notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    log::info(&format!("draining: {} open", server.open()));

    let close_the_silent = async {
        sleep(GRACE.min(deadline / 2)).await;
        phase.send_replace(Phase::Closing);
        pending::<()>().await;
    };
    tokio::select! {
        () = server.ended() => log::info("drained"),
        () = close_the_silent => {}
        () = sleep(deadline) => {
            log::warning(&format!("drain deadline passed: {} open", server.open()));
        }
    }
}
