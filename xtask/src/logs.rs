//! `logs`: the server's own log.

use anyhow::Result;
use clap::Args;
use xshell::Shell;

use crate::JustTarget;

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
    let lines = flags.lines.to_string();
    for host in flags.at.hosts(sh)? {
        host.known_state()?;
        let args = if flags.follow {
            vec!["logs", &lines, "follow"]
        } else {
            vec!["logs", &lines]
        };
        host.script(&args)?.stdin_null().run()?;
    }
    Ok(())
}
