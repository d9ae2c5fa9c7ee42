//! `cargo xtask`: builds the app, deploys it, and takes it back.
//!
//! `main.rs` picks the command. Each command is a file of `commands/`, and each step that
//! several commands share is a file beside this one. `config.rs` is yours to edit.

mod activation;
mod builder;
mod cli;
mod commands;
mod config;
mod host;
mod json;
mod kubernetes;
mod parallel;
mod placeholders;
mod report;
mod rollout;
mod rsync;
mod server_files;
mod session;
mod ssh;
mod state;
mod target;
mod terminal;
mod upload;
mod version;

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use lexopt::Arg;
use xshell::Shell;

use crate::{cli::Args, target::Usage};

const HELP: &str = "\
Deploy the app, and take it back

Usage: cargo xtask COMMAND [TARGET] [OPTIONS]

Commands:
  deploy     Build, upload, activate
  rollback   Activate the version before the live one
  status     Show the live version, running instances and health
  history    Show what can be rolled back to, and every activation with its verdict
  logs       Show the app's log
  env        List, set or unset the app's environment variables
  run        Run the live version once with other arguments
  setup      Prepare a host for its first deploy, or apply changed settings
  build      Build, and print the path of the binary
  start      Start the live version
  stop       Stop serving
  restart    Replace the running instance by a fresh one of the same version
  test       Run all checks and tests of the project

TARGET is a name from xtask/src/config.rs (default: the first one), USER@HOST:/DIR,
or /DIR on this machine. `cargo xtask COMMAND --help` shows a command's options.
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::error(&error);
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run() -> Result<()> {
    let sh = &workspace()?;
    let mut args = Args::from_env(HELP);
    let command = match args.next()? {
        Some(Arg::Value(command)) => command,
        Some(option) => return Err(cli::usage(option.unexpected(), HELP)),
        None => return Err(cli::usage("no command", HELP)),
    };
    commands::run(sh, &command.to_string_lossy(), args)
}

/// A shell in the workspace's root, whatever folder the command was given in. `cargo run`
/// tells where the workspace is now; the binary alone knows where it was built.
fn workspace() -> Result<Shell> {
    let xtask = env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    let root = Path::new(&xtask)
        .parent()
        .context("xtask/ is not inside a workspace")?;
    let sh = Shell::new()?;
    sh.change_dir(root);
    Ok(sh)
}
