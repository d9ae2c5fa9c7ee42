//! What has to be finished before the process ends.

use std::pin::Pin;
use std::sync::Mutex;

type Hook = Pin<Box<dyn Future<Output = ()> + Send>>;

static HOOKS: Mutex<Vec<Hook>> = Mutex::new(Vec::new());

/// Has [`serve`](crate::serve) run `hook` when the last connection has ended, and wait for
/// it until the drain's deadline, but at least for a second. The hook that was added last
/// runs first, as what was opened last is closed first.
///
/// ```
/// # async fn start() {
/// let task = tokio::spawn(async {
///     cutover::draining().await;
///     // finish what is begun
/// });
/// cutover::on_shutdown(async {
///     let _ = task.await;
/// });
/// # }
/// ```
pub fn on_shutdown(hook: impl Future<Output = ()> + Send + 'static) {
    HOOKS
        .lock()
        .expect("no panic holds it")
        .push(Box::pin(hook));
}

pub async fn run_hooks() {
    while let Some(hook) = next() {
        hook.await;
    }
}

fn next() -> Option<Hook> {
    HOOKS.lock().expect("no panic holds it").pop()
}
