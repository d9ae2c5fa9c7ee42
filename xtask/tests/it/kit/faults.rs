//! Added to the app by the tests: a slow route, and faults that a version can have. The end
//! of the binary names the fault.

use std::{fs, process, thread::sleep, time::Duration};

pub async fn slow(axum::extract::Path(seconds): axum::extract::Path<f32>) -> &'static str {
    tokio::time::sleep(Duration::from_secs_f32(seconds)).await;
    "done\n"
}

pub async fn health() -> axum::http::StatusCode {
    if is("slow-health") {
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    if is("unhealthy") {
        axum::http::StatusCode::INTERNAL_SERVER_ERROR
    } else {
        axum::http::StatusCode::OK
    }
}

fn is(fault: &str) -> bool {
    let this = fs::read("/proc/self/exe").expect("Linux has /proc");
    this.ends_with(format!(" fault:{fault}\n").as_bytes())
}

pub fn at_start() {
    if is("exits") {
        eprintln!("fault: exits at once");
        process::exit(3);
    } else if is("never-listens") {
        eprintln!("fault: never listens");
        sleep(Duration::from_secs(600));
    } else if is("dies-once-ready") {
        die_after(Duration::from_millis(250));
    } else if is("dies-when-live") {
        die_after(Duration::from_secs(3));
    }
}

fn die_after(time: Duration) {
    std::thread::spawn(move || {
        sleep(time);
        eprintln!("fault: dies once ready");
        process::exit(4);
    });
}
