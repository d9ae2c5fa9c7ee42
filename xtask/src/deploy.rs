//! `deploy`: build, upload, activate.

use std::{env, fmt, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use xshell::Shell;

use crate::{
    activation, build,
    config::{NAME, Target},
    host::Host,
    setup,
    state::State,
    ui,
    version::{self, Commit, Version},
};

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    at: crate::TargetAndListen,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Deploy a tree that differs from its commit to other machines, too
    #[arg(long)]
    allow_dirty: bool,
    #[command(flatten)]
    with: build::With,
}

pub fn deploy(sh: &Shell, flags: &Flags) -> Result<()> {
    let target = flags.at.target()?;
    let commit = version::commit(sh)?;
    refuse_dirty(&commit, target.is_local() || flags.allow_dirty)?;
    let hosts = Host::all(sh, &target);
    let steps = steps(&hosts);
    if flags.dry_run {
        steps
            .iter()
            .for_each(|step| ui::step("Would", &step.to_string()));
        return Ok(());
    }
    let arch = env::consts::ARCH.to_owned();
    let mut deploy = Deploy {
        sh,
        flags,
        target,
        commit,
        arch,
        built: None,
        live: None,
    };
    for step in &steps {
        let done = deploy.run(step);
        done.map_err(|error| {
            if hosts.len() > 1 {
                error.context(what_is_live(&hosts))
            } else {
                error
            }
        })?;
    }
    println!("{}", deploy.live.context("a target has a host")?);
    Ok(())
}

fn refuse_dirty(commit: &Commit, allowed: bool) -> Result<()> {
    ensure!(
        allowed || !commit.dirty,
        "the tree differs from its commit {commit}, so nobody could tell what was deployed\n\
         hint: commit, or `--allow-dirty`"
    );
    Ok(())
}

/// What a deploy does, shown or done in this order: all is looked at before any is
/// touched, and all is sent before any is switched.
enum Step<'a> {
    Prepare(&'a Host),
    Build,
    Upload(&'a Host),
    Activate(&'a Host),
}

fn steps(hosts: &[Host]) -> Vec<Step<'_>> {
    let mut steps: Vec<Step> = hosts.iter().map(Step::Prepare).collect();
    steps.push(Step::Build);
    steps.extend(hosts.iter().map(Step::Upload));
    steps.extend(hosts.iter().map(Step::Activate));
    steps
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Prepare(Host {
                remote: Some(name), ..
            }) => write!(f, "look whether {name} is ready"),
            Step::Prepare(host) => write!(
                f,
                "set up {} where that is needed",
                host.directory.display()
            ),
            Step::Build => write!(f, "build {NAME}"),
            Step::Upload(host) => write!(
                f,
                "upload it to {}, unless these very bytes are live",
                host.name
            ),
            Step::Activate(host) => write!(
                f,
                "activate it on {}, unless these very bytes are live",
                host.name
            ),
        }
    }
}

struct Deploy<'a> {
    sh: &'a Shell,
    flags: &'a Flags,
    target: Target<'a>,
    commit: Commit,
    arch: String,
    built: Option<Built>,
    live: Option<Version>,
}

struct Built {
    binary: PathBuf,
    sha256: String,
    version: Version,
}

impl Deploy<'_> {
    fn run(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Prepare(host) if host.remote.is_some() => self.check(host),
            Step::Prepare(host) => setup::prepare(self.sh, host).map(drop),
            Step::Build => self.build(),
            Step::Upload(host) => self.upload(host),
            Step::Activate(host) => self.activate(host),
        }
    }

    fn check(&mut self, host: &Host) -> Result<()> {
        let state = host.known_state()?;
        setup::check(host, &state)?;
        ensure!(
            state.free > ENOUGH,
            "{} has {} MB left; nothing was changed",
            host.name,
            state.free / 1_000_000
        );
        self.arch = state.arch;
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let binary = build::build(self.sh, &self.target, &self.arch, &self.flags.with)?;
        let bytes =
            fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let built = fs::metadata(&binary)?.modified()?;
        let sha256 = version::sha256(&bytes);
        let version = Version::new(built, self.commit.clone(), &sha256);
        self.built = Some(Built {
            binary,
            sha256,
            version,
        });
        Ok(())
    }

    fn upload(&self, host: &Host) -> Result<()> {
        let built = self.built()?;
        let state = host.known_state()?;
        if is_live(&state, built) || state.versions.contains(&built.version) {
            return Ok(());
        }
        if host.remote.is_some() {
            ui::step("Uploading", &format!("{} to {}", built.version, host.name));
        }
        host.upload(&built.binary, &built.version, state.live.as_ref())
    }

    fn activate(&mut self, host: &Host) -> Result<()> {
        let built = self.built()?;
        let state = host.known_state()?;
        if let Some(live) = state.live.as_ref().filter(|_| is_live(&state, built)) {
            ui::step(
                "Live",
                &format!("{live} on {} already: the same bytes", host.name),
            );
            self.live = Some(live.clone());
            return Ok(());
        }
        activation::activate(self.sh, host, &built.version, &built.sha256)?;
        ui::step(
            "Live",
            &format!("{} at {}", built.version, host.url(&state.listen)),
        );
        self.live = Some(built.version.clone());
        Ok(())
    }

    fn built(&self) -> Result<&Built> {
        self.built.as_ref().context("nothing was built")
    }
}

/// Room for an upload and its installed copy, in bytes.
const ENOUGH: u64 = 30_000_000;

fn is_live(state: &State, built: &Built) -> bool {
    state.healthy
        && state
            .live
            .as_ref()
            .is_some_and(|live| live.is_of(&built.sha256))
}

fn what_is_live(hosts: &[Host]) -> String {
    let line = |host: &Host| match host.known_state() {
        Ok(State {
            live: Some(live), ..
        }) => format!("\n  {}: {live} is live", host.name),
        Ok(_) => format!("\n  {}: nothing is live", host.name),
        Err(_) => format!("\n  {}: not known", host.name),
    };
    format!(
        "stopped there; now it stands like this:{}\nbecause",
        hosts.iter().map(line).collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_tree_is_refused_unless_allowed() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let clean = version("20261122T183012Z-1a2b3c4d5e6f-9f86d081884c").commit;
        let dirty = version("20261122T183012Z-1a2b3c4d5e6f-dirty-9f86d081884c").commit;
        assert!(refuse_dirty(&clean, false).is_ok());
        assert!(refuse_dirty(&dirty, true).is_ok());
        let refusal = refuse_dirty(&dirty, false).unwrap_err().to_string();
        assert!(refusal.contains("1a2b3c4d5e6f-dirty") && refusal.contains("--allow-dirty"));
    }
}
