//! The real binary, started as on a server and asked over real sockets.

mod browser;
mod http;
mod page;
#[path = "../../cutover/tests/it/support.rs"]
mod support;
mod tasks;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

fn command(instance: &str, listen: SocketAddr) -> Command {
    support::command(Path::new(env!("CARGO_BIN_EXE_app")), instance, listen)
}
