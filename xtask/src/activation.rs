//! Making a version live, as seen by who asks for it. Each host does that by itself;
//! here it is only asked for, and followed.

use std::{
    env,
    io::{BufRead, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use signal_hook::{consts::SIGINT, flag};
use xshell::{Shell, cmd};

use crate::{
    host::{Host, LINE_LOST, Session, at_once},
    setup,
    state::State,
    ui,
    version::Version,
};

/// What shall become live where.
pub struct Wanted<'a> {
    pub host: &'a Host,
    /// As it was before.
    pub state: &'a State,
    pub version: &'a Version,
    pub sha256: &'a str,
}

impl<'a> Wanted<'a> {
    /// For a version that was live there before.
    pub fn again(host: &'a Host, state: &'a State, version: &'a Version) -> Result<Wanted<'a>> {
        Ok(Wanted {
            host,
            state,
            version,
            sha256: state.sha256(version)?,
        })
    }
}

/// Asks each host to make its version live, and waits for the verdicts. The hosts switch
/// one after the other, and none does before it is ready on all of them.
pub fn activate(sh: &Shell, wanted: &[Wanted]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register(SIGINT, Arc::clone(&interrupted))?;
    let asker = Asker {
        by: who(sh)?,
        interrupted,
        many: wanted.len() > 1,
    };
    match wanted {
        [only] => asker.ask(only, false)?.finish(),
        // One that cannot run twice would be down while it waits for the others.
        _ if wanted.iter().any(|it| !it.host.overlap) => wanted
            .iter()
            .try_for_each(|it| asker.ask(it, false)?.finish()),
        _ => asker.activate_together(wanted),
    }
    .map_err(|error| {
        if asker.many {
            error.context(what_is_live(wanted))
        } else {
            error
        }
    })
}

struct Asker {
    by: String,
    interrupted: Arc<AtomicBool>,
    many: bool,
}

impl Asker {
    /// Begins an activation. One that is `held` asks before it commits.
    fn ask<'a>(&'a self, wanted: &'a Wanted<'a>, held: bool) -> Result<Activation<'a>> {
        let version = wanted.version.to_string();
        let mut args = vec!["activate", &version, wanted.sha256, &self.by];
        args.extend(held.then_some("held"));
        Ok(Activation {
            asker: self,
            wanted,
            held,
            answer: None,
            name: None,
            has_begun: false,
            read: 0,
            again: 0,
            session: wanted.host.talk(&args)?,
        })
    }

    fn activate_together(&self, wanted: &[Wanted]) -> Result<()> {
        for it in wanted {
            setup::check(it.host, it.state)?;
        }
        // Of several people who deploy at once it goes on for who has this one's lock.
        let first = (0..wanted.len()).min_by_key(|&n| &wanted[n].host.name);
        let first = first.context("a target has a host")?;
        let mut activation = self.ask(&wanted[first], true)?;
        let end = activation.follow("Locked");
        if end != End::Said {
            return activation.give_up(end);
        }
        let mut begun = Some(activation);
        let all = wanted.iter().enumerate();
        let all = all.map(|(n, it)| (it, begun.take_if(|_| n == first)));
        let ready = at_once(all, |(it, begun)| {
            let mut activation = match begun {
                Some(begun) => begun,
                None => self.ask(it, true)?,
            };
            let end = activation.follow("Ready");
            Ok((activation, end))
        });
        self.switch_one_by_one(ready)
    }

    /// Commits in this order, if all are ready, and up to the first that fails.
    fn switch_one_by_one(&self, ready: Vec<Result<(Activation, End)>>) -> Result<()> {
        let is_ready = |it: &Result<(Activation, End)>| matches!(it, Ok((_, End::Said)));
        let mut go_on = ready.iter().all(is_ready);
        let (mut outcome, mut called_off) = (Ok(()), Ok(()));
        for it in ready {
            go_on = go_on && !self.interrupted.load(Relaxed);
            let switched = match it {
                Ok((mut activation, End::Said)) if go_on => {
                    activation.answer("commit");
                    activation.finish()
                }
                Ok((activation, End::Said)) => {
                    called_off = called_off.and(activation.give_up(End::Said));
                    Ok(())
                }
                Ok((activation, end)) => activation.give_up(end),
                Err(error) => Err(error),
            };
            go_on = go_on && switched.is_ok();
            outcome = outcome.and(switched);
        }
        // Why others were called off says more than that they were.
        outcome.and(called_off)
    }
}

