//! `start`, `stop` and `restart`: serving or not, whatever the version.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result};
use xshell::Shell;

use crate::{
    activation::{self, Wanted},
    host::{Host, all, at_once},
    ui,
};

pub fn start(hosts: &[Host]) -> Result<()> {
    hosts.iter().try_for_each(|host| run(host, "start"))
}

pub fn stop(hosts: &[Host]) -> Result<()> {
    hosts.iter().try_for_each(|host| run(host, "stop"))
}

fn run(host: &Host, verb: &str) -> Result<()> {
    host.known_state()?;
    let script = host.script(&[verb])?.stderr_to_stdout();
    let mut last = String::new();
    let output = script.reader()?;
    for line in BufReader::new(&output).lines() {
        last = line.with_context(|| format!("cannot {verb} on {}: {last}", host.name))?;
        let (word, rest) = last.split_once(' ').unwrap_or((&last, ""));
        // What does not begin so is a complaint, and part of the error.
        if last.starts_with(char::is_uppercase) {
            ui::step(word, rest);
        }
    }
    Ok(())
}

/// The live version is activated once more: its fresh instance reads its environment anew.
pub fn restart(sh: &Shell, hosts: &[Host]) -> Result<()> {
    let states = all(at_once(hosts, Host::known_state))?;
    let wanted = hosts
        .iter()
        .zip(&states)
        .map(|(host, state)| {
            let version = state.live.as_ref().context("nothing is live yet")?;
            Ok(Wanted {
                host,
                state,
                version,
                sha256: state.sha256(version)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    activation::activate(sh, &wanted)
}
