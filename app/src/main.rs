//! A small web server that is replaced while it serves: `cargo xtask deploy`.

mod events;
mod health;
mod pages;
mod routes;
mod tasks;

use std::process::ExitCode;

fn main() -> ExitCode {
    cutover::serve(routes::router)
}
