//! `start`, `stop` and `restart`: serving or not, whatever the version.

use std::io::{BufRead, Read};

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use crate::{
    activation::{self, Wanted},
    host::{Host, all, at_once},
    ui,
};

pub fn start(hosts: &[Host]) -> Result<()> {
    run(hosts, "start")
}

pub fn stop(hosts: &[Host]) -> Result<()> {
    run(hosts, "stop")
}

/// A host that is away takes nothing from the others.
fn run(hosts: &[Host], verb: &str) -> Result<()> {
    let run = |host: &Host| run_on(host, verb, &host.place(hosts.len() > 1));
    all(at_once(hosts, run)).map(drop)
}

fn run_on(host: &Host, verb: &str, place: &str) -> Result<()> {
    let mut session = host.talk(&[verb])?;
    let mut last = String::new();
    for line in session.output.by_ref().split(b'\n') {
        last = String::from_utf8_lossy(&line?).into_owned();
        let (word, rest) = last.split_once(' ').unwrap_or((&last, ""));
        // What does not begin so is a complaint, and part of the error.
        if last.starts_with(char::is_uppercase) {
            ui::step(word, format!("{rest}{place}").trim_start());
        }
    }
    ensure!(
        session.code() == Some(0),
        "cannot {verb} on {}: {last}",
        host.name
    );
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
            Wanted::again(host, state, version)
        })
        .collect::<Result<Vec<_>>>()?;
    activation::activate(sh, &wanted)
}