/// One attempt to make a version live.
struct Activation<'a> {
    asker: &'a Asker,
    wanted: &'a Wanted<'a>,
    /// It waits for our word, and what that was.
    held: bool,
    answer: Option<&'static str>,
    /// What its host calls it, once it has said so.
    name: Option<String>,
    /// It is its turn.
    has_begun: bool,
    /// How many lines of it were read, and how many of these come once more.
    read: usize,
    again: usize,
    session: Session,
}

/// How the following of an activation ends.
#[derive(PartialEq)]
enum End {
    /// It has said what was waited for.
    Said,
    Verdict(String),
    /// It ended without a verdict, as in a power cut.
    Silence,
    LineLost,
}

/// How long a lost line is tried again.
const RECONNECTING: Duration = Duration::from_secs(120);

impl<'a> Activation<'a> {
    fn finish(mut self) -> Result<()> {
        let end = self.follow("verdict");
        self.conclude(end)
    }

    /// One that is held, and shall not go on, since others are not ready or we leave.
    fn give_up(mut self, end: End) -> Result<()> {
        if !matches!(end, End::Said | End::LineLost) {
            return self.conclude(end);
        }
        // Tried twice: one that does not hear of it gives up by itself in a minute.
        self.answer("cancel");
        let lost = end == End::LineLost || self.last_words() == End::LineLost;
        if lost && self.reconnect().is_ok() {
            self.last_words();
        }
        let why = if end == End::LineLost {
            "the line was lost, and "
        } else {
            ""
        };
        let Wanted { version, host, .. } = self.wanted;
        bail!(
            "{why}the activation of {version} on {} was called off",
            host.name
        )
    }

    /// Of one that was called off. One that waits for others hears of it only then.
    fn last_words(&mut self) -> End {
        if self.has_begun {
            self.read("verdict")
        } else {
            End::Said
        }
    }

    /// Shows what it says, up to this word or its end; also when the line is lost.
    fn follow(&mut self, word: &str) -> End {
        let host = self.wanted.host;
        let mut end = self.read(word);
        let is_left = || self.asker.interrupted.load(Relaxed);
        if end != End::LineLost || self.name.is_none() || host.remote.is_none() || is_left() {
            return end;
        }
        let then = if self.held && self.answer.is_none() {
            "it is called off there, unless it is back within a minute"
        } else {
            "the activation goes on by itself"
        };
        ui::warning(&format!("the line to {} was lost; {then}", host.name));
        let mut deadline = Instant::now() + RECONNECTING;
        while end == End::LineLost && !is_left() && Instant::now() <= deadline {
            sleep(Duration::from_secs(1));
            if self.reconnect().is_ok() {
                end = self.read(word);
                deadline = Instant::now() + RECONNECTING;
            }
        }
        end
    }

    fn reconnect(&mut self) -> Result<()> {
        let name = self.name.as_deref().context("it has no name yet")?;
        self.wanted.host.hang_up();
        self.session = self.wanted.host.talk(&["follow", name])?;
        self.again = self.read;
        self.say_answer();
        Ok(())
    }

