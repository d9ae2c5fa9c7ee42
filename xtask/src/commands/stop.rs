//! `stop`: stop serving.

use anyhow::Result;
use xshell::Shell;

use crate::{cli::Args, commands::start::request_on_all, host::Host, kubernetes::Cluster};

pub const HELP: &str = "\
Stop serving, after open requests have finished

Usage: cargo xtask stop [TARGET]
";

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let target_arg = args.only_target()?;
    let target = target_arg.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.stop();
    }
    request_on_all(&Host::all(sh, target), "stop")
}
