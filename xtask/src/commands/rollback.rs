//! `rollback`: activate a version that was live before.

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::{Long, Short};
use xshell::Shell;

use crate::{
    cli::{Args, TargetArg},
    host::Host,
    kubernetes::Cluster,
    parallel::{collect_errors, parallel_map},
    rollout::{self, Job},
    state::{KnownVersion, State},
    terminal,
    version::Version,
};

pub const HELP: &str = "\
Activate the version before the live one

Usage: cargo xtask rollback [TARGET] [OPTIONS]

Options:
      --to N|VERSION    How many versions back (default: 1), or a version, or a part of its name;
                        `cargo xtask history` lists them
  -n, --dry-run         Show what would be done, and change nothing
      --keep            If a host fails, leave the other version on those that have switched
      --json            Print what is live on each host as JSON
  -h, --help            Show this help
";

struct Options {
    target: TargetArg,
    to: String,
    dry_run: bool,
    keep: bool,
    json: bool,
}

fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options {
        target: TargetArg::default(),
        to: "1".to_owned(),
        dry_run: false,
        keep: false,
        json: false,
    };
    let help = args.help();
    while let Some(arg) = args.next()? {
        match arg {
            Long("to") => options.to = args.value("--to")?,
            Short('n') | Long("dry-run") => options.dry_run = true,
            Long("keep") => options.keep = true,
            Long("json") => options.json = true,
            other => options.target.take(other, help)?,
        }
    }
    Ok(options)
}

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = parse(args)?;
    let target = options.target.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.rollback(&options.to, options.dry_run, options.json);
    }
    let hosts = Host::all(sh, target);
    let states = collect_errors(parallel_map(&hosts, Host::state))?;
    let mut jobs = hosts
        .iter()
        .zip(&states)
        .map(|(host, state)| job(host, state, &options.to))
        .collect::<Result<Vec<_>>>()?;
    let version = common_version(&jobs)?;
    for job in &mut jobs {
        job.is_live_already = job.before.live.as_ref() == Some(version);
    }
    ensure!(
        !jobs.iter().all(|job| job.is_live_already),
        "{version} is live already\nhint: `cargo xtask restart {}`",
        hosts[0].target.name
    );
    for job in jobs.iter().filter(|job| job.is_live_already) {
        terminal::step("Live", &format!("{version} on {} already", job.host.name()));
    }
    if options.dry_run {
        let to_do = jobs.iter().filter(|job| !job.is_live_already);
        to_do.for_each(show_plan);
        return Ok(());
    }
    rollout::run(sh, &jobs, options.keep)?.conclude(options.json)
}

fn job<'a>(host: &'a Host, state: &'a State, to: &str) -> Result<Job<'a>> {
    find(host.target.name, state, to)
        .and_then(|known| Job::again(host, state, &known.version))
        .with_context(|| format!("cannot roll back {}; nothing was changed", host.name()))
}

/// "One back" is not the same for all hosts if they were not all at the same version.
fn common_version<'a>(jobs: &[Job<'a>]) -> Result<&'a Version> {
    let version = jobs[0].version;
    let line = |job: &Job| format!("\n  {}: {}", job.host.name(), job.version);
    ensure!(
        jobs.iter().all(|job| job.version == version),
        "the hosts would go back to different versions; nothing was changed:{}\n\
         hint: `--to VERSION` takes all of them to one version",
        jobs.iter().map(line).collect::<String>()
    );
    Ok(version)
}

fn show_plan(job: &Job) {
    let live = job.before.live.as_ref();
    let live = live.map_or("nothing".to_owned(), Version::to_string);
    let text = format!(
        "activate {} on {}, where {live} is live",
        job.version,
        job.host.name()
    );
    terminal::step("Would", &text);
}

/// `to` is a number of versions back, a version, or a part of one.
fn find<'a>(target: &str, state: &'a State, to: &str) -> Result<&'a KnownVersion> {
    match to.parse::<usize>() {
        Ok(0) => bail!("0 is the live version itself\nhint: `cargo xtask restart {target}`"),
        Ok(back) if to.len() <= 3 => state.rollback.get(back).with_context(|| {
            format!(
                "versions before the live one: {}\nhint: `cargo xtask history {target}`",
                state.rollback.len().saturating_sub(1)
            )
        }),
        _ => find_by_part(target, state, to),
    }
}

/// The live version counts, too: on another host of the target it may not be live.
fn find_by_part<'a>(target: &str, state: &'a State, part: &str) -> Result<&'a KnownVersion> {
    let matching = |known: &&KnownVersion| known.version.to_string().contains(part);
    let found: Vec<_> = state.kept.iter().filter(matching).collect();
    match found[..] {
        [] => bail!(
            "no version that is kept and was once live is called {part:?}\n\
             hint: `cargo xtask history {target}`"
        ),
        [known] => Ok(known),
        _ => {
            let line = |known: &&KnownVersion| format!("\n  {}", known.version);
            let lines: String = found.iter().map(line).collect();
            bail!("{part:?} is a part of several versions:{lines}")
        }
    }
}
