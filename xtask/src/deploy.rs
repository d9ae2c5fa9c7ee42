//! `deploy`: build, upload, activate.

use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xshell::Shell;

use crate::{
    activation::{self, Wanted},
    build,
    config::{NAME, Target},
    host::{Host, Session, all, at_once},
    setup,
    state::State,
    ui,
    upload::{self, Built},
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
    if flags.dry_run {
        plan(&hosts).for_each(|it| ui::step("Would", &it));
        return Ok(());
    }
    let deploy = Deploy {
        sh,
        target,
        with: &flags.with,
        commit,
        hosts: &hosts,
    };
    let (looks, built) = deploy.look_and_build()?;
    let (states, receivers): (Vec<_>, Vec<_>) = looks.into_iter().unzip();
    deploy.upload(&states, receivers, &built)?;
    let live = deploy.activate(&states, &built)?;
    println!("{live}");
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

/// All is looked at before any is touched, and all is sent before any is switched.
fn plan(hosts: &[Host]) -> impl Iterator<Item = String> {
    let look = hosts.iter().map(|host| match &host.remote {
        Some(name) => format!("look whether {name} is ready"),
        None => format!("set up {} where that is needed", host.directory.display()),
    });
    let each = |verb: &'static str| {
        hosts
            .iter()
            .map(move |host| format!("{verb} {}, unless these very bytes are live", host.name))
    };
    look.chain([format!("build {NAME}")])
        .chain(each("upload it to"))
        .chain(each("activate it on"))
}

struct Deploy<'a> {
    sh: &'a Shell,
    target: Target<'a>,
    with: &'a build::With,
    commit: Commit,
    hosts: &'a [Host],
}

impl Deploy<'_> {
    /// At once, where it is clear enough what will have to be built.
    fn look_and_build(&self) -> Result<(Vec<Look>, Built)> {
        let hosts = self.hosts;
        let Some(arch) = build::likely_arch(self.sh, &self.target, self.with) else {
            let looks = self.look()?;
            let built = self.build(common_arch(hosts, &looks)?)?;
            return Ok((looks, built));
        };
        let (looks, built) = thread::scope(|threads| {
            let looking = threads.spawn(|| look_at(hosts));
            let built = self.build(&arch);
            (looking.join().expect("it does not panic"), built)
        });
        let looks = looks?;
        let built = match common_arch(hosts, &looks)? {
            known if known == arch => built?,
            other => self.build(other)?,
        };
        Ok((looks, built))
    }

    fn look(&self) -> Result<Vec<Look>> {
        if self.target.is_local() {
            setup::prepare(self.sh, &self.hosts[0])?;
            return Ok(vec![(self.hosts[0].known_state()?, None)]);
        }
        look_at(self.hosts)
    }

    fn build(&self, arch: &str) -> Result<Built> {
        let binary = build::build(self.sh, &self.target, arch, self.with)?;
        let bytes =
            fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let sha256 = version::sha256(&bytes);
        let time = fs::metadata(&binary)?.modified()?;
        Ok(Built {
            version: Version::new(time, self.commit.clone(), &sha256),
            sent: self.sh.current_dir().join("target/sent"),
            binary,
            sha256,
        })
    }

    fn upload(
        &self,
        states: &[State],
        receivers: Vec<Option<Session>>,
        built: &Built,
    ) -> Result<()> {
        let lacks_it =
            |state: &State| !is_live(state, built) && !state.versions.contains(&built.version);
        let hosts = self.hosts.iter().zip(states).zip(receivers);
        let lacking: Vec<_> = hosts.filter(|((_, state), _)| lacks_it(state)).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let remote = lacking.iter().filter(|(_, receiver)| receiver.is_some());
        let packed = upload::pack(built, remote.map(|((_, state), _)| *state));
        let sent = at_once(lacking, |((host, state), receiver)| {
            upload::upload(host, state, built, &packed, receiver)
        });
        all(sent)?;
        if !self.target.is_local()
            && let Err(error) = upload::keep(built)
        {
            ui::warning(&format!("the next upload will not be a patch: {error:#}"));
        }
        Ok(())
    }

    /// Returns what is live then.
    fn activate(&self, states: &[State], built: &Built) -> Result<Version> {
        let mut wanted = Vec::new();
        let mut live = &built.version;
        for (host, state) in self.hosts.iter().zip(states) {
            match &state.live {
                Some(same) if is_live(state, built) => {
                    let text = format!("{same} on {} already: the same bytes", host.name);
                    ui::step("Live", &text);
                    live = same;
                }
                _ => wanted.push(Wanted {
                    host,
                    state,
                    version: &built.version,
                    sha256: &built.sha256,
                }),
            }
        }
        activation::activate(self.sh, &wanted)?;
        Ok(live.clone())
    }
}

/// Whether the servers are ready for a deploy.
fn look_at(hosts: &[Host]) -> Result<Vec<Look>> {
    all(at_once(hosts, look)).context("nothing was changed")
}

fn look(host: &Host) -> Result<Look> {
    let receiver = upload::expect(host)?;
    let state = host.known_state()?;
    setup::check(host, &state)?;
    ensure!(
        state.free > ENOUGH,
        "{} has {} MB left",
        host.name,
        state.free / 1_000_000
    );
    Ok((state, Some(receiver)))
}

/// A host's state; and on a server, where an upload can go.
type Look = (State, Option<Session>);

/// Room for an upload and its installed copy, in bytes.
const ENOUGH: u64 = 30_000_000;

/// One build has to do for all.
fn common_arch<'a>(hosts: &[Host], looks: &'a [Look]) -> Result<&'a str> {
    let arch = &looks[0].0.arch;
    let other = hosts.iter().zip(looks).find(|(_, it)| it.0.arch != *arch);
    if let Some((host, (state, _))) = other {
        bail!(
            "{} is {arch}, {} is {}\nhint: make them two targets",
            hosts[0].name,
            host.name,
            state.arch
        );
    }
    Ok(arch)
}

fn is_live(state: &State, built: &Built) -> bool {
    state.healthy
        && state
            .live
            .as_ref()
            .is_some_and(|live| live.is_of(&built.sha256))
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
