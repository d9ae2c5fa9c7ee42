//! From SIGTERM to the end, without losing a request.
//!
//! hyper's graceful shutdown closes idle and just-accepted connections at once, and a
//! request that is on its way to one of them is lost. So a drain has phases: first the
//! other instance takes the new connections, while this one answers on those it has, now
//! with `Connection: close`. Only connections that stay silent are closed in the end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::handover;
use crate::ready::notify;
use crate::settings::{Settings, settings};
use crate::signals::Signals;

/// How long a silent connection stays open: its client may be about to use it. A proxy
/// must close its idle connections sooner than this. A short drain halves it.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq, PartialOrd)]
pub enum Phase {
    Serving,
    /// Answers say `Connection: close`, event streams end.
    Draining,
    /// New connections reach the next instance: this one stops accepting.
    HandedOver,
    /// Silent connections are closed.
    Closing,
    /// The deadline has passed, or the user interrupted the drain: connections are cut off.
    Over,
}

/// A process drains once, so there is one phase for all of it.
static PHASE: LazyLock<watch::Sender<Phase>> = LazyLock::new(|| watch::Sender::new(Phase::Serving));

static DEADLINE: OnceLock<Instant> = OnceLock::new();

/// Whether the process is about to end: answers should say `Connection: close`.
pub fn is_draining() -> bool {
    *PHASE.borrow() >= Phase::Draining
}

/// Waits until the process is about to end: finish what you are doing, start nothing new.
///
/// ```
/// async fn work() {
///     loop {
///         tokio::select! {
///             () = tokio::time::sleep(std::time::Duration::from_secs(60)) => { /* do it */ }
///             () = cutover::draining() => return,
///         }
///     }
/// }
/// ```
pub async fn draining() {
    reached(Phase::Draining).await;
}

/// Waits until new connections reach another instance. Go on accepting until then; close
/// the listener after it.
pub async fn handed_over() {
    reached(Phase::HandedOver).await;
}

/// Waits for the end of `DRAIN_SECONDS`: what is not finished by then is cut off.
pub async fn deadline() {
    reached(Phase::Over).await;
}

/// What is left until the deadline of a drain that has begun.
pub fn remaining() -> Duration {
    let deadline = DEADLINE.get().copied().unwrap_or_else(Instant::now);
    deadline.saturating_duration_since(Instant::now())
}

/// Goes to the last phase at once, because nobody can connect any more.
pub fn skip() {
    PHASE.send_replace(Phase::Over);
}

pub async fn reached(phase: Phase) {
    // The sender is static, so this cannot fail.
    let _ = PHASE
        .subscribe()
        .wait_for(|current| *current >= phase)
        .await;
}

/// Spawns the task that drains the process on SIGTERM. Further calls do nothing.
pub fn watch_signals() -> io::Result<()> {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    if !WATCHED.swap(true, Ordering::Relaxed) {
        tokio::spawn(drain_on_signal(Signals::install()?, settings()?));
    }
    Ok(())
}

async fn drain_on_signal(mut signals: Signals, settings: &'static Settings) {
    signals.first().await;
    tokio::select! {
        () = drain(settings) => {}
        () = signals.interrupt() => tracing::warn!("interrupted"),
    }
    PHASE.send_replace(Phase::Over);
}

/// Goes through the phases up to the deadline. If all connections end sooner, the process
/// exits meanwhile; see serve.rs.
async fn drain(settings: &Settings) {
    sleep(settings.linger).await;
    let begin = Instant::now();
    let deadline = *DEADLINE.get_or_init(|| begin + settings.drain);
    PHASE.send_replace(Phase::Draining);
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);

    let _ = timeout_at(deadline, handover::hand_over()).await;
    PHASE.send_replace(Phase::HandedOver);

    sleep_until(begin + GRACE.min(settings.drain / 2)).await;
    PHASE.send_replace(Phase::Closing);

    sleep_until(deadline).await;
    tracing::warn!("drain deadline passed");
}