    fn read(&mut self, until: &str) -> End {
        let mut line = Vec::new();
        // A line without an end is one that was cut.
        while let Ok(1..) = self.session.output.read_until(b'\n', &mut line)
            && line.pop() == Some(b'\n')
        {
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
            if self.again > 0 {
                self.again -= 1;
                continue;
            }
            self.read += usize::from(word != "activation");
            let place = self.wanted.host.place(self.asker.many);
            match word {
                "verdict" => return End::Verdict(rest.to_owned()),
                "activation" => self.name = Some(rest.to_owned()),
                "Locked" => self.has_begun = true,
                "worker" | "Ready" => {}
                "Installing" | "Starting" | "Watching" | "Waiting" | "Stopping" => {
                    ui::step(word, &format!("{rest}{place}"));
                }
                "Warning" => ui::warning(&format!("{rest}{place}")),
                "|" => ui::quote(&format!("{rest}{place}")),
                _ => ui::quote(&format!("{text}{place}")),
            }
            if word == until {
                return End::Said;
            }
        }
        match self.session.code() {
            None | Some(LINE_LOST) => End::LineLost,
            _ => End::Silence,
        }
    }

    /// To one that is held.
    fn answer(&mut self, word: &'static str) {
        self.answer = Some(word);
        self.say_answer();
    }

    /// Once more where the line was lost; whoever has heard it listens no more.
    fn say_answer(&mut self) {
        if let Some(word) = self.answer {
            let _ = writeln!(self.session.input, "{word}");
        }
    }

    fn conclude(&self, end: End) -> Result<()> {
        let Wanted {
            host,
            version,
            state,
            ..
        } = self.wanted;
        let verdict = match end {
            End::Verdict(verdict) => Some(verdict),
            _ => self.recorded(),
        };
        match verdict.as_deref() {
            Some("live") => {
                ui::step("Live", &format!("{version} at {}", host.url(&state.listen)));
                Ok(())
            }
            Some(failed) => bail!(
                "{version} did not become live on {}: {}\n{}",
                host.name,
                failed.strip_prefix("failed ").unwrap_or(failed),
                what_still_serves(host)
            ),
            None => {
                let what = if self.asker.interrupted.load(Relaxed) {
                    "no longer following; it goes on by itself"
                } else {
                    "it was asked for, but its verdict is not known here"
                };
                bail!(
                    "the activation of {version} on {}: {what}\n\
                     hint: `cargo xtask status {}` tells what is live",
                    host.name,
                    host.target
                )
            }
        }
    }

    /// For one whose words did not arrive, as from a host with a full disk.
    fn recorded(&self) -> Option<String> {
        let Wanted {
            host,
            version,
            state,
            ..
        } = self.wanted;
        let now = host.state().ok()??;
        let last = now
            .activations
            .get(state.activations.len()..)?
            .iter()
            .rfind(|it| it.version == **version)?;
        Some(match last.verdict() {
            "live" => "live".to_owned(),
            _ => format!(
                "failed for a reason that did not arrive\nhint: `cargo xtask logs {}`",
                host.target
            ),
        })
    }
}

fn what_still_serves(host: &Host) -> String {
    match host.known_state() {
        Ok(State {
            live: Some(live),
            healthy: true,
            ..
        }) => format!("{live} still serves"),
        Ok(State {
            live: Some(live), ..
        }) => format!("{live} is still the live version, but does not serve"),
        Ok(_) => "nothing is live there".to_owned(),
        Err(error) => format!("what is live there is not known: {error:#}"),
    }
}

fn what_is_live(wanted: &[Wanted]) -> String {
    let line = |it: &Wanted| match it.host.known_state() {
        Ok(State {
            live: Some(live), ..
        }) => format!("\n  {}: {live} is live", it.host.name),
        Ok(_) => format!("\n  {}: nothing is live", it.host.name),
        Err(_) => format!("\n  {}: not known", it.host.name),
    };
    format!(
        "stopped there; now it stands like this:{}\nbecause",
        wanted.iter().map(line).collect::<String>()
    )
}

/// USER@MACHINE, in letters that the host accepts.
fn who(sh: &Shell) -> Result<String> {
    let user = env::var("USER").or_else(|_| cmd!(sh, "id -un").quiet().read())?;
    let machine = cmd!(sh, "uname -n").quiet().read()?;
    let known = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let part = |text: &str| text.chars().map(known).take(40).collect::<String>();
    Ok(format!("{}@{}", part(&user), part(&machine)))
}
