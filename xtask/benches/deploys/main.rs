//! `cargo bench --package xtask --profile dev`: what a deploy costs, beside the shell script that this
//! began as, and beside others that do the same job, all from one run on real servers.
//!
//! Each tool has a server of its own, and reaches it through a proxy that delays and
//! counts. All deploy the same two binaries, which were built before: for cutover, a
//! `cargo` that copies them stands in for the build. Only `edits` measures the build, too.
//!
//! With `-- cutover script` after it, only what is named is measured: tools, `edits`,
//! `deploys`, `load`, `hosts`, `builds`.

mod apps;
mod capistrano;
mod cold_builds;
mod cutover;
mod edits;
mod fleet;
mod proxy;
mod python;
mod report;
mod script;
mod table;
mod tool;
mod under_load;

#[allow(dead_code)] // the tests use all of it
#[path = "../../tests/it/kit/mod.rs"]
mod kit;

use std::{
    collections::BTreeMap,
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use apps::Apps;
use kit::{app, app::WORKSPACE, configured, http, lab, load, place, site, workspace};
use proxy::Traffic;
use tool::{Task, Tool, run_on};

/// How often each of it is measured, by the round-trip time.
const ROUNDS: [(Duration, usize); 3] = [(NEAR, 5), (FAR, 3), (VERY_FAR, 3)];

const NEAR: Duration = Duration::ZERO;
const FAR: Duration = Duration::from_millis(100);

/// To count our own round trips by: what else varies is little beside it.
const VERY_FAR: Duration = Duration::from_millis(500);

/// A round, in this order, from a server that was set up and has nothing yet.
const TASKS: [&str; 6] = [
    LOGIN,
    "first deploy",
    "one-line change",
    "no change",
    "status",
    "rollback",
];

pub const LOGIN: &str = "`ssh HOST true`";

const COLD_BUILDS: usize = 3;

pub struct Sample {
    wall: Duration,
    traffic: Traffic,
    logins: u64,
}

/// By tool, task and round-trip time.
type Samples = BTreeMap<(usize, &'static str, Duration), Vec<Sample>>;

fn main() -> ExitCode {
    match measure_and_print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure_and_print() -> Result<()> {
    let parts: Vec<String> = env::args()
        .skip(1)
        .filter(|it| !it.starts_with('-'))
        .collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|it| it == part);
    lab::docker_available()?;
    eprintln!("building the app, twice");
    let apps = apps::build()?;
    let (cutover, mut notes) = (cutover::start()?, vec![]);
    let settle = cutover.settle()?;
    let mut tools: Vec<Box<dyn Tool>> = vec![Box::new(cutover)];
    for (name, start) in PEERS.into_iter().filter(|(name, _)| wanted(name)) {
        eprintln!("starting {name}");
        match start() {
            Ok(tool) => tools.push(tool),
            Err(error) => notes.push(format!("{name} is left out: {error:#}")),
        }
    }
    let edits = match wanted("edits") {
        true => Some(edits::measure(&tools)?),
        false => None,
    };
    let samples = match wanted("deploys") {
        true => measure_all(&tools, &apps)?,
        false => Samples::new(),
    };
    let loads = match wanted("load") {
        true => under_load::measure_all(&tools, &apps)?,
        false => vec![],
    };
    let names: Vec<String> = tools.iter().map(|it| it.name()).collect();
    // With their servers
    drop(tools);
    let hosts = wanted("hosts").then(|| fleet::measure(&apps));
    let builds = wanted("builds").then(|| cold_builds::measure(COLD_BUILDS));
    report::print(&report::Run {
        names,
        binary: apps.size()?,
        settle,
        edits,
        samples,
        loads,
        hosts: hosts.transpose()?,
        builds: builds.transpose()?,
        notes,
    });
    Ok(())
}

type Start = fn() -> Result<Box<dyn Tool>>;

const PEERS: [(&str, Start); 4] = [
    ("script", || Ok(Box::new(script::start()?))),
    ("capistrano", || Ok(Box::new(capistrano::start()?))),
    ("ansible", || Ok(Box::new(python::start_ansible()?))),
    ("pyinfra", || Ok(Box::new(python::start_pyinfra()?))),
];

/// All tools take turns, so that a bad moment of this machine is nobody's alone.
fn measure_all(tools: &[Box<dyn Tool>], apps: &Apps) -> Result<Samples> {
    let mut samples = Samples::new();
    for (round_trip, rounds) in ROUNDS {
        for round in 1..=rounds {
            let measured = if round_trip == VERY_FAR {
                1
            } else {
                tools.len()
            };
            for (number, tool) in tools.iter().enumerate().take(measured) {
                eprintln!("{round_trip:?}, round {round} of {rounds}: {}", tool.name());
                run_on(tool.server(), tool.reset())?;
                new_logins(&**tool)?;
                tool.line().set_round_trip(round_trip);
                // After a while without one, a login starts a service manager for its user.
                measure(&**tool, LOGIN, apps)?;
                for name in TASKS {
                    if let Some(sample) = measure(&**tool, name, apps)? {
                        let key = (number, name, round_trip);
                        samples.entry(key).or_default().push(sample);
                    }
                }
            }
        }
    }
    tools
        .iter()
        .for_each(|it| it.line().set_round_trip(Duration::ZERO));
    Ok(samples)
}

fn measure(tool: &dyn Tool, name: &str, apps: &Apps) -> Result<Option<Sample>> {
    let task = match name {
        "first deploy" => Task::Deploy(&apps.first),
        "one-line change" | "no change" => Task::Deploy(&apps.changed),
        "status" => Task::Status,
        "rollback" => Task::Rollback,
        _ => Task::Login,
    };
    let sample = run(tool, task).with_context(|| format!("{}: {name}", tool.name()))?;
    if let Task::Deploy(binary) = task {
        let answer = http::get(tool.address(), "/no-such-page")?;
        ensure!(
            answer.body.contains(apps.mark(binary)),
            "{} says it is done, and the server says {:?}",
            tool.name(),
            answer.body
        );
    }
    Ok(sample)
}

pub fn run(tool: &dyn Tool, task: Task) -> Result<Option<Sample>> {
    let Some(mut command) = tool.command(task)? else {
        return Ok(None);
    };
    let start = Instant::now();
    let output = command.output()?;
    let wall = start.elapsed();
    let traffic = tool.line().drop_connections();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let logins = new_logins(tool)?;
    Ok(Some(Sample {
        wall,
        traffic,
        logins,
    }))
}

/// Since the last time, as the server counts them.
fn new_logins(tool: &dyn Tool) -> Result<u64> {
    let count = "journalctl --quiet --cursor-file=/run/counted | grep -c 'Accepted publickey' || :";
    Ok(run_on(tool.server(), count)?.trim().parse()?)
}
