//! One activation on one host, as the client sees it: it is requested here, carried out by
//! the host, and followed by its output. If the connection is lost, the host goes on alone.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{rollout::Job, session::Session, ssh, terminal};

/// A lost connection is opened again for this long.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// What the activation has reached, as far as the client knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// The host has not answered yet.
    Requested,
    /// The host has given it a name. It waits for activations before it.
    Queued,
    /// It has the host's lock.
    Running,
    /// The new version is ready. The host waits for the client's decision.
    AwaitingCommit,
    /// The client has decided.
    Decided(Decision),
    Ended(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    Commit,
    Cancel,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Live,
    Failed(String),
    /// It ended without a verdict that arrived here.
    Unknown,
}

/// Whether the host waits for the client's decision before it commits.
#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    CommitAtOnce,
    AwaitCommit,
}

/// Why the output of an activation ended.
#[derive(PartialEq)]
enum End {
    Reached,
    Exited,
    Disconnected,
}

pub struct Activation<'a> {
    pub job: &'a Job<'a>,
    pub phase: Phase,
    mode: Mode,
    /// The host's name for it.
    name: Option<String>,
    session: Session,
    /// After a reconnection the host repeats its output from the start.
    lines_read: usize,
    lines_to_skip: usize,
    /// Behind each line, where several hosts are followed.
    suffix: String,
    interrupted: &'a AtomicBool,
}

impl Phase {
    fn rank(&self) -> u8 {
        match self {
            Phase::Requested => 0,
            Phase::Queued => 1,
            Phase::Running => 2,
            Phase::AwaitingCommit => 3,
            Phase::Decided(_) => 4,
            Phase::Ended(_) => 5,
        }
    }

    pub fn has_reached(&self, other: &Phase) -> bool {
        self.rank() >= other.rank()
    }
}

