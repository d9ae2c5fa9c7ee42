//! `setup`: what a host needs before its first deploy. It writes what differs, nothing
//! else, and stops nothing that serves.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::Long;
use xshell::Shell;

use crate::{
    cli::{Args, TargetArg},
    host::Host,
    kubernetes::Cluster,
    server_files::{self, ACTIVATE},
    session,
    ssh::{Remote, quote},
    target::{Address, AddressArgs, check_service},
    terminal,
};

pub const HELP: &str = "\
Prepare a host for its first deploy, or apply changed settings

Usage: cargo xtask setup [TARGET] [OPTIONS]

Options:
      --as USER           Connect as USER, who is root or may use sudo without a password
      --listen IP:PORT    The address of a target that is given as USER@HOST:/DIR; needed once
                          for each directory
      --domain NAME       The domain of such a target; installs and configures Caddy
  -h, --help              Show this help
";

/// Prepares a server; runs there as root.
const PREPARE: &str = concat!(
    include_str!("../../server/prepare.sh"),
    include_str!("../../server/caddy.sh"),
    "\nprepare\n"
);

const SETTINGS: &str = "settings";

#[derive(Default)]
struct Options {
    target: TargetArg,
    connect_as: Option<String>,
    address: AddressArgs,
}

fn parse(mut args: Args) -> Result<Options> {
    let mut options = Options::default();
    let help = args.help();
    while let Some(arg) = args.next()? {
        match arg {
            Long("as") => options.connect_as = Some(args.value("--as")?),
            Long("listen") => options.address.listen = Some(args.value("--listen")?),
            Long("domain") => options.address.domain = Some(args.value("--domain")?),
            other => options.target.take(other, help)?,
        }
    }
    Ok(options)
}

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = parse(args)?;
    let target = options.target.find_with(&options.address)?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.setup();
    }
    for host in &Host::all(sh, target) {
        let changed = match &host.remote {
            Some(remote) => prepare_server(host, remote, options.connect_as.as_deref())?,
            None => prepare_this_machine(sh, host)?,
        };
        if !changed {
            let text = format!("{} is set up already", host.directory.display());
            terminal::step("Finished", &text);
        }
    }
    Ok(())
}

/// Returns whether anything was changed.
fn prepare_server(host: &Host, remote: &Remote, connect_as: Option<&str>) -> Result<bool> {
    let (deployer, machine) = remote
        .address
        .split_once('@')
        .unwrap_or(("", &remote.address));
    ensure!(
        !deployer.is_empty(),
        "no deploy user for {machine}; write USER@{machine}"
    );
    let admin = host.for_admin(connect_as)?;
    let service = server_files::service(host)?;
    check_service(&service)?;
    let address = server_files::address(&admin)?;
    let command = admin
        .shell(&prepare_command(host, &service, deployer, &address))?
        .stdin_bytes(files(&admin, &service, deployer, &address)?);
    let answer = session::run(&command, |stdout| session::read_all(stdout))?;
    let steps = answer.stdout;
    let changed = show_steps(&steps);
    ensure!(
        answer.status.success(),
        "{} is not set up, or only partly: {}\nwhat serves there was not touched",
        host.name(),
        answer.stderr.trim()
    );
    let is_unit = |line: &str| line.starts_with("Writing ") && line.ends_with("@.service");
    if steps.lines().any(is_unit) {
        hint_at_restart(&admin)?;
    }
    Ok(changed)
}

/// The script is an argument and the files are its input, so nothing runs before all of
/// it has arrived.
fn prepare_command(host: &Host, service: &str, deployer: &str, address: &Address) -> String {
    let directory = host.directory.to_string_lossy();
    let domain = match address {
        Address::Domain(domain) => domain,
        Address::Port(_) => "",
    };
    let words = [PREPARE, "prepare", service, &directory, deployer, domain];
    let words: String = words.map(|word| format!(" {}", quote(word))).concat();
    format!("if [ \"$(id -u)\" = 0 ]; then exec sh -c{words}; else exec sudo -n sh -c{words}; fi")
}

