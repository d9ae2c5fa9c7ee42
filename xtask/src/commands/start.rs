//! `start`: start the live version.

use anyhow::{Result, ensure};
use xshell::Shell;

use crate::{
    cli::Args,
    host::Host,
    kubernetes::Cluster,
    parallel::{collect_errors, parallel_map},
    terminal,
};

pub const HELP: &str = "\
Start the live version

Usage: cargo xtask start [TARGET]
";

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let target_arg = args.only_target()?;
    let target = target_arg.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.start();
    }
    request_on_all(&Host::all(sh, target), "start")
}

/// A host that cannot be reached does not stop the others.
pub fn request_on_all(hosts: &[Host], verb: &str) -> Result<()> {
    let show_host = hosts.len() > 1;
    let results = parallel_map(hosts, |host| request(host, verb, show_host));
    collect_errors(results).map(drop)
}

fn request(host: &Host, verb: &str, show_host: bool) -> Result<()> {
    let mut session = host.request(&[verb])?;
    let suffix = match show_host {
        true => format!(" on {}", host.name()),
        false => String::new(),
    };
    let mut last = String::new();
    while let Some(line) = session.read_line()? {
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "activation" | "worker" | "Locked" => {}
            "verdict" => last = rest.trim_start_matches("failed ").to_owned(),
            "|" => terminal::quote(rest),
            "Warning" => terminal::warning(&format!("{rest}{suffix}")),
            _ if line.starts_with(char::is_uppercase) => {
                terminal::step(word, format!("{rest}{suffix}").trim_start());
            }
            _ => last = line,
        }
    }
    ensure!(last == "done", "cannot {verb} on {}: {last}", host.name());
    Ok(())
}
