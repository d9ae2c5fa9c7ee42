//! What is deployed: the app, and the app with one line of it changed, each built as
//! servers get it. How long that takes is the same for everybody, and left out.

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

const LINE_IN: &str = "app/src/pages.rs";
const BEFORE: &str = "there is no such page";
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
    let text = sh.read_file(format!("{WORKSPACE}/{LINE_IN}"))?;
    ensure!(
        text.contains(BEFORE),
        "{LINE_IN} has no {BEFORE:?} any more"
    );
    let apps = Apps {
        first: build_one(&sh, "first", &text)?,
        changed: build_one(&sh, "changed", &text.replace(BEFORE, AFTER))?,
    };
    ensure!(fs::read(&apps.first)? != fs::read(&apps.changed)?);
    Ok(apps)
}

/// In one folder, so that only the app itself is built each time: cargo goes by how old
/// the file is, which is written each time.
fn build_one(sh: &Shell, name: &str, text: &str) -> Result<PathBuf> {
    sh.write_file(format!("src/{LINE_IN}"), text)?;
    for folder in ["kept/target", "kept/registry"] {
        sh.create_dir(folder)?;
    }
    let here = sh.current_dir();
    let mount = |from: &str, to: &str| format!("--volume={}/{from}:{to}", here.display());
    let mounts = [
        mount("src", "/src:ro"),
        mount("kept", "/kept"),
        mount("kept/registry", "/root/.cargo/registry"),
    ];
    let image = builder_image()?;
    cmd!(sh, "docker run --rm --label=cutover-test {mounts...} --workdir=/src {image} cargo build --quiet --release --locked --package app --target-dir /kept/target")
        .quiet()
        .run()?;
    let built = sh.read_dir("kept/target")?;
    let built = built.into_iter().map(|it| it.join("release/app"));
    let binary = here.join(name).join("app");
    for built in built.filter(|it| it.exists()) {
        sh.create_dir(name)?;
        sh.copy_file(built, &binary)?;
    }
    Ok(binary)
}
