//! The app in `tests/notes`: it has a database and needs a secret.

use std::{env::consts::ARCH, fs, path::Path, process::Command, sync::LazyLock};

/// A binary of its own for each label.
pub fn notes(label: &str) -> Vec<u8> {
    static NOTES: LazyLock<Vec<u8>> = LazyLock::new(build);
    [NOTES.as_slice(), format!("\nlabel:{label}\n").as_bytes()].concat()
}

/// Static, because a server's libc may be older than this machine's.
fn build() -> Vec<u8> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("notes");
    let target = format!("{ARCH}-unknown-linux-gnu");
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--target", &target])
        .arg("--target-dir")
        .arg(&dir)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notes"))
        .env("RUSTFLAGS", "--codegen target-feature=+crt-static")
        .env_remove("CARGO_MANIFEST_DIR")
        .status();
    assert!(
        status.unwrap().success(),
        "the app with notes does not build"
    );
    fs::read(dir.join(target).join("debug/notes")).unwrap()
}
