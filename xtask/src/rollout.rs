//! Activations on all hosts of a target: the hosts of a group get the new version ready
//! together, then switch one by one. If one fails, those that have switched go back.

use std::{
    env,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::{consts::SIGINT, flag};
use xshell::{Shell, cmd};

use crate::{
    activation::{Activation, Decision, Mode, Outcome, Phase},
    config::CANARY_SECS,
    host::Host,
    parallel::parallel_map,
    report::{Ending, HostReport, Report},
    server_files::check_script,
    state::State,
    terminal,
    version::Version,
};

/// How often a host is looked at while it is watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// As a goal for `follow`, which compares ranks: any outcome.
const ENDED: Phase = Phase::Ended(Outcome::Unknown);

/// Which version shall become live on which host.
pub struct Job<'a> {
    pub host: &'a Host<'a>,
    /// The host's state before.
    pub before: &'a State,
    pub version: &'a Version,
    pub sha256: &'a str,
    /// Then the host is left alone.
    pub is_live_already: bool,
}

impl<'a> Job<'a> {
    /// For a version that was live there before.
    pub fn again(host: &'a Host<'a>, before: &'a State, version: &'a Version) -> Result<Job<'a>> {
        Ok(Job {
            host,
            before,
            version,
            sha256: before.sha256(version)?,
            is_live_already: false,
        })
    }
}

