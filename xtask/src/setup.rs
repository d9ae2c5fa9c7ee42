//! `setup`: what a host needs before its first deploy. Safe to run again: it writes
//! what differs, nothing else, and stops nothing that serves.

use std::{
    fs::{self, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use xshell::Shell;

use crate::{
    config::{DRAIN, KEEP, NAME, READY, SETTLE, check_host},
    host::Host,
    state::State,
    ui, version,
};

/// The one script that runs on the server.
const ACTIVATE: &str = include_str!("activate");

/// What makes a server ready for it.
const PREPARE: &str = include_str!("prepare");

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    at: crate::TargetAndListen,
    /// Connect as somebody else, who is root or may become it by sudo
    #[arg(long = "as", value_name = "USER")]
    connect_as: Option<String>,
}

pub fn setup(sh: &Shell, flags: &Flags) -> Result<()> {
    for host in &Host::all(sh, &flags.at.target()?) {
        let changed = match &host.remote {
            Some(remote) => prepare_server(host, remote, flags.connect_as.as_deref())?,
            None => prepare(sh, host)?,
        };
        if !changed {
            ui::step(
                "Finished",
                &format!("{} is as it should be", host.directory.display()),
            );
        }
    }
    Ok(())
}

/// A host whose script is not this repo's would not do what this client expects.
pub fn check(host: &Host, state: &State) -> Result<()> {
    if state.script != version::sha256(ACTIVATE.as_bytes()) {
        bail!(
            "bin/activate on {} is not that of this repo\nhint: `cargo xtask setup {}`",
            host.name,
            host.target
        );
    }
    Ok(())
}

/// Sends all in one go and has it run only once it has arrived whole: a script that is
/// read from the line stops in the middle where the line does.
fn prepare_server(host: &Host, remote: &str, connect_as: Option<&str>) -> Result<bool> {
    let (deployer, machine) = remote.split_once('@').unwrap_or(("", remote));
    let admin = match connect_as {
        Some(user) => format!("{user}@{machine}"),
        None => remote.to_owned(),
    };
    check_host(&admin)?;
    let admin = Host::at(admin, host);
    let run = "f=$(mktemp) && cat >\"$f\" && \
               if [ \"$(id -u)\" = 0 ]; then sh \"$f\"; else sudo -n sh \"$f\"; fi; s=$?; rm -f \"$f\"; exit $s";
    let script = prepare_script(&admin, deployer)?;
    let output = admin
        .shell(run)?
        .stdin_bytes(script)
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()?;
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "|" {
            ui::quote(rest)
        } else {
            ui::step(word, rest)
        }
    }
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} is not set up, or not fully: {}; nothing that serves was touched",
            host.name,
            why.trim()
        );
    }
    let unit = |line: &str| line.starts_with("Writing ") && line.ends_with("@.service");
    if said.lines().any(unit) {
        say_what_a_restart_is_for(&admin)?;
    }
    Ok(!said.is_empty())
}

fn prepare_script(host: &Host, deployer: &str) -> Result<String> {
    let directory = host.directory.display();
    ensure!(
        !deployer.is_empty(),
        "as whom is deployed? say USER@HOST for {}",
        host.name
    );
    let mut script =
        format!("name={NAME} dir={directory} deployer={deployer}\ncontent() {{\ncase $1 in\n");
    for (file, content) in server_files(host, deployer)? {
        script += &format!("{file}) cat <<'END OF FILE'\n{content}END OF FILE\n;;\n");
    }
    Ok(format!("{script}esac\n}}\n{PREPARE}\nprepare\n"))
}

