//! What a rollout left on each host: a table for people, JSON for programs.

use anyhow::{Result, anyhow};

use crate::{host::Host, json, parallel::parallel_map, state::State, version::Version};

/// How the rollout ended on one host.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    Live,
    /// It was live before the rollout.
    LiveAlready,
    /// It is live, but was not healthy when it was looked at later.
    Unhealthy(String),
    Failed(String),
    Cancelled,
    /// The connection was lost. The text says what the host does by itself.
    Unknown(String),
    /// The host has gone back to the version before, for its own problem or another host's.
    Reverted(Option<String>),
    /// It is live, and the host could not go back.
    NotReverted(String),
    /// The rollout stopped before its turn.
    Untouched,
}

pub struct HostReport<'a> {
    pub host: &'a Host<'a>,
    pub version: &'a Version,
    pub ending: Ending,
}

pub struct Report<'a> {
    pub hosts: Vec<HostReport<'a>>,
    /// Why it stopped, for the headline.
    pub stopped: String,
}

impl Ending {
    /// Whether the version went live, and nothing is wrong with it.
    pub fn is_good(&self) -> bool {
        matches!(self, Ending::Live | Ending::LiveAlready)
    }

    /// Whether the host switched in this rollout, and has not gone back.
    pub fn has_switched(&self) -> bool {
        matches!(self, Ending::Live | Ending::Unhealthy(_))
    }

    fn word(&self) -> &'static str {
        match self {
            Ending::Live | Ending::LiveAlready => "live",
            Ending::Unhealthy(_) => "unhealthy",
            Ending::Failed(_) => "failed",
            Ending::Cancelled => "cancelled",
            Ending::Unknown(_) => "unknown",
            Ending::Reverted(_) => "reverted",
            Ending::NotReverted(_) => "not reverted",
            Ending::Untouched => "untouched",
        }
    }

    /// Whether the rollout stopped for this host.
    pub fn is_failure(&self) -> bool {
        match self {
            Ending::Unhealthy(_) | Ending::Failed(_) | Ending::Unknown(_) => true,
            Ending::Reverted(why) => why.is_some(),
            _ => false,
        }
    }

    pub fn why(&self) -> Option<&str> {
        match self {
            Ending::Reverted(why) => why.as_deref(),
            Ending::Unhealthy(why)
            | Ending::Failed(why)
            | Ending::Unknown(why)
            | Ending::NotReverted(why) => Some(why),
            _ => None,
        }
    }
}

impl HostReport<'_> {
    fn explanation(&self) -> String {
        let version = self.version;
        match &self.ending {
            Ending::Live => "it has switched".to_owned(),
            Ending::LiveAlready => "it was live before".to_owned(),
            Ending::Unhealthy(why) => format!("it has switched, but {why}"),
            Ending::Failed(why) => format!("{version} did not become live: {why}"),
            Ending::Cancelled => format!("the activation of {version} was cancelled"),
            Ending::Unknown(why) => format!("activation of {version}: {why}"),
            Ending::Reverted(None) => "it had switched, and went back".to_owned(),
            Ending::Reverted(Some(why)) => format!("it had switched, and went back: {why}"),
            Ending::NotReverted(why) => format!("it has switched, and cannot go back: {why}"),
            Ending::Untouched => "its turn did not come".to_owned(),
        }
    }

    fn row(&self, now: &Result<State>) -> String {
        let live = match now {
            Ok(State { live: None, .. }) => "nothing is live".to_owned(),
            Ok(state) => format!("{} {}", live(state), verb(state)),
            Err(_) => "cannot be reached".to_owned(),
        };
        let explanation = self.explanation().replace('\n', "\n    ");
        format!("\n  {}: {live}; {explanation}", self.host.name())
    }

    fn json(&self, now: Option<&Result<State>>) -> String {
        let text = |text: Option<String>| text.map_or("null".to_owned(), |it| json::string(&it));
        let live = match now {
            None => Some(self.version.to_string()),
            Some(Ok(state)) => state.live.as_ref().map(Version::to_string),
            Some(Err(_)) => None,
        };
        let unreachable = now.and_then(|now| now.as_ref().err());
        let unreachable = unreachable.map(|error| format!("{error:#}"));
        let why = self.ending.why().map(str::to_owned);
        let errors: Vec<String> = why.into_iter().chain(unreachable).collect();
        json::object([
            ("host", json::string(self.host.name())),
            ("live", text(live)),
            ("outcome", json::string(self.ending.word())),
            (
                "error",
                text((!errors.is_empty()).then(|| errors.join("; "))),
            ),
        ])
    }

    /// For a target with a single host.
    fn error(&self, now: &Result<State>) -> anyhow::Error {
        let (host, version) = (self.host.name(), self.version);
        match &self.ending {
            Ending::Failed(why) => anyhow!(
                "{version} did not become live on {host}: {why}\n{}{}",
                what_serves(now),
                hint_at_environment(self.host, why)
            ),
            ending => anyhow!(
                "activation of {version} on {host}: {}\n\
                 hint: `cargo xtask status {}` shows what is live",
                ending.why().unwrap_or_else(|| ending.word()),
                self.host.target.name
            ),
        }
    }
}

