//! `logs`: the server's own log.

use anyhow::Result;
use clap::Args;
use xshell::Shell;

use crate::{
    JustTarget,
    host::{Host, all, at_once},
};

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    at: JustTarget,
    /// Go on with what is logged from now on
    #[arg(short, long)]
    follow: bool,
    /// How many lines of the past
    #[arg(long, default_value = "50")]
    lines: u32,
}

pub fn logs(sh: &Shell, flags: &Flags) -> Result<()> {
    let hosts = flags.at.hosts(sh)?;
    let lines = flags.lines.to_string();
    let mut args = vec!["logs", &lines];
    args.extend(flags.follow.then_some("follow"));
    let show = |host: &Host| host.show(&args);
    if flags.follow {
        all(at_once(&hosts, show)).map(drop)
    } else {
        hosts.iter().try_for_each(show)
    }
}