impl<'a> Activation<'a> {
    pub fn request(
        job: &'a Job<'a>,
        by: &str,
        mode: Mode,
        show_host: bool,
        interrupted: &'a AtomicBool,
    ) -> Result<Activation<'a>> {
        let version = job.version.to_string();
        let mut words = vec!["activate", &version, job.sha256, by];
        words.extend((mode == Mode::AwaitCommit).then_some("await-commit"));
        Ok(Activation {
            job,
            phase: Phase::Requested,
            mode,
            name: None,
            session: job.host.request(&words)?,
            lines_read: 0,
            lines_to_skip: 0,
            suffix: match show_host {
                true => format!(" on {}", job.host.name()),
                false => String::new(),
            },
            interrupted,
        })
    }

    /// Shows the output until the phase is reached or the activation has ended. Opens a
    /// lost connection again.
    pub fn follow(&mut self, until: &Phase) -> Result<()> {
        let mut end = self.read(until)?;
        if end == End::Disconnected && self.can_reconnect() {
            self.warn_of_lost_connection();
            end = self.reconnect_and_read(until)?;
        }
        match end {
            End::Reached => {}
            // Nothing more will arrive, but the host may know how it ended.
            End::Exited => {
                let known = self.ask_for_outcome().unwrap_or(Outcome::Unknown);
                self.phase = Phase::Ended(known);
            }
            End::Disconnected if self.is_abandoned() => {}
            End::Disconnected => {
                if let Some(known) = self.ask_for_outcome() {
                    self.phase = Phase::Ended(known);
                }
            }
        }
        Ok(())
    }

    /// Tells the host whether to go on. Nothing happens if the host has ended already.
    pub fn decide(&mut self, decision: Decision) {
        if !matches!(self.phase, Phase::Ended(_)) {
            self.phase = Phase::Decided(decision);
            self.send_decision();
        }
    }

    /// Cancels it and waits until the host confirms, if it can be reached. If the host
    /// does not hear of it, it cancels by itself after a minute.
    pub fn cancel(&mut self) -> Result<()> {
        let was_running = self.phase.has_reached(&Phase::Running);
        self.decide(Decision::Cancel);
        let ended = Phase::Ended(Outcome::Unknown);
        // The host reads the decision only when it is this activation's turn.
        if was_running && self.read(&ended)? == End::Disconnected && self.reconnect().is_ok() {
            self.read(&ended)?;
        }
        Ok(())
    }

    fn reconnect_and_read(&mut self, until: &Phase) -> Result<End> {
        let mut deadline = Instant::now() + RECONNECT_TIMEOUT;
        loop {
            sleep(Duration::from_secs(1));
            if self.reconnect().is_ok() {
                match self.read(until)? {
                    End::Disconnected => deadline = Instant::now() + RECONNECT_TIMEOUT,
                    end => return Ok(end),
                }
            }
            if self.is_interrupted() || Instant::now() > deadline {
                return Ok(End::Disconnected);
            }
        }
    }

    fn reconnect(&mut self) -> Result<()> {
        let name = self.name.as_deref().context("it has no name yet")?;
        self.job.host.drop_connection();
        self.session = self.job.host.request(&["follow", name])?;
        self.lines_to_skip = self.lines_read;
        self.send_decision();
        Ok(())
    }

    /// Sent again after a reconnection; a host that has heard it ignores it.
    fn send_decision(&mut self) {
        match self.phase {
            Phase::Decided(Decision::Commit) => self.session.send_line("commit"),
            Phase::Decided(Decision::Cancel) => self.session.send_line("cancel"),
            _ => {}
        }
    }

    fn read(&mut self, until: &Phase) -> Result<End> {
        while !self.phase.has_reached(until) {
            match self.session.read_line()? {
                Some(_) if self.lines_to_skip > 0 => self.lines_to_skip -= 1,
                Some(line) => self.take(&line),
                None => {
                    return Ok(match self.session.exit_code() {
                        None | Some(ssh::DISCONNECTED) => End::Disconnected,
                        _ => End::Exited,
                    });
                }
            }
        }
        Ok(End::Reached)
    }

    fn take(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        // The name is the answer to the request, and not repeated.
        self.lines_read += usize::from(word != "activation");
        let text = format!("{rest}{}", self.suffix);
        match word {
            "activation" => {
                self.name = Some(rest.to_owned());
                self.advance(Phase::Queued);
            }
            "worker" => {}
            "Locked" => self.advance(Phase::Running),
            "Ready" => self.advance(Phase::AwaitingCommit),
            "verdict" => self.phase = Phase::Ended(Outcome::parse(rest)),
            "Waiting" | "Installing" | "Starting" | "Watching" | "Stopping" => {
                terminal::step(word, &text);
            }
            "Warning" => terminal::warning(&text),
            "|" => terminal::quote(&text),
            _ => terminal::quote(&format!("{line}{}", self.suffix)),
        }
    }

    /// A decision that was made meanwhile stays.
    fn advance(&mut self, phase: Phase) {
        if !self.phase.has_reached(&phase) {
            self.phase = phase;
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Relaxed)
    }

    /// Ctrl-C ends the following, except on a host that was told to commit: that takes a
    /// moment, and then it is known what is live there.
    fn is_abandoned(&self) -> bool {
        self.is_interrupted() && self.phase != Phase::Decided(Decision::Commit)
    }

    fn can_reconnect(&self) -> bool {
        self.name.is_some() && self.job.host.remote.is_some() && !self.is_abandoned()
    }

    fn warn_of_lost_connection(&self) {
        terminal::warning(&format!(
            "connection to {} lost; {}",
            self.job.host.name(),
            self.what_the_host_does_alone()
        ));
    }

    /// What the host does if it never hears of this client again.
    pub fn what_the_host_does_alone(&self) -> String {
        let version = self.job.version;
        match (self.mode, &self.phase) {
            (Mode::CommitAtOnce, _) => "the activation continues on the host".to_owned(),
            (_, Phase::Decided(Decision::Commit)) => format!(
                "if the commit arrived, {version} becomes live there; if not, the host cancels within a minute"
            ),
            _ => "the host cancels within a minute, since it was not told to commit".to_owned(),
        }
    }

    /// How the activation ended, by the host's history and by what is live there. `None` if
    /// the host cannot be reached or it may still be going on.
    fn ask_for_outcome(&self) -> Option<Outcome> {
        let Job {
            before, version, ..
        } = self.job;
        let now = self.job.host.state().ok()?;
        let recorded = now.last.filter(|last| before.last.as_ref() != Some(last));
        let is_live = match recorded.filter(|last| last.version == **version) {
            Some(record) => record.is_live,
            None if now.busy.is_some() || !self.phase.has_reached(&Phase::Running) => return None,
            // A restart does not change what is live.
            None if before.live.as_ref() == Some(version) => return None,
            // Its record is written by the next activation, for example after a power cut.
            None => now.live.as_ref() == Some(version),
        };
        Some(match is_live {
            true => Outcome::Live,
            false => Outcome::Failed(format!(
                "the reason did not arrive\nhint: `cargo xtask logs {}`",
                self.job.host.target.name
            )),
        })
    }
}

impl Outcome {
    fn parse(verdict: &str) -> Outcome {
        match verdict {
            "live" => Outcome::Live,
            failed => Outcome::Failed(failed.trim_start_matches("failed ").to_owned()),
        }
    }
}
