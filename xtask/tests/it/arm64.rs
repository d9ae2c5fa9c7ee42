//! A server for arm64: all its programs are, from systemd to the app. The processor is not
//! real: it is qemu's user mode on this machine's kernel. It knows no seccomp, so the
//! sandbox filters no system calls there.
//!
//! Tests begin in the order of their names. This one takes the longest, so it is among the
//! first.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{
    adoption::edit,
    builder::xtask_building_with,
    configured::{by, copy_workspace},
    http,
    lab::{Arm64Emulator, builder_image},
    load::{Connections, Load},
    place::wait_until,
    site::Site,
    workspace::said,
};

#[test]
fn from_bare_to_a_switch_and_back() {
    let emulator = Arm64Emulator::start().unwrap();
    // The image is found by the architecture that the host tells.
    let image = builder_image("aarch64").unwrap();
    let xtask = xtask_building_with(&image.replace("aarch64", "{arch}"));
    let site = Site::bare_from(&emulator.server_image().unwrap(), "arm64", &[]);
    assert_eq!(site.root("uname -m"), "aarch64\n");
    let root = &site.workspace.root;
    copy_workspace(root);
    site.workspace.commit();
    let kept = keep_what_was_built(root);
    let target = site.target();
    let xtask = |args: &[&str]| {
        let start = Instant::now();
        let args = [&args[..1], &[&target], &args[1..]].concat();
        let ran = said(&mut by(&xtask, &site.command(&args)));
        println!("{args:?} in {:?}: {}", start.elapsed(), ran.people);
        ran
    };

    xtask(&["setup", "--as", "root", "--listen", "0.0.0.0:80"]).succeeds();
    xtask(&["build", "--build", "host"]).fails(&["not for aarch64", "`--build container`"]);
    let first = xtask(&["deploy"]).succeeds();
    assert_eq!(site.served(), first.trim());
    let answer = http::get(site.address(), "/healthz").unwrap();
    assert_eq!((answer.status, &*answer.body), (200, "ok\n"));
    let built = fs::read(kept.join("aarch64/target/aarch64-unknown-linux-musl/release/app"));
    let built = built.unwrap();
    assert_eq!(built[18..20], [183, 0]);
    // The linker follows app/layout.ld here, too, which keeps patches small.
    let layout = b".rodata.app";
    assert!(built.windows(layout.len()).any(|it| it == layout));

    edit(
        &root.join("app/pages/index.html"),
        "</body>",
        "<p>2</p></body>",
    );
    site.workspace.commit();
    let before = site.received();
    let second = xtask(&["deploy"]).succeeds();
    let received = site.received() - before;
    println!("figure: a changed page on arm64: the server received {received} bytes");
    assert!(received < built.len() as u64 / 10, "{received}");

    let load = Load::start(site.address(), 2, Connections::New);
    for version in [&first, &second] {
        assert_eq!(
            &xtask(&["rollback", "--to", version.trim()]).succeeds(),
            version
        );
        // The emulator's name stands before that of the instance.
        let count = "pgrep -c -f ' [/]srv/app/run/app-'";
        wait_until("one version to be alone", || site.root(count) == "1\n");
    }
    let report = load.stop();
    let (lost, answered) = (report.lost.len(), report.answered.len());
    println!("figure: 2 switches on arm64: {lost} lost, {answered} answered");
    assert_eq!(report.lost, [""; 0]);
    assert_eq!(report.by_version.len(), 2, "{:?}", report.by_version);
    let logs = xtask(&["logs", "--lines", "200"]).succeeds();
    assert!(
        logs.contains("drained") && logs.contains(&format!("ready: {}", second.trim())),
        "{logs}"
    );
}

/// Kept from one run of the tests to the next, because the first build takes a minute.
fn keep_what_was_built(root: &Path) -> PathBuf {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("musl-arm64");
    fs::create_dir_all(&kept).unwrap();
    fs::create_dir(root.join("target")).unwrap();
    symlink(&kept, root.join("target/musl")).unwrap();
    kept
}
