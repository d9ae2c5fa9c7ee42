//! The build in a container, with a real builder.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::Instant,
};

use crate::{
    configured::{by, copy_workspace, xtask_with},
    lab::builder_image,
    site::Site,
    workspace::{Said, Workspace, said},
};

#[test]
fn a_static_binary_that_serves() {
    let xtask = xtask_with_builder();
    let built = built_in_container();
    let site = Site::set_up("musl");
    let root = &site.workspace.root;
    copy_workspace(root);
    site.workspace.commit();
    // Of the build, only the dependencies are there.
    let cache = root.join("target/musl/x86_64");
    fs::create_dir_all(&cache).unwrap();
    copy_folder(&built.join("x86_64/target"), &cache.join("target"));
    // The folder that is kept may be closed to others.
    let tool = root.join("target/tool");
    let copied = Command::new("cp").args([xtask, &tool]).status();
    assert!(copied.unwrap().success());
    let user = somebody();
    give(root, user);
    let build = || {
        let start = Instant::now();
        let mut command = by(
            &tool,
            &site
                .workspace
                .command(&["build", "/srv/app", "--build", "container"]),
        );
        become_user(&mut command, user);
        let built = said(&mut command);
        println!("{}built in {:?}", built.people, start.elapsed());
        let compiled = built.people.contains("Compiling");
        (built.succeeds(), compiled)
    };
    let (binary, compiled) = build();
    assert!(compiled);
    let (again, compiled) = build();
    assert_eq!(again, binary);
    assert!(!compiled, "nothing had changed");
    let strangers = Command::new("find")
        .arg(root)
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

    // The container is the default for servers.
    give(root, myself());
    let mut deploy = by(xtask, &site.command(&["deploy", &site.target()]));
    let live = said(&mut deploy).succeeds();
    assert_eq!(site.served(), live.trim());
    let running = site.root("sha256sum </srv/app/current");
    assert!(
        running.starts_with(&crate::place::version_of(&bytes).sha256),
        "{running}"
    );
}

/// The workspace's `target/musl` after a build, but without the app. Each run of the tests
/// makes it once, because the dependencies take a minute.
pub fn built_in_container() -> PathBuf {
    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let workspace = Workspace::new("built");
        copy_workspace(&workspace.root);
        let build = workspace.command(&["build", "/srv/app", "--build", "container"]);
        let app = PathBuf::from(
            said(&mut by(xtask_with_builder(), &build))
                .succeeds()
                .trim(),
        );
        fs::remove_file(&app).unwrap();
        for entry in fs::read_dir(app.with_file_name(".fingerprint")).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with("app-") || name.starts_with("cutover-") {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("built-in-container");
        let _ = fs::remove_dir_all(&kept);
        copy_folder(&workspace.root.join("target/musl"), &kept);
        kept
    });
    BUILT.clone()
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

#[test]
fn a_failed_build_says_why() {
    let xtask = xtask_with_builder();
    let hopeless = xtask_building_with("cutover-test.invalid/no-such-builder:1");
    let workspace = Workspace::new("builder");
    // It has no dependencies, which would be built first.
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
    let build = |xtask: &Path| {
        by(
            xtask,
            &workspace.command(&["build", "/srv/app", "--build", "container"]),
        )
    };
    let check = |command: &mut Command, words: &[&str]| {
        let failed: Said = said(command);
        println!("{}", failed.people);
        failed.fails(words);
    };
    // A PATH without the engine
    let tools = workspace.place.path("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["sh", "id", "git", "uname"] {
        let found = Command::new("which").arg(tool).output().unwrap();
        let found = String::from_utf8(found.stdout).unwrap();
        symlink(found.trim(), tools.join(tool)).unwrap();
    }
    check(
        build(xtask).env("PATH", &tools),
        &["`docker` is not installed", "--build host"],
    );
    check(
        build(xtask).env("DOCKER_HOST", "unix:///nonexistent/docker.sock"),
        &["docker does not work: ", "/nonexistent/docker.sock"],
    );
    check(
        &mut build(&hopeless),
        &[
            "cannot pull image `cutover-test.invalid/no-such-builder:1`",
            "`BUILDER`",
        ],
    );
    check(
        &mut build(xtask),
        &[
            "mismatched types",
            "`app` does not build; nothing was deployed",
        ],
    );
}

fn xtask_with_builder() -> &'static Path {
    static XTASK: LazyLock<PathBuf> =
        LazyLock::new(|| xtask_building_with(&builder_image("x86_64").unwrap()));
    &XTASK
}

pub fn xtask_building_with(image: &str) -> PathBuf {
    let line = |image: &str| format!("pub const BUILDER: &str = {image:?};");
    let from = line("ghcr.io/rust-cross/rust-musl-cross:{arch}-musl");
    let name = image.replace(['/', ':', '.'], "-");
    xtask_with(&name, &[(&from, &line(image))])
}

pub fn myself() -> u32 {
    fs::metadata("/proc/self").unwrap().uid()
}

/// If root runs the tests, another user builds, to see that the result belongs to that user.
fn somebody() -> u32 {
    const NOBODY: u32 = 65534;
    if myself() == 0 { NOBODY } else { myself() }
}

pub fn give(dir: &Path, user: u32) {
    let chown = Command::new("chown")
        .arg("-R")
        .arg(user.to_string())
        .arg(dir)
        .status();
    assert!(chown.unwrap().success());
}

/// As a user who may use Docker.
fn become_user(command: &mut Command, user: u32) {
    if user != myself() {
        let docker = fs::metadata("/var/run/docker.sock").unwrap().gid();
        command.uid(user).gid(docker).env("HOME", "/nonexistent");
    }
}