/// As they are read on the server: where they name what the target or the configuration
/// sets, with its values.
fn server_files(host: &Host, deployer: &str) -> Result<Vec<(String, String)>> {
    let directory = host.directory.display().to_string();
    let listen = listen(host)?;
    let settings = settings(host, listen);
    let unit = |text: &str| {
        text.replace("/srv/app", &directory)
            .replace("ListenStream=0.0.0.0:80", &format!("ListenStream={listen}"))
            .replace("TimeoutStartSec=10", &format!("TimeoutStartSec={READY}"))
            .replace("DRAIN_SECONDS=30", &format!("DRAIN_SECONDS={DRAIN}"))
            .replace(
                "TimeoutStopSec=35",
                &format!("TimeoutStopSec={}", DRAIN + 5),
            )
    };
    let units = "/etc/systemd/system";
    Ok(vec![
        (format!("{directory}/bin/activate"), ACTIVATE.to_owned()),
        (format!("{directory}/settings"), settings),
        (
            format!("{units}/{NAME}.socket"),
            unit(include_str!("../../systemd/app.socket")),
        ),
        (
            format!("{units}/{NAME}.service"),
            unit(include_str!("../../systemd/app.service")),
        ),
        (
            format!("{units}/{NAME}@.service"),
            unit(include_str!("../../systemd/app@.service")),
        ),
        (
            format!("/etc/sudoers.d/{NAME}"),
            format!("{deployer} ALL=(root) NOPASSWD: {directory}/bin/activate\n"),
        ),
    ])
}

/// Returns whether anything had to be changed.
pub fn prepare(sh: &Shell, host: &Host) -> Result<bool> {
    let directory = host.directory.display();
    let changed = write_files(sh, host).with_context(|| {
        format!("{directory} is not set up, or not fully; nothing that serves was touched")
    })?;
    if !changed.is_empty() {
        ui::step(
            "Setting up",
            &format!("{directory} ({})", changed.join(", ")),
        );
    }
    if changed.contains(&SETTINGS) {
        say_what_a_restart_is_for(host)?;
    }
    Ok(!changed.is_empty())
}

fn say_what_a_restart_is_for(host: &Host) -> Result<()> {
    if host.state()?.is_some_and(|state| state.live.is_some()) {
        let text = format!(
            "what runs sees that after `cargo xtask restart {}`",
            host.target
        );
        ui::step("", &text);
    }
    Ok(())
}

const SETTINGS: &str = "settings";

fn write_files(sh: &Shell, host: &Host) -> Result<Vec<&'static str>> {
    let settings = settings(host, listen(host)?);
    if let Ok(mut there) = fs::read_dir(&host.directory) {
        ensure!(
            host.directory.join(SETTINGS).exists() || there.next().is_none(),
            "the directory is there already, and not of our making"
        );
    }
    // The settings first: by them the directory is known to be ours.
    let files = [
        (SETTINGS, 0o644, settings.as_str()),
        ("bin/activate", 0o755, ACTIVATE),
    ];
    let mut changed = Vec::new();
    for (name, mode, content) in files {
        let file = host.directory.join(name);
        if fs::read_to_string(&file).ok().as_deref() != Some(content) {
            sh.create_dir(file.parent().context("it is in a directory")?)?;
            replace(&file, mode, content)?;
            changed.push(name);
        }
    }
    for name in ["incoming", "versions", "run", "log"] {
        sh.create_dir(host.directory.join(name))?;
    }
    Ok(changed)
}

/// What `bin/activate` reads. A shell reads it, so nothing free-form goes in.
fn settings(host: &Host, listen: SocketAddr) -> String {
    let manager = if host.remote.is_some() {
        "systemd"
    } else {
        "nohup"
    };
    format!(
        "name={NAME} manager={manager} listen={listen} overlap={}\n\
         ready={READY} settle={SETTLE} drain={DRAIN} keep={KEEP}\n",
        host.overlap
    )
}

/// As the target says, or as it was set up.
fn listen(host: &Host) -> Result<SocketAddr> {
    let Some(listen) = &host.listen else {
        let hint = format!(
            "\nhint: `--listen 127.0.0.1:3001`, once, for {}",
            host.target
        );
        let state = host
            .state()
            .map_err(|error| anyhow!("{error:#}{hint}"))?
            .with_context(|| format!("where shall it listen?{hint}"))?;
        return Ok(state.listen.parse()?);
    };
    listen
        .parse()
        .with_context(|| format!("`listen` is not IP:PORT: {listen:?}"))
}

/// By a rename: whoever reads the old file, as a running script does, reads it to its end.
fn replace(path: &Path, mode: u32, content: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)
        .and_then(|()| fs::set_permissions(&new, Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&new, path))
        .inspect_err(|_| drop(fs::remove_file(&new)))
        .with_context(|| format!("cannot write {}", path.display()))
}
