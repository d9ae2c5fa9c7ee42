//! `env`: the app's environment on the hosts. It holds secrets, so only root may change it,
//! and values go over standard input alone.

use std::io::{self, IsTerminal, Read};

use anyhow::{Result, bail, ensure};
use lexopt::Arg::{Long, Value};
use xshell::Shell;

use crate::{
    cli::{self, Args, TargetArg},
    commands::setup::hint_at_restart,
    host::{Host, NOT_SET_UP},
    kubernetes::Cluster,
    session, terminal,
};

pub const HELP: &str = "\
List the names in the app's environment; set or unset a variable

Usage: cargo xtask env [TARGET] [set NAME | unset NAME] [OPTIONS]

`set` reads the value from standard input: `cargo xtask env production set KEY <file`

Options:
      --as USER    Connect as USER, who is root or may use sudo without a password
  -h, --help       Show this help
";

#[derive(Default)]
struct Options {
    target: TargetArg,
    change: Option<Change>,
    connect_as: Option<String>,
}

struct Change {
    /// A request that bin/activate knows.
    verb: &'static str,
    name: String,
}

fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    let help = args.help();
    while let Some(arg) = args.next()? {
        match arg {
            Long("as") => options.connect_as = Some(args.value("--as")?),
            Value(word) if options.change.is_none() && (word == "set" || word == "unset") => {
                let (verb, option) = match word == "set" {
                    true => ("env-set", "set"),
                    false => ("env-unset", "unset"),
                };
                let name: String = args.value(option)?;
                check_name(&name).map_err(|error| cli::usage(error, help))?;
                options.change = Some(Change { verb, name });
            }
            other => options.target.take(other, help)?,
        }
    }
    Ok(options)
}

/// It gets to a remote shell.
fn check_name(name: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_';
    ensure!(
        name.chars().all(known)
            && !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit()),
        "not the name of a variable: {name:?}"
    );
    Ok(())
}

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = parse(args)?;
    let target = options.target.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return on_cluster(&cluster, options.change.as_ref());
    }
    let hosts = Host::all(sh, target);
    let hosts = hosts
        .iter()
        .map(|host| host.for_admin(options.connect_as.as_deref()));
    let hosts = hosts.collect::<Result<Vec<_>>>()?;
    match &options.change {
        None => hosts.iter().try_for_each(list),
        Some(change) => {
            let value = match change.verb {
                "env-set" => read_value(&change.name)?,
                _ => Vec::new(),
            };
            hosts
                .iter()
                .try_for_each(|host| apply(host, change, &value))
        }
    }
}

fn on_cluster(cluster: &Cluster, change: Option<&Change>) -> Result<()> {
    match change {
        None => cluster.list_env(),
        Some(Change {
            verb: "env-set",
            name,
        }) => cluster.set_env(name, Some(&read_value(name)?)),
        Some(Change { name, .. }) => cluster.set_env(name, None),
    }
}

fn read_value(name: &str) -> Result<Vec<u8>> {
    let mut input = io::stdin();
    if input.is_terminal() {
        terminal::step(
            "Reading",
            &format!("the value of {name}; Enter and Ctrl-D end it"),
        );
    }
    let mut value = Vec::new();
    input.read_to_end(&mut value)?;
    Ok(value)
}

fn list(host: &Host) -> Result<()> {
    let names = request(host, "env", &[])?;
    terminal::print(&names);
    Ok(())
}

fn apply(host: &Host, change: &Change, value: &[u8]) -> Result<()> {
    let Change { verb, name } = change;
    request(host, &format!("{verb} {name}"), value)?;
    let done = match *verb {
        "env-set" => "Set",
        _ => "Unset",
    };
    terminal::step(done, &format!("{name} on {}", host.name()));
    hint_at_restart(host)
}

/// Runs `bin/activate` as root, which a deploy user may not.
fn request(host: &Host, words: &str, input: &[u8]) -> Result<String> {
    let command = host.script(words)?.stdin_bytes(input);
    let answer = session::run(&command, |stdout| session::read_all(stdout))?;
    let stderr = answer.stderr;
    let problem = match answer.status.code() {
        Some(0) => return Ok(answer.stdout),
        Some(NOT_SET_UP) => host.not_set_up_message("setup"),
        _ if stderr.starts_with("sudo: ") => {
            format!(
                "{}\nhint: only root may use it; add `--as root`",
                stderr.trim()
            )
        }
        _ => stderr.trim().to_owned(),
    };
    bail!("cannot use the environment on {}: {problem}", host.name())
}
