//! The commands, as people and programs use them.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    app::{app, faulty_app},
    place::wait_until,
    workspace::{Workspace, exists, said},
};

#[test]
fn a_deploy_prints_the_live_version_and_nothing_else() {
    let workspace = Workspace::new("stdout");
    let deploy = workspace.deploy(&app("A"));
    assert!(!deploy.people.contains("warning"), "{deploy:?}");
    let version = deploy.succeeds();
    assert_eq!(version.lines().count(), 1);
    assert_eq!(workspace.place.live().as_deref(), Some(version.trim()));
    let built = fs::read(workspace.place.path("current")).unwrap();
    assert_eq!(built, app("A"));
}

#[test]
fn the_same_bytes_are_not_deployed_again() {
    let workspace = Workspace::new("no-change");
    let first = workspace.deploy(&app("A")).succeeds();
    let before = (workspace.place.processes(), workspace.place.history());
    let again = workspace.deploy(&app("A"));
    assert!(again.people.contains("the same build"), "{again:?}");
    assert_eq!(again.succeeds(), first);
    assert_eq!(
        (workspace.place.processes(), workspace.place.history()),
        before
    );

    // After a `stop` the same build is deployed again.
    workspace.xtask("stop", &[]).succeeds();
    workspace.deploy(&app("A")).succeeds();
    assert!(workspace.place.served().is_some());
}

#[test]
fn a_dry_run_changes_nothing() {
    let workspace = Workspace::new("dry-run");
    fs::remove_dir_all(workspace.place.path("bin")).unwrap();
    let listen = workspace.place.address.to_string();
    let dry = workspace.xtask("deploy", &["-n", "--listen", &listen]);
    for word in ["build app", "activate"] {
        assert!(dry.people.contains(word), "{dry:?}");
    }
    assert_eq!(dry.succeeds(), "");
    assert!(!workspace.place.path("bin").exists() && !workspace.root.join("target").exists());
}

#[test]
fn a_new_directory_needs_a_listen_address_once() {
    let workspace = Workspace::new("listen");
    let fresh = workspace.place.path("fresh");
    let address = workspace.place.address.to_string();
    fs::write(workspace.root.join("binary"), app("A")).unwrap();
    let target = fresh.to_str().unwrap();
    said(&mut workspace.command(&["deploy", target])).fails(&["--listen"]);
    assert!(!fresh.exists());
    said(&mut workspace.command(&["setup", target, "--listen", &address])).succeeds();
    said(&mut workspace.command(&["deploy", target])).succeeds();
    assert!(
        fs::read_to_string(fresh.join("settings"))
            .unwrap()
            .contains(&address)
    );
    let again = said(&mut workspace.command(&["setup", target]));
    assert!(again.people.contains("is set up already"), "{again:?}");
    said(&mut workspace.command(&["stop", target])).succeeds();
}

#[test]
fn status_and_history_print_json() {
    let workspace = Workspace::new("json");
    workspace.xtask("status", &[]).succeeds();
    let a = workspace.deploy(&app("A")).succeeds();
    workspace.deploy(&faulty_app("B", "exits")).fails(&[]);
    let a = a.trim();
    let status = workspace.xtask("status", &["--json"]).succeeds();
    let target = workspace.place.dir.display();
    let start = format!(
        "{{\"target\": \"{target}\", \"hosts\": [{{\"host\": \"this machine\", \"live\": \"{a}\", \
         \"running\": [\"{a}\"], \"healthy\": true, \"restarts\": 0, \"last\": {{\"at\": \"20"
    );
    assert!(status.starts_with(&start), "{status}");
    assert!(
        status.contains("\"verdict\": \"failed\", \"version\": \"20"),
        "{status}"
    );
    let history = workspace.xtask("history", &["--json"]).succeeds();
    assert!(
        history.contains(&format!(
            "\"rollback\": [\"{a}\"], \"activations\": [{{\"at\": \"20"
        )),
        "{history}"
    );
    for json in [status, history] {
        is_json(&json);
    }
}

#[test]
fn a_host_that_is_away_is_in_the_json_with_its_error() {
    let workspace = Workspace::new("away");
    let host = "deploy@cutover-test.invalid";
    let target = format!("{host}:/srv/app");
    for command in ["status", "history"] {
        let said = said(&mut workspace.command(&[command, &target, "--json"]));
        let list = format!(
            "{{\"target\": \"{target}\", \"hosts\": [{{\"host\": \"{host}\", \"error\": \"cannot connect"
        );
        assert!(
            said.code == 1 && said.programs.starts_with(&list),
            "{said:?}"
        );
        is_json(&said.programs);
    }
}

/// Python decides.
fn is_json(text: &str) {
    let python = Command::new("python3")
        .args(["-c", "import json,sys; json.loads(sys.argv[1])", text])
        .status();
    assert!(python.is_ok_and(|it| it.success()), "{text}");
}

#[test]
fn status_and_history_are_readable() {
    let workspace = Workspace::new("people");
    let a = workspace.deploy(&app("A")).succeeds();
    let b = workspace.deploy(&app("B")).succeeds();
    let status = workspace.xtask("status", &[]).succeeds();
    let address = format!("http://{}", workspace.place.address);
    for word in [b.trim(), "healthy", &address, "built from commit"] {
        assert!(status.contains(word), "{status}");
    }
    let history = workspace.xtask("history", &[]).succeeds();
    assert!(
        history.contains(&format!("{}  live\n", b.trim())),
        "{history}"
    );
    assert!(
        history.contains(&format!("{}  rollback --to 1\n", a.trim())),
        "{history}"
    );
}

