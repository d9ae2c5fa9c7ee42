//! Work beside the requests. This task shows how such work ends without being cut off.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use crate::routes::App;

const INTERVAL: Duration = Duration::from_secs(60 * 60);

pub fn start(app: App) {
    let task = tokio::spawn(log_pages_sent(app.clone()));
    cutover::on_shutdown(async move {
        let _ = task.await;
        log(&app);
    });
}

/// Logs once an hour how many pages were sent.
async fn log_pages_sent(app: App) {
    loop {
        tokio::select! {
            () = sleep(INTERVAL) => log(&app),
            () = cutover::draining() => return,
        }
    }
}

fn log(app: &App) {
    let pages = app.pages_sent.swap(0, Ordering::Relaxed);
    tracing::info!("{pages} pages sent");
}
