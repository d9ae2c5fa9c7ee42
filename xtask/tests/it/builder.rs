//! The build in a container, with a real builder; and the xtask with another config.rs.

use std::{
    env, fs,
    os::unix::{
        fs::{MetadataExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Instant,
};

use crate::{
    app,
    lab::builder_image,
    site::Site,
    workspace::{Said, Workspace, said},
};

/// The xtask as it is with these edits of config.rs.
pub fn xtask_with(name: &str, edits: &[(&str, &str)]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _lock = ONE_AT_A_TIME.lock();
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xtask-configured");
    let _ = fs::remove_dir_all(&copy);
    copy_workspace(&copy);
    let config = copy.join("xtask/src/config.rs");
    let text = edits
        .iter()
        .fold(fs::read_to_string(&config).unwrap(), |text, (from, to)| {
            assert!(text.contains(from), "config.rs has no {from:?} any more");
            text.replacen(from, to, 1)
        });
    fs::write(&config, text).unwrap();
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

/// The same command, by another xtask.
pub fn by(xtask: &Path, command: &Command) -> Command {
    let mut same = Command::new(xtask);
    same.args(command.get_args())
        .current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        same.env(name, value.unwrap());
    }
    same
}

fn copy_workspace(to: &Path) {
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        "app",
        "xtask/Cargo.toml",
        "xtask/benches",
        "xtask/src",
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

#[test]
fn a_static_binary_that_serves() {
    let xtask = xtask_building_with(&builder_image().unwrap());
    let site = Site::set_up("musl");
    let root = &site.workspace.root;
    copy_workspace(root);
    site.workspace.commit();
    let kept = keep_what_was_built(root);
    let user = somebody();
    give(root, user);
    give(&kept, user);
    let build = || {
        let start = Instant::now();
        let mut command = by(
            &xtask,
            &site.workspace.command(&["build", "--build", "docker"]),
        );
        become_user(&mut command, user);
        let built = said(&mut command);
        println!("{}built in {:?}", built.people, start.elapsed());
        let compiled = built.people.contains("Compiling");
        (built.succeeds(), compiled)
    };
    let (binary, _) = build();
    let (again, compiled) = build();
    assert_eq!(again, binary);
    assert!(!compiled, "nothing had changed");
    let strangers = Command::new("find")
        .args([root, &kept])
        .args(["-not", "-user", &user.to_string()])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&strangers.stdout), "");
    let bytes = fs::read(binary.trim()).unwrap();
    assert!(bytes.starts_with(b"\x7fELF\x02\x01") && bytes[18..20] == [62, 0]);
    let libraries = Command::new("ldd").arg(binary.trim()).output().unwrap();
    let libraries = [libraries.stdout, libraries.stderr].concat();
    let libraries = String::from_utf8_lossy(&libraries);
    assert!(
        libraries.contains("statically linked") || libraries.contains("not a dynamic executable"),
        "{libraries}"
    );

    // By default a server gets what the container builds.
    give(root, myself());
    let mut deploy = by(&xtask, &site.command(&["deploy", &site.target()]));
    let live = said(&mut deploy).succeeds();
    assert_eq!(site.served(), live.trim());
    let running = site.root("sha256sum </srv/app/current");
    assert!(
        running.starts_with(&crate::place::version_of(&bytes).sha256),
        "{running}"
    );
}

#[test]
fn why_there_is_no_build() {
    let image = builder_image().unwrap();
    let (xtask, hopeless) = (
        xtask_building_with(&image),
        xtask_building_with("cutover-test.invalid/no-such-builder:1"),
    );
    let workspace = Workspace::new("builder");
    // Without dependencies, which would be built first.
    for (file, text) in [
        (
            "Cargo.toml",
            "[package]\nname = \"app\"\nversion = \"0.1.0\"\n",
        ),
        (
            "Cargo.lock",
            "version = 3\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n",
        ),
        ("src/main.rs", "fn main() { let it: u8 = \"a mistake\"; }"),
    ] {
        let file = workspace.root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let build = |xtask: &Path| by(xtask, &workspace.command(&["build", "--build", "docker"]));
    let check = |command: &mut Command, words: &[&str]| {
        let failed: Said = said(command);
        println!("{}", failed.people);
        failed.fails(words);
    };
    // A PATH with what there is but the engine
    let tools = workspace.place.path("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["sh", "id", "git", "uname"] {
        let found = Command::new("which").arg(tool).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        symlink(found.trim(), tools.join(tool)).unwrap();
    }
    check(
        build(&xtask).env("PATH", &tools),
        &["there is no `docker` on this machine", "--build host"],
    );
    check(
        build(&xtask).env("DOCKER_HOST", "unix:///nonexistent/docker.sock"),
        &["docker does not run: ", "/nonexistent/docker.sock"],
    );
    check(
        &mut build(&hopeless),
        &[
            "the image cutover-test.invalid/no-such-builder:1 is not to be had",
            "`BUILDER`",
        ],
    );
    check(
        &mut build(&xtask),
        &[
            "mismatched types",
            "`app` does not build; nothing was deployed",
        ],
    );
}

fn xtask_building_with(image: &str) -> PathBuf {
    let line = |image: &str| format!("pub const BUILDER: &str = {image:?};");
    let from = line("ghcr.io/rust-cross/rust-musl-cross:{arch}-musl");
    let name = image.replace(['/', ':', '.'], "-");
    xtask_with(&name, &[(&from, &line(image))])
}

/// From one run of the tests to the next, so that only the first one takes a minute.
fn keep_what_was_built(root: &Path) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("musl");
    fs::create_dir_all(&kept).unwrap();
    fs::create_dir(root.join("target")).unwrap();
    symlink(&kept, root.join("target/musl")).unwrap();
    kept
}

fn myself() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// Where root runs the tests, somebody else builds, so that whose the result is can be told.
fn somebody() -> u32 {
    const NOBODY: u32 = 65534;
    if myself() == 0 { NOBODY } else { myself() }
}

fn give(dir: &Path, user: u32) {
    let chown = Command::new("chown")
        .arg("-R")
        .arg(user.to_string())
        .arg(dir)
        .status();
    assert!(chown.unwrap().success());
}

/// Who may use Docker.
fn become_user(command: &mut Command, user: u32) {
    if user != myself() {
        let docker = fs::metadata("/var/run/docker.sock").unwrap().gid();
        command.uid(user).gid(docker).env("HOME", "/nonexistent");
    }
}
