//! The xtask with other files, config.rs above all.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use crate::app;

/// The xtask, built with these edits of config.rs.
pub fn xtask_with(name: &str, edits: &[(&str, &str)]) -> PathBuf {
    let edits = edits.iter().map(|(from, to)| ("src/config.rs", *from, *to));
    edited_xtask(name, &edits.collect::<Vec<_>>())
}

/// The xtask, built with other files: which, and what is replaced there by what.
pub fn edited_xtask(name: &str, edits: &[(&str, &str, &str)]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xtask-configured");
    let _ = fs::remove_dir_all(&copy);
    copy_workspace(&copy);
    for (file, from, to) in edits {
        let path = copy.join("xtask").join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from:?} any more");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
    }
    let built = Command::new("cargo")
        .args(["build", "--quiet", "--package", "xtask", "--target-dir"])
        .arg(app::TARGET)
        .current_dir(&copy)
        .env_remove("CARGO_MANIFEST_DIR")
        .status();
    assert!(built.unwrap().success());
    let xtask = copy.with_file_name(format!("xtask-{name}"));
    let _ = fs::remove_file(&xtask);
    fs::copy(Path::new(app::TARGET).join("debug/xtask"), &xtask).unwrap();
    xtask
}

/// The same command with another xtask.
pub fn by(xtask: &Path, command: &Command) -> Command {
    like(command, Command::new(xtask))
}

/// The program with the arguments, the directory and the variables of a command.
pub fn like(command: &Command, mut same: Command) -> Command {
    same.args(command.get_args())
        .current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        same.env(name, value.unwrap());
    }
    same
}

pub fn copy_workspace(to: &Path) {
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        "app",
        "xtask/Cargo.toml",
        "xtask/benches",
        "xtask/kubernetes",
        "xtask/src",
        "xtask/server",
        "systemd",
    ] {
        let from = Path::new(app::WORKSPACE).join(name);
        let to = to.join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = Command::new("cp")
            .args(["-r".as_ref(), from.as_os_str(), to.as_os_str()])
            .status();
        assert!(copied.unwrap().success());
    }
}
