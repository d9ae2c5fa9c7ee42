//! `cargo xtask`: ships the app. A file a command; `host` is where they meet a server.

mod activation;
mod build;
mod config;
mod deploy;
mod history;
mod host;
mod json;
mod logs;
mod service;
mod setup;
mod state;
mod status;
mod test;
mod ui;
mod upload;
mod version;

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xshell::Shell;

use crate::{
    config::{Target, Usage},
    host::Host,
};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Ship the app, and take it back",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build, upload, activate
    Deploy(deploy::Flags),
    /// Activate the version before the live one
    Rollback(history::RollbackFlags),
    /// What is live, what is running, how it is
    Status(TargetAndJson),
    /// What can be rolled back to, and every activation with its verdict
    History(TargetAndJson),
    /// The server's own log
    Logs(logs::Flags),
    /// Prepare a host for its first deploy, or for a change of the settings
    Setup(setup::Flags),
    /// Build alone; prints the binary's path
    Build(build::Flags),
    /// Start what is live
    Start(JustTarget),
    /// Stop serving
    Stop(JustTarget),
    /// Let a fresh instance of the live version take over: for a changed environment
    Restart(JustTarget),
    /// Run everything that the project is tested with
    Test,
}

#[derive(Args)]
struct JustTarget {
    /// One of those in xtask/src/config.rs, or ad hoc: USER@HOST:/DIR, or /DIR on this machine
    target: Option<String>,
}

#[derive(Args)]
struct TargetAndJson {
    #[command(flatten)]
    at: JustTarget,
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct TargetAndListen {
    #[command(flatten)]
    at: JustTarget,
    /// Where an ad-hoc target serves, such as 127.0.0.1:3001
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            ui::error(&error);
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn run(command: &Command) -> Result<()> {
    let sh = &workspace()?;
    match command {
        Command::Deploy(flags) => deploy::deploy(sh, flags),
        Command::Rollback(flags) => history::rollback(sh, flags),
        Command::Status(flags) => status::status(&flags.at.hosts(sh)?, flags.json),
        Command::History(flags) => history::history(&flags.at.hosts(sh)?, flags.json),
        Command::Logs(flags) => logs::logs(sh, flags),
        Command::Setup(flags) => setup::setup(sh, flags),
        Command::Build(flags) => build::print(sh, flags),
        Command::Start(at) => service::start(&at.hosts(sh)?),
        Command::Stop(at) => service::stop(&at.hosts(sh)?),
        Command::Restart(at) => service::restart(sh, &at.hosts(sh)?),
        Command::Test => test::test(sh),
    }
}

/// A shell in the workspace, wherever in it the command was given. `cargo run` says
/// where that is now; the binary alone knows where it was built.
fn workspace() -> Result<Shell> {
    let xtask = env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").to_owned());
    let root = Path::new(&xtask)
        .parent()
        .context("xtask/ is not in a workspace")?;
    let sh = Shell::new()?;
    sh.change_dir(root);
    Ok(sh)
}

impl JustTarget {
    fn hosts(&self, sh: &Shell) -> Result<Vec<Host>> {
        Ok(Host::all(sh, &Target::find(self.target.as_deref(), None)?))
    }
}

impl TargetAndListen {
    fn target(&self) -> Result<Target<'_>> {
        Target::find(self.at.target.as_deref(), self.listen.as_deref())
    }
}
