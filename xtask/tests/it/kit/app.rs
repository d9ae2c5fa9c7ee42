//! The app under test: the real one, built as a release, with `faults.rs` added to it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

pub const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Shared by everything that builds here, so that dependencies are built once.
pub const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/target");

/// Files that are only written with their edits: a file that was written twice is newer
/// than the binary, and each run of the tests would build the app again.
const EDITED: &[&str] = &["app/src/main.rs", "app/src/routes.rs"];

/// A binary of its own for each label.
pub fn app(label: &str) -> Vec<u8> {
    faulty_app(label, "none")
}

/// A binary with one of the faults of `faults.rs`.
pub fn faulty_app(label: &str, fault: &str) -> Vec<u8> {
    static APP: LazyLock<Vec<u8>> = LazyLock::new(build);
    let tail = format!("\nlabel:{label} fault:{fault}\n");
    [APP.as_slice(), tail.as_bytes()].concat()
}

fn build() -> Vec<u8> {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("app-with-faults");
    let workspace = Path::new(WORKSPACE);
    copy_dir(&workspace.join("app"), &copy.join("app"));
    write(&copy.join("app/src/faults.rs"), include_str!("faults.rs"));
    write(
        &copy.join("Cargo.lock"),
        &read(&workspace.join("Cargo.lock")),
    );
    let edit = |file: &str, edits: &[(&str, &str)]| {
        let text = edits
            .iter()
            .fold(read(&workspace.join(file)), |text, (from, to)| {
                assert!(text.contains(from), "{file} has no {from:?} any more");
                text.replacen(from, to, 1)
            });
        write(&copy.join(file), &text);
    };
    edit(
        "Cargo.toml",
        &[(
            r#""app", "app/cutover", "xtask""#,
            r#""app", "app/cutover""#,
        )],
    );
    edit(
        "app/src/main.rs",
        &[(
            "fn main() -> ExitCode {",
            "mod faults;\n\nfn main() -> ExitCode {\n    faults::at_start();",
        )],
    );
    edit(
        "app/src/routes.rs",
        &[(
            ".route(\"/version\"",
            ".route(\"/slow/{seconds}\", get(crate::faults::slow))\n        .route(\"/version\"",
        )],
    );
    edit(
        "app/src/health.rs",
        &[(
            "(NO_STORE, \"ok\\n\")",
            "(crate::faults::health().await, NO_STORE, \"ok\\n\")",
        )],
    );
    edit(
        "app/cutover/src/drain.rs",
        &[(
            "signals.first().await;",
            "signals.first().await;
    if std::fs::read(\"/proc/self/exe\").is_ok_and(|it| it.ends_with(b\" fault:deaf\\n\")) {
        std::future::pending::<()>().await;
    }",
        )],
    );
    // Static, because an image FROM scratch has no libraries. The flag is for the app alone.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--package", "app"])
        .args(["--target", &triple, "--target-dir", TARGET])
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .current_dir(&copy)
        .env_remove("CARGO_MANIFEST_DIR")
        .status()
        .unwrap();
    assert!(status.success(), "the app with faults does not build");
    fs::read(Path::new(TARGET).join(triple).join("release/app")).unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to: PathBuf = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &to)
        } else if !EDITED.iter().any(|it| path.ends_with(it)) {
            write_bytes(&to, &fs::read(&path).unwrap())
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn write(path: &Path, text: &str) {
    write_bytes(path, text.as_bytes());
}

/// What is not written anew is not built anew.
fn write_bytes(path: &Path, bytes: &[u8]) {
    if fs::read(path).ok().as_deref() != Some(bytes) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
