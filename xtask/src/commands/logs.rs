//! `logs`: the app's log.

use anyhow::{Result, ensure};
use lexopt::Arg::{Long, Short};
use xshell::Shell;

use crate::{
    cli::{Args, TargetArg},
    host::Host,
    kubernetes::Cluster,
    parallel::{collect_errors, parallel_map},
    terminal,
};

pub const HELP: &str = "\
Show the app's log

Usage: cargo xtask logs [TARGET] [OPTIONS]

Options:
  -f, --follow     Go on with the lines to come
      --lines N    How many lines of the past (default: 50)
  -h, --help       Show this help
";

struct Options {
    target: TargetArg,
    follow: bool,
    lines: u32,
}

fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options {
        target: TargetArg::default(),
        follow: false,
        lines: 50,
    };
    let help = args.help();
    while let Some(arg) = args.next()? {
        match arg {
            Short('f') | Long("follow") => options.follow = true,
            Long("lines") => options.lines = args.value("--lines")?,
            other => options.target.take(other, help)?,
        }
    }
    Ok(options)
}

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = parse(args)?;
    let target = options.target.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.logs(options.lines, options.follow);
    }
    let hosts = Host::all(sh, target);
    let show = |host| show(host, &options);
    if options.follow {
        collect_errors(parallel_map(&hosts, show)).map(drop)
    } else {
        hosts.iter().try_for_each(show)
    }
}

fn show(host: &Host, options: &Options) -> Result<()> {
    let lines = options.lines.to_string();
    let mut words = vec!["logs", &lines];
    words.extend(options.follow.then_some("follow"));
    let mut session = host.request(&words)?;
    if options.follow {
        session = session.without_limit();
    }
    let mut last = String::new();
    while let Some(line) = session.read_line()? {
        terminal::print(&format!("{line}\n"));
        last = line;
    }
    ensure!(
        session.exit_code() == Some(0),
        "cannot show the log of {}: {last}",
        host.name()
    );
    Ok(())
}
