//! The build: from the workspace to one binary.

use std::{
    env, fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Error, Result, bail, ensure};
use duct::cmd;
use xshell::{Cmd, Shell, cmd as shell_cmd};

use crate::{
    config::{BUILDER, ENGINE, NAME},
    state::Arch,
    target::Target,
    terminal,
};

/// The builder keeps a folder here for each architecture, so that nothing is built twice.
const CACHE_DIR: &str = "target/musl";

/// Runs in the container.
const BUILD: &str = include_str!("builder.sh");

/// Exit codes of the engine itself; others come from the command in the container.
const ENGINE_FAILED: std::ops::RangeInclusive<i32> = 125..=127;

#[derive(Clone, Copy, PartialEq)]
pub enum Builder {
    /// A static binary for the host's architecture.
    Container,
    /// This machine's cargo.
    Host,
}

impl Builder {
    pub fn default_for(target: &Target) -> Builder {
        if target.is_local() {
            Builder::Host
        } else {
            Builder::Container
        }
    }
}

impl FromStr for Builder {
    type Err = Error;

    fn from_str(name: &str) -> Result<Builder> {
        match name {
            "container" => Ok(Builder::Container),
            "host" => Ok(Builder::Host),
            _ => bail!("it must be `container` or `host`"),
        }
    }
}

/// Returns the binary. `profile` is a Cargo profile.
pub fn build(sh: &Shell, builder: Builder, arch: Arch, profile: &str) -> Result<PathBuf> {
    match builder {
        Builder::Host => build_here(sh, arch, profile),
        Builder::Container => build_in_container(sh, arch, profile),
    }
}

/// The architecture that the hosts of a target probably have, so that a build need not
/// wait for their answer: the one that was built for before. `None` if that is not clear.
pub fn likely_arch(sh: &Shell, builder: Builder) -> Option<Arch> {
    match builder {
        Builder::Host => Arch::this_machine().ok(),
        Builder::Container => {
            let built = sh.read_dir(CACHE_DIR).ok()?;
            let [only] = &built[..] else { return None };
            Arch::parse(only.file_name()?.to_str()?).ok()
        }
    }
}

fn build_here(sh: &Shell, arch: Arch, profile: &str) -> Result<PathBuf> {
    ensure!(
        arch == Arch::this_machine()?,
        "this machine builds for {}, not for {}\nhint: `--build container`",
        env::consts::ARCH,
        arch.name()
    );
    terminal::step("Building", &format!("{NAME} for this machine"));
    let target = sh.current_dir().join("target");
    cargo(sh)
        .args(["build", "--locked", "--package", NAME, "--profile", profile])
        .arg("--target-dir")
        .arg(&target)
        .run()
        .with_context(build_failed)?;
    Ok(target.join(folder_of(profile)).join(NAME))
}

fn build_in_container(sh: &Shell, arch: Arch, profile: &str) -> Result<PathBuf> {
    let text = format!("{NAME} for {} and musl, in {ENGINE}", arch.name());
    terminal::step("Building", &text);
    check_engine()?;
    let image = BUILDER.replace("{arch}", arch.name());
    pull_if_missing(&image)?;
    let cache = sh.current_dir().join(CACHE_DIR).join(arch.name());
    for folder in ["registry", "git", "target"] {
        sh.create_dir(cache.join(folder))?;
    }
    let triple = format!("{}-unknown-linux-musl", arch.name());
    let status = cmd(
        ENGINE,
        container_args(&sh.current_dir(), &cache, &image, [NAME, profile, &triple]),
    )
    .stdin_null()
    .stdout_to_stderr()
    .unchecked()
    .run()?
    .status;
    match status.code() {
        Some(0) => {}
        Some(code) if ENGINE_FAILED.contains(&code) => {
            bail!("{ENGINE} cannot run the image {image}; its message is above")
        }
        _ => bail!(build_failed()),
    }
    let built = cache.join("target").join(triple).join(folder_of(profile));
    let binary = built.join(NAME);
    check_binary(&binary, arch)?;
    Ok(binary)
}

/// Where cargo puts what it builds with a profile.
fn folder_of(profile: &str) -> &str {
    if profile == "dev" { "debug" } else { profile }
}