#[test]
fn logs_shows_the_log_of_the_app() {
    let workspace = Workspace::new("logs");
    workspace.deploy(&app("A")).succeeds();
    let logs = workspace.xtask("logs", &[]).succeeds();
    assert!(logs.contains("listening on"), "{logs}");
    assert_eq!(
        workspace
            .xtask("logs", &["--lines", "1"])
            .succeeds()
            .lines()
            .count(),
        1
    );

    let target = workspace.place.dir.to_str().unwrap().to_owned();
    let mut follow = workspace
        .command(&["logs", &target, "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("listening on"));
    workspace.xtask("stop", &[]).succeeds();
    assert!(lines.any(|line| line.unwrap().contains("drain")));
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn start_and_stop() {
    let workspace = Workspace::new("start-stop");
    workspace.deploy(&app("A")).succeeds();
    workspace.xtask("stop", &[]).succeeds();
    workspace.place.wait_for_processes(0);
    assert!(
        workspace
            .xtask("status", &[])
            .succeeds()
            .contains("not serving")
    );
    workspace.xtask("stop", &[]).succeeds();
    workspace.xtask("start", &[]).succeeds();
    assert!(workspace.place.served().is_some());
    workspace.xtask("start", &[]).succeeds();
    assert_eq!(workspace.place.processes().len(), 1);
}

#[test]
fn commands_explain_that_nothing_was_deployed() {
    let workspace = Workspace::new("nothing");
    let target = workspace.place.path("nothing");
    for command in [
        "status", "history", "logs", "rollback", "start", "stop", "restart",
    ] {
        let said = said(&mut workspace.command(&[command, target.to_str().unwrap()]));
        said.fails(&["nothing was ever deployed to", "hint: `cargo xtask deploy"]);
    }
    for command in ["rollback", "start", "restart", "logs"] {
        let said = workspace.xtask(command, &[]);
        assert_eq!(said.code, 1, "{command}: {said:?}");
    }
}

#[test]
fn a_deploy_needs_a_commit() {
    let workspace = Workspace::new("no-commit");
    fs::remove_dir_all(workspace.root.join(".git")).unwrap();
    // The temporary directory may lie in another repository.
    let ceiling = workspace.place.dir.clone();
    fs::write(workspace.root.join("binary"), app("A")).unwrap();
    let target = ceiling.to_str().unwrap();
    let deploy = || {
        said(
            workspace
                .command(&["deploy", target])
                .env("GIT_CEILING_DIRECTORIES", &ceiling),
        )
    };
    deploy().fails(&["not a git repository", "hint: `git init`"]);
    workspace.git(&["init", "--quiet"]);
    deploy().fails(&["there is none", "hint: `git init`"]);
    assert!(!exists(&workspace.place.path("current")));
}

#[test]
fn uncommitted_changes_are_marked_in_the_version() {
    let workspace = Workspace::new("dirty");
    fs::write(workspace.root.join("new-page.html"), "not known to git").unwrap();
    let version = workspace.deploy(&app("A")).succeeds();
    assert_eq!(version.split('-').nth(2), Some("dirty"), "{version}");
}

#[test]
fn a_failing_build_changes_nothing() {
    let workspace = Workspace::new("no-build");
    let a = workspace.deploy(&app("A")).succeeds();
    fs::write(
        workspace.root.join("cargo"),
        "#!/bin/sh\necho 'error: expected `;`' >&2\nexit 101\n",
    )
    .unwrap();
    workspace.deploy(&app("B")).fails(&[
        "error: expected `;`",
        "does not build",
        "nothing was deployed",
    ]);
    assert_eq!(workspace.place.served().as_deref(), Some(a.trim()));
}

#[test]
fn ctrl_c_stops_following_and_the_activation_continues() {
    let workspace = Workspace::new("ctrl-c");
    workspace.deploy(&app("A")).succeeds();
    fs::write(workspace.root.join("binary"), app("B")).unwrap();
    let target = workspace.place.dir.to_str().unwrap().to_owned();
    let mut deploy = workspace.command(&["deploy", &target]);
    // A terminal sends Ctrl-C to a whole process group, so the command gets one of its own.
    std::os::unix::process::CommandExt::process_group(&mut deploy, 0);
    let mut deploy = deploy
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut people = BufReader::new(deploy.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("Watching") {
        line.clear();
        assert_ne!(people.read_line(&mut line).unwrap(), 0, "it exited before");
    }
    let group = format!("-{}", deploy.id());
    assert!(
        Command::new("kill")
            .args(["-INT", "--", &group])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(deploy.wait().unwrap().code(), Some(1));
    let mut rest = String::new();
    people.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("the activation continues on the host")
            && rest.contains("`cargo xtask status"),
        "{rest}"
    );

    std::thread::sleep(Duration::from_millis(100));
    wait_until("the activation to end", || {
        workspace.place.history().len() == 2
    });
    assert!(workspace.place.history()[1].contains("\tlive\t"));
}

#[test]
fn help_names_every_command() {
    let workspace = Workspace::new("help");
    let help = said(&mut workspace.command(&["--help"])).succeeds();
    for command in [
        "deploy", "rollback", "status", "history", "logs", "setup", "build", "start", "stop",
        "restart", "test",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        let help = said(&mut workspace.command(&[command, "--help"])).succeeds();
        assert!(help.contains(&format!("cargo xtask {command}")), "{help}");
    }
}