/// Activates each job's version on its host. With `keep`, hosts that have switched stay
/// so if another one fails.
pub fn run<'a>(sh: &Shell, jobs: &'a [Job<'a>], keep: bool) -> Result<Report<'a>> {
    let to_do: Vec<&Job> = jobs.iter().filter(|job| !job.is_live_already).collect();
    if to_do.len() > 1 {
        let checked = to_do.iter().map(|job| check_script(job.host, job.before));
        checked
            .collect::<Result<()>>()
            .context("nothing was changed")?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register(SIGINT, Arc::clone(&interrupted))?;
    let rollout = Rollout {
        by: user_at_machine(sh)?,
        several_hosts: to_do.len() > 1,
        can_wait: to_do.len() > 1 && to_do.iter().all(|job| job.host.target.overlap),
        interrupted,
        keep,
    };
    let mut endings = rollout.run(&to_do).into_iter();
    let stopped = rollout.why_stopped(&to_do, endings.as_slice());
    let hosts = jobs.iter().map(|job| HostReport {
        host: job.host,
        version: job.version,
        ending: match job.is_live_already {
            true => Ending::LiveAlready,
            false => endings.next().unwrap_or(Ending::Untouched),
        },
    });
    Ok(Report {
        hosts: hosts.collect(),
        stopped,
    })
}

struct Rollout {
    /// USER@MACHINE, for the history.
    by: String,
    several_hosts: bool,
    /// Whether a host can have the new version ready and wait for the others. Without
    /// overlap it would be down meanwhile.
    can_wait: bool,
    /// By Ctrl-C. Then no other host is switched, and none goes back: the user decides.
    interrupted: Arc<AtomicBool>,
    keep: bool,
}

impl Rollout {
    fn run(&self, jobs: &[&Job]) -> Vec<Ending> {
        let mut endings = Vec::new();
        for group in self.groups(jobs) {
            let is_canary = endings.is_empty() && group.len() < jobs.len();
            let mut ended = self.switch(group);
            if self.several_hosts && all_good(&ended) {
                let watched = if is_canary { CANARY_SECS } else { 0 };
                self.watch(group, watched, &mut ended);
            }
            endings.append(&mut ended);
            if !all_good(&endings) || self.is_interrupted() {
                break;
            }
        }
        if !all_good(&endings) && !self.keep && !self.is_interrupted() {
            self.go_back(jobs, &mut endings);
        }
        endings
    }

    /// The hosts that get ready together.
    fn groups<'a, 'b>(&self, jobs: &'a [&'b Job<'b>]) -> Vec<&'a [&'b Job<'b>]> {
        let batch = jobs.first().and_then(|job| job.host.target.batch);
        match batch {
            _ if !self.can_wait => jobs.chunks(1).collect(),
            None => vec![jobs],
            Some(batch) => {
                let (canary, others) = jobs.split_at(1);
                [canary]
                    .into_iter()
                    .chain(others.chunks(batch.max(1)))
                    .collect()
            }
        }
    }

    fn switch(&self, group: &[&Job]) -> Vec<Ending> {
        match group {
            [job] if !self.can_wait => vec![self.activate(job)],
            _ => self.switch_one_by_one(self.get_all_ready(group)),
        }
    }

    fn activate(&self, job: &Job) -> Ending {
        match self.request(job, Mode::CommitAtOnce) {
            Ok(activation) => self.follow_to_end(activation),
            Err(error) => Ending::Failed(format!("{error:#}")),
        }
    }

    fn request<'b>(&'b self, job: &'b Job<'b>, mode: Mode) -> Result<Activation<'b>> {
        Activation::request(job, &self.by, mode, self.several_hosts, &self.interrupted)
    }

    /// Starts the new version on all hosts and waits until each is ready. If several clients
    /// deploy at once, one has to win everywhere, so all of them first lock the host whose
    /// name sorts first. `None`: not tried, because that lock failed.
    fn get_all_ready<'b>(&'b self, group: &[&'b Job<'b>]) -> Vec<Option<Result<Activation<'b>>>> {
        let first = (0..group.len()).min_by_key(|&n| group[n].host.name());
        let mut locked = first.map(|n| self.request_up_to(group[n], &Phase::Running));
        let has_lock = matches!(&locked, Some(Ok(it)) if it.phase == Phase::Running);
        let jobs: Vec<_> = (group.iter().enumerate())
            .map(|(n, job)| (*job, locked.take_if(|_| Some(n) == first)))
            .collect();
        parallel_map(jobs, |(job, locked)| match locked {
            _ if !has_lock => locked,
            None => Some(self.request_up_to(job, &Phase::AwaitingCommit)),
            Some(locked) => Some(locked.and_then(|it| follow(it, &Phase::AwaitingCommit))),
        })
    }

    fn request_up_to<'b>(&'b self, job: &'b Job<'b>, until: &Phase) -> Result<Activation<'b>> {
        follow(self.request(job, Mode::AwaitCommit)?, until)
    }

    /// Commits in the target's order if all are ready, up to the first that fails.
    fn switch_one_by_one(&self, ready: Vec<Option<Result<Activation>>>) -> Vec<Ending> {
        let mut go_on = ready.iter().all(is_ready);
        let mut ready = ready.into_iter().peekable();
        let mut endings = Vec::new();
        while let Some(Some(Ok(mut next))) = ready.next_if(|_| go_on && !self.is_interrupted()) {
            next.decide(Decision::Commit);
            let ending = self.follow_to_end(next);
            go_on = ending == Ending::Live;
            endings.push(ending);
        }
        endings.extend(parallel_map(ready, |it| self.cancel(it)));
        endings
    }

    fn follow_to_end(&self, mut activation: Activation) -> Ending {
        if let Err(error) = activation.follow(&ENDED) {
            return Ending::Unknown(format!("{error:#}"));
        }
        let Job { host, version, .. } = activation.job;
        match &activation.phase {
            Phase::Ended(Outcome::Live) => {
                let url = host.url(&activation.job.before.address);
                terminal::step("Live", &format!("{version} at {url}"));
                Ending::Live
            }
            Phase::Ended(Outcome::Failed(reason)) => Ending::Failed(reason.clone()),
            Phase::Ended(Outcome::Unknown) => Ending::Unknown("outcome unknown".to_owned()),
            _ => self.lost(&activation),
        }
    }

    fn lost(&self, activation: &Activation) -> Ending {
        let what = match self.is_interrupted() {
            true => "stopped following",
            false => "connection lost",
        };
        Ending::Unknown(format!("{what}; {}", activation.what_the_host_does_alone()))
    }

    fn cancel(&self, ready: Option<Result<Activation>>) -> Ending {
        let mut activation = match ready {
            None => return Ending::Untouched,
            Some(Err(error)) => return Ending::Failed(format!("{error:#}")),
            Some(Ok(activation)) => activation,
        };
        if let Phase::Ended(_) = activation.phase {
            return self.follow_to_end(activation);
        }
        let was_ready = activation.phase == Phase::AwaitingCommit;
        match activation.cancel() {
            Err(error) => Ending::Unknown(format!("{error:#}")),
            Ok(()) if !matches!(activation.phase, Phase::Ended(_)) => self.lost(&activation),
            Ok(()) if was_ready || self.is_interrupted() => Ending::Cancelled,
            Ok(()) => Ending::Failed("connection lost".to_owned()),
        }
    }

    /// Looks at hosts that have switched, once and then each second for `secs`, to see
    /// whether the version is still well there.
    fn watch(&self, group: &[&Job], secs: u32, endings: &mut [Ending]) {
        if secs > 0 {
            let hosts: Vec<_> = group.iter().map(|job| job.host.name()).collect();
            let text = format!("{} for {secs} s before the other hosts", hosts.join(", "));
            terminal::step("Watching", &text);
        }
        let end = Instant::now() + Duration::from_secs(secs.into());
        loop {
            let problems = parallel_map(group, |job| problem(job));
            if self.is_interrupted() {
                return;
            }
            for (ending, problem) in endings.iter_mut().zip(problems) {
                if let Some(problem) = problem {
                    *ending = Ending::Unhealthy(problem);
                }
            }
            if !all_good(endings) || Instant::now() >= end {
                return;
            }
            sleep(WATCH_INTERVAL);
        }
    }

    fn go_back(&self, jobs: &[&Job], endings: &mut [Ending]) {
        let switched: Vec<_> = (jobs.iter().zip(endings))
            .filter(|(_, ending)| ending.has_switched())
            .collect();
        if !switched.is_empty() {
            terminal::step("Reverting", "the hosts that have switched");
            parallel_map(switched, |(job, ending)| *ending = self.revert(job, ending));
        }
    }

    fn revert(&self, job: &Job, ending: &Ending) -> Ending {
        let reverted = state_to_revert(job).and_then(|now| {
            // The state is older than the switch, so this is what was live then.
            let was_live = job.before.live.as_ref();
            let was_live = was_live.context("nothing was live there before")?;
            Ok(self.activate(&Job::again(job.host, &now, was_live)?))
        });
        match reverted {
            Ok(Ending::Live) => Ending::Reverted(ending.why().map(str::to_owned)),
            Ok(Ending::Failed(why)) => Ending::NotReverted(why),
            Ok(other) => other,
            Err(error) => Ending::NotReverted(format!("{error:#}")),
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Relaxed)
    }

    fn why_stopped(&self, jobs: &[&Job], endings: &[Ending]) -> String {
        let failed = jobs
            .iter()
            .zip(endings)
            .filter(|(_, ending)| ending.is_failure());
        let failed: Vec<_> = failed.map(|(job, _)| job.host.name()).collect();
        let mut text = match failed.is_empty() {
            true => "the rollout stopped".to_owned(),
            false => format!("the rollout failed on {}", failed.join(", ")),
        };
        if self.is_interrupted() {
            text = "interrupted, so no other host was switched or taken back".to_owned();
        } else if self.keep && endings.iter().any(Ending::has_switched) {
            text += ", and the hosts that had switched stay so";
        } else if endings.iter().any(|it| matches!(it, Ending::Reverted(_))) {
            text += ", and the hosts that had switched went back";
        }
        text
    }
}

