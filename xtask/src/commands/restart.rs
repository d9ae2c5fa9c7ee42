//! `restart`: replace the running instance by a fresh one of the same version.

use anyhow::{Context, Result};
use xshell::Shell;

use crate::{
    cli::Args,
    host::Host,
    kubernetes::Cluster,
    parallel::{collect_errors, parallel_map},
    rollout::{self, Job},
    state::State,
};

pub const HELP: &str = "\
Replace the running instance by a fresh one of the same version, which reads its
environment anew

Usage: cargo xtask restart [TARGET]
";

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let target_arg = args.only_target()?;
    let target = target_arg.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.restart();
    }
    let hosts = Host::all(sh, target);
    let states = collect_errors(parallel_map(&hosts, Host::state))?;
    let jobs = hosts
        .iter()
        .zip(&states)
        .map(|(host, state)| job(host, state))
        .collect::<Result<Vec<_>>>()?;
    rollout::run(sh, &jobs, true)?.result()
}

fn job<'a>(host: &'a Host, state: &'a State) -> Result<Job<'a>> {
    let live = state.live.as_ref();
    let live = live.with_context(|| format!("nothing is live on {} yet", host.name()))?;
    Job::again(host, state, live)
}
