//! `status`: what is live, what is running, how it is.

use anyhow::Result;
use time::OffsetDateTime;

use crate::{
    host::{Host, all, at_once},
    json,
    state::{Activation, State},
};

pub fn status(hosts: &[Host], json: bool) -> Result<()> {
    let states = at_once(hosts, Host::known_state);
    let both = answered(hosts, &states);
    if json {
        println!(
            "{}",
            per_target(hosts, both.map(|(host, state)| to_json(host, state)))
        );
    } else {
        both.for_each(|(host, state)| print!("{}", to_text(host, state)));
    }
    all(states).map(drop)
}

/// A host that is away takes nothing from the others.
pub fn answered<'a>(
    hosts: &'a [Host],
    states: &'a [Result<State>],
) -> impl Iterator<Item = (&'a Host, &'a State)> {
    hosts
        .iter()
        .zip(states)
        .filter_map(|(host, state)| Some((host, state.as_ref().ok()?)))
}

/// The frame of all our JSON.
pub fn per_target(hosts: &[Host], per_host: impl Iterator<Item = String>) -> String {
    let target = hosts.first().map_or("", |host| &host.target);
    json::object([
        ("target", json::string(target)),
        ("hosts", json::array(per_host)),
    ])
}

fn to_json(host: &Host, state: &State) -> String {
    let version = |it: &_| json::string(&format!("{it}"));
    json::object([
        ("host", json::string(&host.name)),
        (
            "live",
            state.live.as_ref().map_or("null".to_owned(), version),
        ),
        ("running", json::array(state.running.iter().map(version))),
        ("healthy", state.healthy.to_string()),
        ("restarts", state.restarts.to_string()),
        (
            "last",
            state
                .activations
                .last()
                .map_or("null".to_owned(), last_to_json),
        ),
    ])
}

fn last_to_json(last: &Activation) -> String {
    json::object([
        ("at", json::string(&last.at)),
        ("verdict", json::string(last.verdict())),
        ("version", json::string(&last.version.to_string())),
        ("by", json::string(&last.by)),
    ])
}

fn to_text(host: &Host, state: &State) -> String {
    let mut lines = vec![];
    match &state.live {
        Some(live) => {
            let age = age(OffsetDateTime::now_utc() - live.time);
            lines.push(format!("live     {live}"));
            lines.push(format!(
                "         built from commit {}, {age} ago",
                live.commit
            ));
        }
        None => lines.push("live     nothing yet".to_owned()),
    }
    let health = if state.healthy {
        "healthy"
    } else {
        "not serving"
    };
    lines.push(format!(
        "health   {health}, restarted {} times, at {}",
        state.restarts,
        host.url(&state.listen)
    ));
    for running in &state.running {
        let what = if state.live.as_ref() == Some(running) {
            ""
        } else {
            " (beside it)"
        };
        lines.push(format!("running  {running}{what}"));
    }
    if let Some(last) = state.activations.last() {
        lines.push(format!(
            "last     {} {} at {} by {}",
            last.version,
            last.verdict(),
            last.at,
            last.by
        ));
    }
    if let Some(busy) = &state.busy {
        lines.push(format!("now      activating, since, what and who: {busy}"));
    }
    format!("{}\n  {}\n", host.name, lines.join("\n  "))
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