/// The files that prepare.sh installs. A line `=== PATH` stands before each, and
/// `=== end` after the last.
fn files(host: &Host, service: &str, deployer: &str, address: &Address) -> Result<String> {
    let directory = host.directory.display();
    let mut files = vec![
        (format!("{directory}/bin/activate"), ACTIVATE.to_owned()),
        (
            format!("{directory}/{SETTINGS}"),
            server_files::settings(host, service, address),
        ),
        (
            format!("/etc/sudoers.d/{service}"),
            format!("{deployer} ALL=(root) NOPASSWD: {directory}/bin/activate session\n"),
        ),
    ];
    files.extend(server_files::units(host, service, address)?);
    let frame = |(path, content)| format!("=== {path}\n{content}");
    Ok(files.into_iter().map(frame).collect::<String>() + "=== end\n")
}

/// Returns whether there were any but warnings.
fn show_steps(output: &str) -> bool {
    let mut changed = false;
    for line in output.lines() {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("Warning", rest) => terminal::warning(rest),
            ("|", rest) => terminal::quote(rest),
            (word, rest) => {
                terminal::step(word, rest);
                changed = true;
            }
        }
    }
    changed
}

pub fn hint_at_restart(host: &Host) -> Result<()> {
    let state = host.state_if_set_up()?;
    if state.is_some_and(|state| state.live.is_some()) {
        let text = format!(
            "the running instance keeps the old settings until `cargo xtask restart {}`",
            host.target.name
        );
        terminal::step("", &text);
    }
    Ok(())
}

/// Returns whether anything was changed.
pub fn prepare_this_machine(sh: &Shell, host: &Host) -> Result<bool> {
    let directory = host.directory.display();
    let changed = write_files(sh, host)
        .with_context(|| format!("{directory} is not set up, or only partly"))?;
    if !changed.is_empty() {
        let text = format!("{directory} ({})", changed.join(", "));
        terminal::step("Setting up", &text);
    }
    if changed.contains(&SETTINGS) {
        hint_at_restart(host)?;
    }
    Ok(!changed.is_empty())
}

/// Returns the files that were changed.
fn write_files(sh: &Shell, host: &Host) -> Result<Vec<&'static str>> {
    check_directory(host)?;
    let service = service_of_this_machine(host)?;
    let settings = server_files::settings(host, &service, &server_files::address(host)?);
    // The settings first, because they mark the directory as made by us.
    let files = [
        (SETTINGS, 0o644, settings.as_str()),
        ("bin/activate", 0o755, ACTIVATE),
    ];
    let mut changed = Vec::new();
    for (name, mode, content) in files {
        let file = host.path(name);
        if fs::read_to_string(&file).ok().as_deref() != Some(content) {
            sh.create_dir(file.parent().context("a file is in a directory")?)?;
            replace(&file, mode, content)?;
            changed.push(name);
        }
    }
    for name in ["incoming", "versions", "run", "log"] {
        sh.create_dir(host.path(name))?;
    }
    Ok(changed)
}

fn check_directory(host: &Host) -> Result<()> {
    let Ok(mut entries) = fs::read_dir(&host.directory) else {
        return Ok(());
    };
    ensure!(
        host.path(SETTINGS).exists() || entries.next().is_none(),
        "the directory exists but was not created by `setup`"
    );
    Ok(())
}

/// An ad-hoc directory keeps the service that it was set up with.
fn service_of_this_machine(host: &Host) -> Result<String> {
    let before = fs::read_to_string(host.path(SETTINGS)).unwrap_or_default();
    let mut words = before.split_whitespace();
    let before = words.find_map(|word| word.strip_prefix("service="));
    match (host.target.service, before) {
        (Some(service), Some(before)) if service != before => bail!(
            "it belongs to the service `{before}`, and the target `{}` is the service `{service}`\n\
             hint: give the target another `directory` in xtask/src/config.rs",
            host.target.name
        ),
        (None, Some(before)) => Ok(before.to_owned()),
        _ => server_files::service(host),
    }
}

/// Replaces the file by a rename: a script that is running reads the old file to its end.
fn replace(path: &Path, mode: u32, content: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)
        .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&new, path))
        .inspect_err(|_| drop(fs::remove_file(&new)))
        .with_context(|| format!("cannot write {}", path.display()))
}
