//! The app under test: the real one, built as a release, with `faults.rs` in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};

pub const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Shared by everything that builds here, so that dependencies are built once.
pub const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/target");

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
    edit("Cargo.toml", &[(r#""app", "xtask""#, r#""app""#)]);
    edit(
        "app/src/main.rs",
        &[
            (
                "fn main() -> ExitCode {",
                "mod faults;\n\nfn main() -> ExitCode {\n    faults::at_start();",
            ),
            (
                "signals.first().await;",
                "signals.first().await;\n        if faults::is(\"deaf\") {\n            std::future::pending::<()>().await;\n        }",
            ),
        ],
    );
    edit(
        "app/src/routes.rs",
        &[
            (
                ".route(\"/version\"",
                ".route(\"/slow/{seconds}\", get(crate::faults::slow))\n        .route(\"/version\"",
            ),
            (
                "async fn healthz(State(app): State<App>) -> impl IntoResponse {\n    (",
                "async fn healthz(State(app): State<App>) -> impl IntoResponse {\n    (\n        if crate::faults::is(\"unhealthy\") { axum::http::StatusCode::INTERNAL_SERVER_ERROR } else { axum::http::StatusCode::OK },",
            ),
        ],
    );
    let status = Command::new("cargo")
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "app",
            "--target-dir",
            TARGET,
        ])
        .current_dir(&copy)
        .env_remove("CARGO_MANIFEST_DIR")
        .status()
        .unwrap();
    assert!(status.success(), "the app with faults does not build");
    fs::read(Path::new(TARGET).join("release/app")).unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to: PathBuf = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &to)
        } else {
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
