//! `deploy`: build, upload, activate.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::{Long, Short};
use xshell::Shell;

use crate::{
    builder::{self, Builder},
    cli::{Args, TargetArg},
    commands::prepare_this_machine,
    config::NAME,
    host::Host,
    kubernetes::Cluster,
    parallel::{collect_errors, parallel_map},
    rollout::{self, Job},
    server_files::check_script,
    session::Session,
    state::{Arch, State},
    target::AddressArgs,
    terminal,
    upload::{self, Artifact},
    version::{self, Commit},
};

pub const HELP: &str = "\
Build, upload, activate

Usage: cargo xtask deploy [TARGET] [OPTIONS]

Options:
  -n, --dry-run                 Show what would be done, and change nothing
      --allow-dirty             Deploy to a server even with uncommitted changes
      --build container|host    Build in a container (default for servers) or with local cargo
      --listen IP:PORT          The address of a target that is given as USER@HOST:/DIR or /DIR;
                                needed once for each directory
      --domain NAME             The domain of such a target, served by https
      --keep                    If a host fails, leave the new version on those that have switched
      --json                    Print what is live on each host as JSON
  -h, --help                    Show this help
";

/// Room for an upload and its installed copy.
const MIN_FREE_BYTES: u64 = 30_000_000;

#[derive(Default)]
struct Options {
    target: TargetArg,
    dry_run: bool,
    allow_dirty: bool,
    builder: Option<Builder>,
    address: AddressArgs,
    keep: bool,
    json: bool,
}

fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    let help = args.help();
    while let Some(arg) = args.next()? {
        match arg {
            Short('n') | Long("dry-run") => options.dry_run = true,
            Long("allow-dirty") => options.allow_dirty = true,
            Long("build") => options.builder = Some(args.value("--build")?),
            Long("listen") => options.address.listen = Some(args.value("--listen")?),
            Long("domain") => options.address.domain = Some(args.value("--domain")?),
            Long("keep") => options.keep = true,
            Long("json") => options.json = true,
            other => options.target.take(other, help)?,
        }
    }
    Ok(options)
}

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = parse(args)?;
    let target = options.target.find_with(&options.address)?;
    let commit = version::commit(sh)?;
    refuse_dirty(&commit, target.is_local() || options.allow_dirty)?;
    let builder = options
        .builder
        .unwrap_or_else(|| Builder::default_for(&target));
    if let Some(cluster) = Cluster::of(sh, target) {
        return match options.dry_run {
            true => cluster.show_plan(),
            false => cluster.deploy(builder, commit, options.json),
        };
    }
    let hosts = Host::all(sh, target);
    if options.dry_run {
        plan(&hosts).for_each(|step| terminal::step("Would", &step));
        return Ok(());
    }
    let deploy = Deploy {
        sh,
        hosts: &hosts,
        commit,
        builder,
        keep: options.keep,
        json: options.json,
    };
    deploy.run()
}

fn refuse_dirty(commit: &Commit, allowed: bool) -> Result<()> {
    ensure!(
        allowed || !commit.dirty,
        "uncommitted changes on top of {}\nhint: commit them, or `--allow-dirty`",
        commit.id
    );
    Ok(())
}

/// Every host is probed before any is changed, and has its upload before any switches.
fn plan(hosts: &[Host]) -> impl Iterator<Item = String> {
    let probe = hosts.iter().map(|host| match &host.remote {
        Some(remote) => format!("check that {} is ready", remote.address),
        None => format!("set up {} if needed", host.directory.display()),
    });
    let on_each = |verb: &'static str| {
        hosts
            .iter()
            .map(move |host| format!("{verb} {}, unless this build is live already", host.name()))
    };
    probe
        .chain([format!("build {NAME}")])
        .chain(on_each("upload it to"))
        .chain(on_each("activate it on"))
}

struct Deploy<'a> {
    sh: &'a Shell,
    hosts: &'a [Host<'a>],
    commit: Commit,
    builder: Builder,
    keep: bool,
    json: bool,
}

/// A host before the deploy: its state, and on a server the session for the upload.
struct Probe {
    state: State,
    receiver: Option<Session>,
}

