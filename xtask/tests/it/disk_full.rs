//! A full disk, at every step at which something is written.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use crate::{
    app::app,
    place::{Place, is_intact, output},
    workspace::Workspace,
};

/// A small disk of its own. Only root can have one.
struct Disk(PathBuf);

impl Disk {
    fn mount(name: &str, size: usize) -> Disk {
        let dir = std::env::temp_dir().join(format!("cutover-disk-{}-{name}", process::id()));
        fs::create_dir_all(&dir).unwrap();
        let disk = Disk(dir);
        let options = format!("size={size}");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(&disk.0)
            .status();
        assert!(mount.unwrap().success(), "only root can mount a tmpfs");
        disk
    }

    /// Nobody can write to the file, not even root.
    fn freeze(file: &Path) {
        for options in ["bind", "remount,bind,ro"] {
            let mut mount = Command::new("mount");
            let mount = mount.args(["-o", options]).args([file, file]).status();
            assert!(mount.unwrap().success());
        }
    }

    /// Takes all but so many bytes.
    fn leave(&self, bytes: usize) {
        let free = Command::new("df")
            .args(["--output=avail", "-B1"])
            .arg(&self.0)
            .output()
            .unwrap();
        let free: usize = String::from_utf8_lossy(&free.stdout)
            .lines()
            .nth(1)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        fs::write(self.filler(), vec![0; free.saturating_sub(bytes)]).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn while_a_version_is_installed() {
    let binary = app("B");
    let disk = Disk::mount("install", 6 * binary.len());
    let place = Place::in_dir(&disk.0.join("app"));
    let a = place.make_live(&app("A"));
    let b = place.upload(&binary);
    for left in [0, 4096, 64 << 10, binary.len() / 2] {
        disk.leave(left);
        let said = place.activate(&b);
        let told = ["the version could not be stored in ", "cannot write "]
            .iter()
            .any(|it| said.contains(&format!("verdict failed {it}")));
        assert!(left == 0 || told, "{left}: {said}");
        assert!(!said.contains("verdict live"), "{said}");
        assert_eq!(place.live(), Some(a.name.clone()));
        assert_eq!(place.served(), Some(a.name.clone()));
        assert!(is_intact(&place.path("current").canonicalize().unwrap()));
        fs::remove_file(disk.filler()).unwrap();
    }
    place.make_live_again(&b);
    assert_eq!(place.served(), Some(b.name.clone()));
    place.wait_for_processes(1);
}

#[test]
fn while_a_version_is_copied() {
    let binary = app("B");
    let disk = Disk::mount("copy", 6 * binary.len());
    let beside = Place::new("beside");
    let workspace = Workspace::in_dir(
        Place::in_dir(&disk.0.join("app")),
        &beside.path("workspace"),
    );
    let a = workspace.deploy(&app("A")).succeeds();
    disk.leave(binary.len() / 2);
    workspace
        .deploy(&binary)
        .fails(&["No space left on device", "nothing was changed"]);
    assert_eq!(workspace.place.served().as_deref(), Some(a.trim()));
    assert_eq!(
        workspace.place.files("incoming"),
        [""; 0],
        "no half of a version is left"
    );
    fs::remove_file(disk.filler()).unwrap();
    workspace.deploy(&binary).succeeds();
}

/// The live version starts all the same.
#[test]
fn while_the_history_is_mended() {
    let disk = Disk::mount("history", 6 * app("A").len());
    let place = Place::in_dir(&disk.0.join("app"));
    let a = place.make_live(&app("A"));
    let history = place.path("history");
    let torn = fs::read_to_string(&history).unwrap() + "torn";
    fs::write(&history, torn).unwrap();
    Disk::freeze(&history);
    for (pid, _) in place.processes() {
        let killed = Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status();
        assert!(killed.unwrap().success());
    }
    place.wait_for_processes(0);
    let said = output(place.script(&["boot"]));
    assert_eq!(place.served(), Some(a.name), "{said}");
}