/// `arguments` are those of builder.sh. cargo's registry and target folder are kept, so that
/// nothing is built twice. CARGO_HOME stays the image's own, because the linker is configured
/// there.
fn container_args(root: &Path, cache: &Path, image: &str, arguments: [&str; 3]) -> Vec<String> {
    let mount = |from: &Path, to: &str| format!("--volume={}:{to}", from.display());
    let mut args = vec!["run".to_owned(), "--rm".to_owned()];
    if io::stderr().is_terminal() {
        args.extend(["--tty".to_owned(), "--env=TERM".to_owned()]);
    }
    args.extend([
        mount(root, "/src:ro"),
        mount(cache, "/cache"),
        mount(&cache.join("registry"), "/root/.cargo/registry"),
        mount(&cache.join("git"), "/root/.cargo/git"),
        "--workdir=/src".to_owned(),
        image.to_owned(),
    ]);
    args.extend(["sh", "-c", BUILD, "build"].map(str::to_owned));
    args.extend(arguments.map(str::to_owned));
    args
}

fn build_failed() -> String {
    format!("`{NAME}` does not build; nothing was deployed")
}

/// Whether the container engine can be used; if not, why.
pub fn check_engine() -> Result<()> {
    match cmd!(ENGINE, "version")
        .stdout_null()
        .stderr_capture()
        .unchecked()
        .run()
    {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => bail!(
            "{ENGINE} does not work: {}\nhint: start it, or `--build host`",
            String::from_utf8_lossy(&output.stderr).trim()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("`{ENGINE}` is not installed\nhint: install it, or `--build host`")
        }
        Err(error) => Err(error).context(format!("cannot run `{ENGINE}`")),
    }
}

fn pull_if_missing(image: &str) -> Result<()> {
    let inspect = cmd!(ENGINE, "image", "inspect", image);
    let inspect = inspect.stdout_null().stderr_null().unchecked().run()?;
    if inspect.status.success() {
        return Ok(());
    }
    terminal::step("Pulling", image);
    let pull = cmd!(ENGINE, "pull", "--quiet", image);
    let pull = pull.stdout_to_stderr().unchecked().run()?;
    ensure!(
        pull.status.success(),
        "cannot pull image `{image}`\nhint: `BUILDER` in xtask/src/config.rs names it"
    );
    Ok(())
}

/// Checks the ELF header (elf(5)), so that a wrong binary is an error before the upload.
pub fn check_binary(binary: &Path, arch: Arch) -> Result<()> {
    const MACHINE: (usize, usize) = (18, 2);
    let name = binary.display();
    let bytes = fs::read(binary).with_context(|| format!("cannot read {name}"))?;
    let machine = match arch {
        Arch::X86_64 => 62,
        Arch::Aarch64 => 183,
    };
    ensure!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "{name} is not an executable"
    );
    ensure!(
        number(&bytes, MACHINE.0, MACHINE.1) == Some(machine),
        "{name} is not for {}",
        arch.name()
    );
    let interpreter = has_interpreter(&bytes).with_context(|| format!("{name} is truncated"))?;
    ensure!(
        !interpreter,
        "{name} is not static: it needs a dynamic loader"
    );
    Ok(())
}

/// Whether a program header asks for a dynamic loader (PT_INTERP).
fn has_interpreter(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: usize = 3;
    let (offset, size, count) = (
        number(elf, 32, 8)?,
        number(elf, 54, 2)?,
        number(elf, 56, 2)?,
    );
    let mut types = (0..count).map(|n| number(elf, offset + n * size, 4));
    Some(types.any(|kind| kind == Some(PT_INTERP)))
}

/// A little-endian number of `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(len)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte)),
    )
}

/// cargo without the variables that `cargo run` sets for the xtask: a nested cargo would
/// take them for its own, and rebuild everything that depends on them.
pub fn cargo(sh: &Shell) -> Cmd<'_> {
    let cargo = env::var_os("CARGO").unwrap_or("cargo".into());
    env::vars_os()
        .map(|(name, _)| name)
        .filter(|name| {
            let name = name.to_string_lossy();
            ["CARGO_PKG_", "CARGO_MANIFEST_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .fold(shell_cmd!(sh, "{cargo}").quiet(), Cmd::env_remove)
}
