//! What everybody who copies this waits for once: the xtask's own cold build.

use std::{
    env,
    ffi::OsString,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use xshell::{Cmd, Shell, cmd};

use crate::{WORKSPACE, table::median};

/// What an xtask like this one needs at least: without a parser of arguments, and without
/// signals.
const NAMED: [&str; 5] = ["anyhow", "duct", "sha2", "time", "xshell"];

pub struct ColdBuilds {
    pub xtask: Duration,
    /// A crate with these five of its dependencies, and nothing in it.
    pub bare: Duration,
}

pub fn measure(rounds: usize) -> Result<ColdBuilds> {
    let sh = Shell::new()?;
    let bare = Path::new(env!("CARGO_TARGET_TMPDIR")).join("deploys/bare");
    make_bare(&bare)?;
    let (mut xtask_walls, mut bare_walls) = (vec![], vec![]);
    for round in 1..=rounds {
        eprintln!("cold builds, round {round} of {rounds}");
        xtask_walls.push(cold_build(&sh, Path::new(WORKSPACE), "xtask")?);
        bare_walls.push(cold_build(&sh, &bare, "bare")?);
    }
    Ok(ColdBuilds {
        xtask: median(xtask_walls),
        bare: median(bare_walls),
    })
}

fn make_bare(dir: &Path) -> Result<()> {
    let manifest = fs::read_to_string(format!("{WORKSPACE}/xtask/Cargo.toml"))?;
    let is_named = |line: &&str| {
        let name = line.split_once(" = ").map(|(name, _)| name);
        name.is_some_and(|it| NAMED.contains(&it))
    };
    let lines: Vec<&str> = manifest.lines().filter(is_named).collect();
    let lines = lines.join("\n");
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir.join("src"))?;
    fs::write(dir.join("src/main.rs"), "fn main() {}\n")?;
    fs::copy(format!("{WORKSPACE}/Cargo.lock"), dir.join("Cargo.lock"))?;
    let package = "[workspace]\n[package]\nname = \"bare\"\nedition = \"2024\"\n[dependencies]";
    Ok(fs::write(
        dir.join("Cargo.toml"),
        format!("{package}\n{lines}\n[profile.quick]\ninherits = \"dev\"\ndebug = false\n"),
    )?)
}

fn cold_build(sh: &Shell, workspace: &Path, package: &str) -> Result<Duration> {
    let _dir = sh.push_dir(workspace);
    let target = sh.create_temp_dir()?;
    let target = target.path();
    let build = cmd!(
        sh,
        "cargo build --quiet --offline --profile quick --package {package} --target-dir {target}"
    );
    let start = Instant::now();
    without_ours(build)
        .run()
        .with_context(|| format!("`{package}` does not build"))?;
    Ok(start.elapsed())
}

/// What cargo says of the benchmark is not meant for the cargo that is measured.
pub fn without_ours(command: Cmd) -> Cmd {
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
    };
    env::vars_os()
        .map(|(name, _)| name)
        .filter(ours)
        .fold(command.quiet(), Cmd::env_remove)
}