impl Report<'_> {
    /// Prints the version if it is live on all hosts, else returns an error. Prints JSON in
    /// both cases if that is wanted.
    pub fn conclude(&self, json: bool) -> Result<()> {
        let states = self.states_if_failed();
        match (json, self.hosts.last()) {
            (true, _) => println!("{}", self.json(&states)),
            (false, Some(last)) if states.is_empty() => println!("{}", last.version),
            _ => {}
        }
        self.result_with(&states)
    }

    /// An error unless the version is live on all hosts.
    pub fn result(&self) -> Result<()> {
        self.result_with(&self.states_if_failed())
    }

    fn result_with(&self, states: &[Result<State>]) -> Result<()> {
        match states.is_empty() {
            true => Ok(()),
            false => Err(self.error(states)),
        }
    }

    fn states_if_failed(&self) -> Vec<Result<State>> {
        match self.hosts.iter().all(|it| it.ending.is_good()) {
            true => Vec::new(),
            false => parallel_map(&self.hosts, |it| it.host.state()),
        }
    }

    fn json(&self, states: &[Result<State>]) -> String {
        let target = self.hosts.first().map_or("", |it| it.host.target.name);
        let hosts = self.hosts.iter().enumerate();
        json::object([
            ("target", json::string(target)),
            (
                "hosts",
                json::array(hosts.map(|(n, it)| it.json(states.get(n)))),
            ),
        ])
    }

    fn error(&self, states: &[Result<State>]) -> anyhow::Error {
        if let ([only], [now]) = (&self.hosts[..], states) {
            return only.error(now);
        }
        let rows = self.hosts.iter().zip(states).map(|(it, now)| it.row(now));
        let rows: String = rows.collect();
        let target = self.hosts[0].host.target.name;
        let hint = match are_equal(states) {
            true => String::new(),
            false => format!(
                "\nhint: `cargo xtask deploy {target}` or `cargo xtask rollback {target} --to VERSION` \
                 makes the hosts equal"
            ),
        };
        anyhow!("{}; now:{rows}{hint}", self.stopped)
    }
}

fn are_equal(states: &[Result<State>]) -> bool {
    let live = |now: &Result<State>| now.as_ref().ok().map(|state| state.live.clone());
    let first = states.first().and_then(live);
    first.is_some() && states.iter().all(|now| live(now) == first)
}

fn live(state: &State) -> String {
    state
        .live
        .as_ref()
        .map(Version::to_string)
        .unwrap_or_default()
}

fn verb(state: &State) -> &'static str {
    match state.healthy {
        true => "is live",
        false => "is live, but does not serve",
    }
}

fn what_serves(now: &Result<State>) -> String {
    match now {
        Ok(State { live: None, .. }) => "nothing is live there".to_owned(),
        Ok(state) if state.healthy => format!("{} still serves", live(state)),
        Ok(state) => format!(
            "{} is still the live version, but does not serve",
            live(state)
        ),
        Err(error) => format!("the host does not report what is live: {error:#}"),
    }
}

/// For an app that exits because it lacks a variable.
fn hint_at_environment(host: &Host, reason: &str) -> String {
    if !reason.starts_with("it was not ready") && !reason.starts_with("it exited") {
        return String::new();
    }
    let admin = match host.remote {
        Some(_) => " --as root",
        None => "",
    };
    format!(
        "\nhint: if it lacks a variable: `cargo xtask env {} set NAME{admin}`",
        host.target.name
    )
}
