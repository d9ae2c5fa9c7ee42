//! `status`: the live version, running instances and health.

use anyhow::Result;
use lexopt::Arg::Long;
use time::OffsetDateTime;
use xshell::Shell;

use crate::{
    cli::{Args, TargetArg},
    commands::history::record_to_json,
    host::Host,
    json,
    kubernetes::Cluster,
    parallel::{collect_errors, parallel_map},
    state::State,
    terminal,
};

pub const HELP: &str = "\
Show the live version, running instances and health

Usage: cargo xtask status [TARGET] [OPTIONS]

Options:
      --json    Print JSON
  -h, --help    Show this help
";

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = JsonArgs::parse(args)?;
    let target = options.target.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.status(options.json);
    }
    let hosts = Host::all(sh, target);
    print_all(&hosts, options.json, Host::state, to_json, to_text)
}

/// The arguments of `status` and `history`.
#[derive(Default)]
pub struct JsonArgs {
    pub target: TargetArg,
    pub json: bool,
}

impl JsonArgs {
    pub fn parse(mut args: Args) -> Result<JsonArgs> {
        let mut options = JsonArgs::default();
        let help = args.help();
        while let Some(arg) = args.next()? {
            match arg {
                Long("json") => options.json = true,
                other => options.target.take(other, help)?,
            }
        }
        Ok(options)
    }
}

/// Prints what was read from each host. A host that cannot be read is in the JSON with an
/// `error`, and makes the command fail.
pub fn print_all<'a, T: Send>(
    hosts: &'a [Host<'a>],
    json: bool,
    read: impl Fn(&'a Host<'a>) -> Result<T> + Sync,
    to_json: impl Fn(&T) -> Vec<(&'static str, String)>,
    to_text: impl Fn(&Host, &T) -> String,
) -> Result<()> {
    let results = parallel_map(hosts, read);
    if json {
        let host = |(host, result): (&Host, &Result<T>)| {
            let fields = match result {
                Ok(value) => to_json(value),
                Err(error) => vec![("error", json::string(&format!("{error:#}")))],
            };
            json::object(
                [("host", json::string(host.name()))]
                    .into_iter()
                    .chain(fields),
            )
        };
        let target = hosts.first().map_or("", |host| host.target.name);
        let all = json::object([
            ("target", json::string(target)),
            ("hosts", json::array(hosts.iter().zip(&results).map(host))),
        ]);
        println!("{all}");
    } else {
        for (host, result) in hosts.iter().zip(&results) {
            if let Ok(value) = result {
                terminal::print(&format!("{}\n{}", host.name(), to_text(host, value)));
            }
        }
    }
    collect_errors(results).map(drop)
}

fn to_json(state: &State) -> Vec<(&'static str, String)> {
    let version = |version: &_| json::string(&format!("{version}"));
    let null = || "null".to_owned();
    vec![
        ("live", state.live.as_ref().map_or_else(null, version)),
        ("running", json::array(state.running.iter().map(version))),
        ("healthy", state.healthy.to_string()),
        ("restarts", state.restarts.to_string()),
        (
            "last",
            state.last.as_ref().map_or_else(null, record_to_json),
        ),
    ]
}

fn to_text(host: &Host, state: &State) -> String {
    let mut lines = live_lines(state);
    let health = match state.healthy {
        true => "healthy",
        false => "not serving",
    };
    lines.push(format!(
        "health   {health}, restarted {} times, at {}",
        state.restarts,
        host.url(&state.address)
    ));
    for running in &state.running {
        let note = match state.live.as_ref() == Some(running) {
            true => "",
            false => " (not live)",
        };
        lines.push(format!("running  {running}{note}"));
    }
    if let Some(last) = &state.last {
        lines.push(format!(
            "last     {} {} at {} by {}",
            last.version,
            last.verdict(),
            last.at,
            last.by
        ));
    }
    if let Some(busy) = &state.busy {
        lines.push(format!("now      activating (since, version, by): {busy}"));
    }
    format!("  {}\n", lines.join("\n  "))
}

fn live_lines(state: &State) -> Vec<String> {
    let Some(live) = &state.live else {
        return vec!["live     nothing yet".to_owned()];
    };
    let age = age(OffsetDateTime::now_utc() - live.time);
    vec![
        format!("live     {live}"),
        format!("         built from commit {}, {age} ago", live.commit),
    ]
}

fn age(age: time::Duration) -> String {
    let (count, unit) = match age.whole_seconds() {
        seconds @ ..120 => (seconds, "s"),
        seconds @ ..7_200 => (seconds / 60, "min"),
        seconds @ ..172_800 => (seconds / 3_600, "h"),
        seconds => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}