fn all_good(endings: &[Ending]) -> bool {
    endings.iter().all(Ending::is_good)
}

fn is_ready(activation: &Option<Result<Activation>>) -> bool {
    matches!(activation, Some(Ok(it)) if it.phase == Phase::AwaitingCommit)
}

fn follow<'a>(mut activation: Activation<'a>, until: &Phase) -> Result<Activation<'a>> {
    activation.follow(until)?;
    Ok(activation)
}

fn problem(job: &Job) -> Option<String> {
    let problem = match job.host.state() {
        Err(_) => "it cannot be reached any more",
        Ok(now) if now.live.as_ref() != Some(job.version) => "another version is live now",
        Ok(now) if !now.healthy => "it does not serve any more",
        Ok(now) if now.restarts > 0 => "it exited and was restarted",
        Ok(_) => return None,
    };
    Some(problem.to_owned())
}

/// Somebody else's activation is not undone.
fn state_to_revert(job: &Job) -> Result<State> {
    let now = job.host.state()?;
    if let Some(busy) = &now.busy {
        bail!("another activation is under way (since, version, by): {busy}");
    }
    ensure!(
        now.live.as_ref() == Some(job.version),
        "another version is live now"
    );
    Ok(now)
}

/// USER@MACHINE, in characters that the host accepts.
pub fn user_at_machine(sh: &Shell) -> Result<String> {
    let user = env::var("USER").or_else(|_| cmd!(sh, "id -un").quiet().read())?;
    let machine = cmd!(sh, "uname -n").quiet().read()?;
    let safe = |c: char| match c {
        '.' | '_' | '-' => c,
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    let part = |text: &str| text.chars().map(safe).take(40).collect::<String>();
    Ok(format!("{}@{}", part(&user), part(&machine)))
}
