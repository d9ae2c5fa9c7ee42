//! What is deployed: the app, and the app with one line of it changed, each built as
//! servers get it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::{WORKSPACE, lab::builder_image};

pub struct Apps {
    pub first: PathBuf,
    pub changed: PathBuf,
}

pub const LINE_IN: &str = "app/src/pages.rs";
pub const BEFORE: &str = "there is no such page";
const AFTER: &str = "this page does not exist";

impl Apps {
    /// What only one of them answers to a wrong address.
    pub fn mark(&self, binary: &Path) -> &'static str {
        if binary == self.first { BEFORE } else { AFTER }
    }

    pub fn size(&self) -> Result<u64> {
        Ok(fs::metadata(&self.changed)?.len())
    }
}

/// The profile `release` of this workspace, or cargo's own.
#[derive(Clone, Copy)]
pub enum Profile {
    Ours,
    Cargos,
}

pub fn build() -> Result<Apps> {
    let sh = Shell::new()?;
    sh.change_dir(env!("CARGO_TARGET_TMPDIR"));
    sh.create_dir("deploys/src")?;
    sh.change_dir("deploys");
    for part in ["Cargo.toml", "Cargo.lock", "app", "xtask"] {
        cmd!(sh, "cp --archive {WORKSPACE}/{part} src")
            .quiet()
            .run()?;
    }
    let apps = Apps {
        first: build_one(BEFORE, Profile::Ours, "first")?,
        changed: build_one(AFTER, Profile::Ours, "changed")?,
    };
    ensure!(fs::read(&apps.first)? != fs::read(&apps.changed)?);
    Ok(apps)
}

/// The app that answers a wrong address with this text. All are built in one folder, so that
/// only the app itself is compiled each time: cargo looks at the file's time.
pub fn build_one(text: &str, profile: Profile, name: &str) -> Result<PathBuf> {
    let sh = Shell::new()?;
    sh.change_dir(Path::new(env!("CARGO_TARGET_TMPDIR")).join("deploys"));
    let original = sh.read_file(format!("{WORKSPACE}/{LINE_IN}"))?;
    ensure!(
        original.contains(BEFORE),
        "{LINE_IN} has no {BEFORE:?} any more"
    );
    sh.write_file(format!("src/{LINE_IN}"), original.replace(BEFORE, text))?;
    let (target, settings) = match profile {
        Profile::Ours => ("target", &[][..]),
        Profile::Cargos => ("target-cargos", CARGOS_PROFILE),
    };
    for folder in ["kept/registry".to_owned(), format!("kept/{target}")] {
        sh.create_dir(folder)?;
    }
    let here = sh.current_dir();
    let mount = |from: &str, to: &str| format!("--volume={}/{from}:{to}", here.display());
    let mounts = [
        mount("src", "/src:ro"),
        mount("kept", "/kept"),
        mount("kept/registry", "/root/.cargo/registry"),
    ];
    let image = builder_image("x86_64")?;
    cmd!(sh, "docker run --rm --label=cutover-test {mounts...} {settings...} --workdir=/src {image} cargo build --quiet --release --locked --package app --target-dir /kept/{target}")
        .quiet()
        .run()?;
    let built = sh.read_dir(format!("kept/{target}"))?;
    let built = built.into_iter().map(|it| it.join("release/app"));
    let binary = here.join(name).join("app");
    for built in built.filter(|it| it.exists()) {
        sh.create_dir(name)?;
        sh.copy_file(built, &binary)?;
    }
    Ok(binary)
}

/// Undoes what the workspace changes of it.
const CARGOS_PROFILE: &[&str] = &[
    "--env=CARGO_PROFILE_RELEASE_INCREMENTAL=false",
    "--env=CARGO_PROFILE_RELEASE_LTO=false",
    "--env=CARGO_PROFILE_RELEASE_OPT_LEVEL=3",
];