impl Deploy<'_> {
    fn run(&self) -> Result<()> {
        let (probes, artifact) = self.probe_and_build()?;
        let (states, receivers): (Vec<_>, Vec<_>) = probes
            .into_iter()
            .map(|probe| (probe.state, probe.receiver))
            .unzip();
        self.upload(&states, receivers, &artifact)?;
        self.activate(&states, &artifact)
    }

    /// Probes while it builds, if the architecture can be guessed; builds again if the guess
    /// was wrong.
    fn probe_and_build(&self) -> Result<(Vec<Probe>, Artifact)> {
        let hosts = self.hosts;
        let likely = builder::likely_arch(self.sh, self.builder);
        let Some(arch) = likely.filter(|_| hosts[0].remote.is_some()) else {
            let probes = self.probe()?;
            let artifact = self.build(common_arch(hosts, &probes)?)?;
            return Ok((probes, artifact));
        };
        let (probes, artifact) = thread::scope(|scope| {
            let probing = scope.spawn(|| probe_servers(hosts));
            let artifact = self.build(arch);
            (probing.join().expect("it does not panic"), artifact)
        });
        let probes = probes?;
        let artifact = match common_arch(hosts, &probes)? {
            known if known == arch => artifact?,
            other => self.build(other)?,
        };
        Ok((probes, artifact))
    }

    fn probe(&self) -> Result<Vec<Probe>> {
        match self.hosts {
            [host] if host.remote.is_none() => {
                prepare_this_machine(self.sh, host)?;
                let (state, receiver) = (host.state()?, None);
                Ok(vec![Probe { state, receiver }])
            }
            hosts => probe_servers(hosts),
        }
    }

    fn build(&self, arch: Arch) -> Result<Artifact> {
        let profile = self.hosts[0].target.profile;
        let binary = builder::build(self.sh, self.builder, arch, profile)?;
        Artifact::new(self.sh, binary, self.commit.clone())
    }

    fn upload(
        &self,
        states: &[State],
        receivers: Vec<Option<Session>>,
        artifact: &Artifact,
    ) -> Result<()> {
        let needs_upload = |state: &State| {
            !serves_already(state, artifact) && !state.installed.contains(&artifact.version)
        };
        let hosts = self.hosts.iter().zip(states).zip(receivers);
        let hosts: Vec<_> = hosts
            .filter(|((_, state), _)| needs_upload(state))
            .collect();
        if hosts.is_empty() {
            return Ok(());
        }
        let servers = hosts.iter().filter(|(_, receiver)| receiver.is_some());
        let patches = upload::make_patches(artifact, servers.map(|((_, state), _)| *state));
        collect_errors(parallel_map(hosts, |((host, state), receiver)| {
            upload::upload(host, state, artifact, &patches, receiver)
        }))?;
        if self.hosts[0].remote.is_some()
            && let Err(error) = upload::keep_sent(artifact)
        {
            terminal::warning(&format!("the next upload will not be a patch: {error:#}"));
        }
        Ok(())
    }

    fn activate(&self, states: &[State], artifact: &Artifact) -> Result<()> {
        let hosts = self.hosts.iter().zip(states);
        let jobs: Vec<Job> = hosts
            .map(|(host, state)| job(host, state, artifact))
            .collect();
        for job in jobs.iter().filter(|job| job.is_live_already) {
            let (version, host) = (job.version, job.host.name());
            terminal::step(
                "Live",
                &format!("{version} on {host} already: the same build"),
            );
        }
        rollout::run(self.sh, &jobs, self.keep)?.conclude(self.json)
    }
}

/// The same build can be live under another name.
fn job<'a>(host: &'a Host, before: &'a State, artifact: &'a Artifact) -> Job<'a> {
    let live = before
        .live
        .as_ref()
        .filter(|_| serves_already(before, artifact));
    Job {
        host,
        before,
        version: live.unwrap_or(&artifact.version),
        sha256: &artifact.sha256,
        is_live_already: live.is_some(),
    }
}

fn probe_servers(hosts: &[Host]) -> Result<Vec<Probe>> {
    collect_errors(parallel_map(hosts, probe)).context("nothing was changed")
}

fn probe(host: &Host) -> Result<Probe> {
    let receiver = upload::open_receiver(host)?;
    let state = host.state()?;
    check_script(host, &state)?;
    ensure!(
        state.free_bytes > MIN_FREE_BYTES,
        "{} has only {} MB of free disk space",
        host.name(),
        state.free_bytes / 1_000_000
    );
    Ok(Probe {
        state,
        receiver: Some(receiver),
    })
}

/// One build has to fit all hosts of a target.
fn common_arch(hosts: &[Host], probes: &[Probe]) -> Result<Arch> {
    let arch = probes[0].state.arch;
    let mut others = hosts.iter().zip(probes);
    if let Some((host, probe)) = others.find(|(_, probe)| probe.state.arch != arch) {
        bail!(
            "{} is {}, {} is {}\nhint: make them two targets",
            hosts[0].name(),
            arch.name(),
            host.name(),
            probe.state.arch.name()
        );
    }
    Ok(arch)
}

/// An unhealthy live version is activated again.
fn serves_already(state: &State, artifact: &Artifact) -> bool {
    let sha256 = |live| state.sha256(live).ok();
    state.healthy && state.live.as_ref().and_then(sha256) == Some(&artifact.sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::Version;

    #[test]
    fn uncommitted_changes_are_refused_unless_allowed() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        let clean = version("20261122T183012Z-1a2b3c4d5e6f-9f86d081884c").commit;
        let dirty = version("20261122T183012Z-1a2b3c4d5e6f-dirty-9f86d081884c").commit;
        assert!(refuse_dirty(&clean, false).is_ok());
        assert!(refuse_dirty(&dirty, true).is_ok());
        let error = refuse_dirty(&dirty, false).unwrap_err().to_string();
        assert!(error.contains("1a2b3c4d5e6f") && error.contains("--allow-dirty"));
    }
}
