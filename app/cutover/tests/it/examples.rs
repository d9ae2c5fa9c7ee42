//! The servers under test.

use std::env;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::support;

/// The server with axum.
pub static AXUM: LazyLock<PathBuf> = LazyLock::new(|| build("axum"));

/// The server without axum.
pub static HYPER: LazyLock<PathBuf> = LazyLock::new(|| build("hyper"));

/// Runs the server with axum on a port of its own.
pub fn command(instance: &str, listen: SocketAddr) -> Command {
    support::command(&AXUM, instance, listen)
}

/// Runs the server with axum on a socket that systemd passes.
pub fn command_with_socket(instance: &str, socket: impl AsFd) -> Command {
    support::command_with_socket(&AXUM, instance, socket)
}

/// `cargo test --test it` alone builds no examples.
fn build(name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    for (variable, _) in env::vars().filter(|(it, _)| it.starts_with("CARGO_PKG_")) {
        cargo.env_remove(variable);
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let status = cargo
        .args(["build", "--quiet", "--example", name, "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "the example {name} does not build");
    target.join("debug/examples").join(name)
}
