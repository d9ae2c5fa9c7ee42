//! The build: from the workspace to one binary.

use std::{
    env, fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use duct::cmd;
use xshell::{Cmd, Shell, cmd as shell_cmd};

use crate::{
    config::{BUILDER, ENGINE, NAME, Target},
    host::Host,
    ui,
};

#[derive(Args)]
pub struct Flags {
    #[command(flatten)]
    at: crate::JustTarget,
    #[command(flatten)]
    with: With,
}

#[derive(Args)]
pub struct With {
    /// By what to build: a container, which makes a static binary for the host's
    /// architecture (default for servers), or this machine's own cargo
    #[arg(long, value_name = "docker|host")]
    build: Option<Builder>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Builder {
    Docker,
    Host,
}

pub fn print(sh: &Shell, flags: &Flags) -> Result<()> {
    let target = Target::find(flags.at.target.as_deref(), None)?;
    let arch = match Host::all(sh, &target).first() {
        Some(host) if host.remote.is_some() => host.known_state()?.arch,
        _ => env::consts::ARCH.to_owned(),
    };
    let binary = build(sh, &target, &arch, &flags.with)?;
    println!("{}", binary.display());
    Ok(())
}

/// Returns the binary.
pub fn build(sh: &Shell, target: &Target, arch: &str, with: &With) -> Result<PathBuf> {
    match with.builder(target) {
        Builder::Host => build_here(sh, arch),
        Builder::Docker => build_in_container(sh, arch),
    }
}

/// What the hosts of a target will turn out to be, so that a build need not wait for
/// their word: what was built for them before. Nothing, if that is not clear.
pub fn likely_arch(sh: &Shell, target: &Target, with: &With) -> Option<String> {
    if target.is_local() {
        return None;
    }
    match with.builder(target) {
        Builder::Host => Some(env::consts::ARCH.to_owned()),
        Builder::Docker => {
            let before = sh.read_dir(KEPT).ok()?;
            let [only] = &before[..] else { return None };
            Some(only.file_name()?.to_str()?.to_owned())
        }
    }
}

impl With {
    fn builder(&self, target: &Target) -> Builder {
        self.build.unwrap_or(if target.is_local() {
            Builder::Host
        } else {
            Builder::Docker
        })
    }
}

fn build_here(sh: &Shell, arch: &str) -> Result<PathBuf> {
    ensure!(
        arch == env::consts::ARCH,
        "this machine builds for {}, not for {arch}\nhint: `--build docker`",
        env::consts::ARCH
    );
    ui::step("Building", &format!("{NAME} for this machine"));
    let target = sh.current_dir().join("target");
    cargo(sh)
        .args(["build", "--release", "--locked", "--package", NAME])
        .arg("--target-dir")
        .arg(&target)
        .run()
        .with_context(|| format!("`{NAME}` does not build; nothing was deployed"))?;
    Ok(target.join("release").join(NAME))
}

/// Where the builder's folders are kept, for each architecture.
const KEPT: &str = "target/musl";

/// cargo's registry and its target folder are kept, so that what was built once is not
/// built again. CARGO_HOME stays the image's: its linker is set there.
fn build_in_container(sh: &Shell, arch: &str) -> Result<PathBuf> {
    ui::step(
        "Building",
        &format!("{NAME} for {arch} and musl, in {ENGINE}"),
    );
    check_engine()?;
    let image = image(arch);
    fetch_image(&image)?;
    let root = sh.current_dir();
    let kept = root.join(KEPT).join(arch);
    for folder in ["registry", "git", "target"] {
        sh.create_dir(kept.join(folder))?;
    }
    let mount = |from: &Path, to: &str| format!("--volume={}:{to}", from.display());
    let triple = format!("{arch}-unknown-linux-musl");
    // What it makes belongs to whom the workspace does, whatever number that has in there:
    // it is root itself.
    let script = format!(
        "trap 'chown -R --reference=/src /kept' EXIT
         cargo build --release --locked --package {NAME} --target {triple} --target-dir /kept/target"
    );
    let mut args = vec!["run".to_owned(), "--rm".to_owned()];
    if io::stderr().is_terminal() {
        args.extend(["--tty".to_owned(), "--env=TERM".to_owned()]);
    }
    args.extend([
        mount(&root, "/src:ro"),
        mount(&kept, "/kept"),
        mount(&kept.join("registry"), "/root/.cargo/registry"),
        mount(&kept.join("git"), "/root/.cargo/git"),
        "--workdir=/src".to_owned(),
        image.clone(),
        "sh".to_owned(),
        "-ec".to_owned(),
        script,
    ]);
    let built = cmd(ENGINE, args)
        .stdin_null()
        .stdout_to_stderr()
        .unchecked()
        .run()?;
    match built.status.code() {
        Some(0) => {}
        // Of the engine's own
        Some(125..=127) => bail!("{ENGINE} cannot run {image}; what it said is above"),
        _ => bail!("`{NAME}` does not build; nothing was deployed"),
    }
    let binary = kept.join("target").join(triple).join("release").join(NAME);
    check_binary(&binary, arch)?;
    Ok(binary)
}

fn image(arch: &str) -> String {
    BUILDER.replace("{arch}", arch)
}

pub fn check_engine() -> Result<()> {
    match cmd!(ENGINE, "version")
        .stdout_null()
        .stderr_capture()
        .unchecked()
        .run()
    {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!(
                "{ENGINE} does not run: {}\nhint: start it, or `--build host`",
                why.trim()
            )
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("there is no `{ENGINE}` on this machine\nhint: install it, or `--build host`")
        }
        Err(error) => Err(error).context(format!("cannot run `{ENGINE}`")),
    }
}

fn fetch_image(image: &str) -> Result<()> {
    let there = cmd!(ENGINE, "image", "inspect", image)
        .stdout_null()
        .stderr_null()
        .unchecked()
        .run()?;
    if there.status.success() {
        return Ok(());
    }
    ui::step("Fetching", image);
    let pulled = cmd!(ENGINE, "pull", "--quiet", image)
        .stdout_to_stderr()
        .unchecked()
        .run()?;
    ensure!(
        pulled.status.success(),
        "the image {image} is not to be had\nhint: `BUILDER` in xtask/src/config.rs names it"
    );
    Ok(())
}

/// Of elf(5). Told before anything is sent rather than by a server that cannot run it.
fn check_binary(binary: &Path, arch: &str) -> Result<()> {
    const INTERPRETER: u32 = 3;
    let bytes = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let number = |at: usize, len: usize| {
        bytes.get(at..at + len).map(|it| {
            it.iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        })
    };
    let machine = match arch {
        "x86_64" => 62,
        "aarch64" => 183,
        _ => bail!("no build is known for {arch}"),
    };
    ensure!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "{} is no executable",
        binary.display()
    );
    ensure!(
        number(18, 2) == Some(machine),
        "{} is not for {arch}",
        binary.display()
    );
    let (offset, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(offset), Some(size), Some(count)) = (offset, size, count) else {
        bail!("{} is cut short", binary.display());
    };
    let is_static = (0..count).all(|n| number(offset + n * size, 4) != Some(INTERPRETER as usize));
    ensure!(
        is_static,
        "{} is not static: it asks for an interpreter",
        binary.display()
    );
    Ok(())
}

/// Without what `cargo run` tells the xtask of itself: a nested cargo would take
/// that for its own and build everything again that depends on it.
pub fn cargo(sh: &Shell) -> Cmd<'_> {
    let cargo = env::var_os("CARGO").unwrap_or("cargo".into());
    env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            let name = name.to_string_lossy();
            ["CARGO_PKG_", "CARGO_MANIFEST_"]
                .iter()
                .any(|it| name.starts_with(it))
        })
        .fold(shell_cmd!(sh, "{cargo}").quiet(), Cmd::env_remove)
}
