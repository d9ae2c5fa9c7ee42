//! The programs that the checks and tests need. They are checked first, and installed if
//! possible.

use std::{env, fs::Metadata, os::unix::fs::PermissionsExt};

use anyhow::{Result, anyhow, ensure};
use xshell::{Shell, cmd};

use crate::{builder::cargo, terminal};

/// The programs that the checks and tests run, each with its Debian package. This is the
/// only such list. The programs of a minimal Debian are not in it.
const PROGRAMS: &[(&str, &str)] = &[
    ("chromium", "chromium"),
    ("debootstrap", "debootstrap"),
    ("git", "git"),
    ("kubectl", "kubernetes-client"),
    ("pgrep", "procps"),
    ("python3", "python3"),
    ("rsync", "rsync"),
    ("shellcheck", "shellcheck"),
    ("ssh", "openssh-client"),
    ("zstd", "zstd"),
];

/// The cargo commands that the checks run, each with its rustup component.
const CARGO_COMMANDS: &[(&str, &str)] = &[("clippy", "clippy"), ("fmt", "rustfmt")];

/// Root on Debian gets the missing packages; everybody else is told how to get them.
pub fn install_missing(sh: &Shell) -> Result<()> {
    let components = missing_components(sh);
    let packages = missing_packages();
    if components.is_empty() && !packages.is_empty() && can_install(sh) {
        install(sh, &packages)?;
    }
    refuse_missing(&missing_packages(), &components)
}

fn missing_packages() -> Vec<&'static str> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps it out of the PATH of everybody but root.
    let dirs: Vec<_> = env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .collect();
    let is_program = |it: Metadata| it.is_file() && it.permissions().mode() & 0o111 != 0;
    let is_there = |program: &str| {
        let mut found = dirs
            .iter()
            .filter_map(|it| it.join(program).metadata().ok());
        found.any(is_program)
    };
    missing(PROGRAMS, is_there)
}

/// rustup has a `cargo-clippy` and a `cargo-fmt` even where the components are missing.
fn missing_components(sh: &Shell) -> Vec<&'static str> {
    missing(CARGO_COMMANDS, |command| {
        let version = cargo(sh).args([command, "--version"]);
        version.ignore_stderr().read().is_ok()
    })
}

fn missing(
    list: &[(&str, &'static str)],
    mut is_there: impl FnMut(&str) -> bool,
) -> Vec<&'static str> {
    list.iter()
        .filter(|(program, _)| !is_there(program))
        .map(|(_, package)| *package)
        .collect()
}

/// How to allow the tests their inotify instances, for root.
pub const RAISE_INOTIFY_LIMIT: &str = "`sysctl fs.inotify.max_user_instances=1024`";

const INOTIFY_LIMIT: &str = "/proc/sys/fs/inotify/max_user_instances";

/// A server with systemd takes up to a dozen, and up to twenty servers run at once.
const INOTIFY_LIMIT_NEEDED: u32 = 512;

/// The change ends with the machine's next boot.
pub fn raise_inotify_limit(sh: &Shell) -> Result<()> {
    let limit = sh.read_file(INOTIFY_LIMIT)?;
    if limit.trim().parse::<u32>()? >= INOTIFY_LIMIT_NEEDED {
        return Ok(());
    }
    sh.write_file(INOTIFY_LIMIT, "1024")
        .map_err(|_| anyhow!("the kernel allows a user too few inotify instances"))?;
    terminal::step("Raising", "fs.inotify.max_user_instances to 1024");
    Ok(())
}

pub fn is_root(sh: &Shell) -> bool {
    cmd!(sh, "id -u").quiet().read().is_ok_and(|it| it == "0")
}

fn can_install(sh: &Shell) -> bool {
    is_root(sh) && sh.path_exists("/etc/debian_version")
}

fn install(sh: &Shell, packages: &[&str]) -> Result<()> {
    terminal::step("Installing", &format!("{}, by apt", packages.join(", ")));
    let install = "--yes --no-install-recommends install".split(' ');
    let install: Vec<_> = install.chain(packages.iter().copied()).collect();
    for args in [vec!["update"], install] {
        let apt = cmd!(sh, "apt-get --quiet=2 {args...}").env("DEBIAN_FRONTEND", "noninteractive");
        let output = apt.quiet().ignore_status().output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "nothing was tested: apt failed\n{complaint}"
        );
    }
    Ok(())
}

fn refuse_missing(packages: &[&str], components: &[&str]) -> Result<()> {
    let commands: Vec<String> = [
        ("apt-get install --no-install-recommends", packages),
        ("rustup component add", components),
    ]
    .iter()
    .filter(|(_, missing)| !missing.is_empty())
    .map(|(command, missing)| format!("{command} {}", missing.join(" ")))
    .collect();
    ensure!(
        commands.is_empty(),
        "the tests need {}; nothing was tested\nhint: `{}`",
        [packages, components].concat().join(", "),
        commands.join(" && ")
    );
    Ok(())
}
