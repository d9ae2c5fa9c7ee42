//! The command `run`: a program of the live version, once, with either manager.

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    http::Connection, lab::sysvinit_image, notes::notes, place::wait_until, site::Site,
    workspace::said,
};

#[test]
fn without_systemd() {
    let site = Site::bare_from(&sysvinit_image().unwrap(), "sysvinit-run", &[]);
    let address = site.set_up_notes("app", 80, "s3cret");
    site.deploy(&notes("A")).succeeds();
    runs_once(&site, address);
    let owner = site.root("stat --format '%U %a' /srv/app/state /srv/app/state/notes.sqlite");
    assert!(owner.starts_with("app 700\napp "), "{owner}");
}

#[test]
fn with_systemd() {
    let site = Site::bare("run");
    let address = site.set_up_notes("app", 80, "s3cret");
    let before = site.xtask("run", &["--", "count"]);
    assert!(
        before.code == 1 && before.people.contains("no version is live yet"),
        "{before:?}"
    );
    site.deploy(&notes("A")).succeeds();
    runs_once(&site, address);

    // In its sandbox.
    let (mut client, pid) = start_to_run(&site);
    let status = format!("grep -E '^(NoNewPrivs|Seccomp|CapBnd)' /proc/{pid}/status");
    let status = site.root(&status);
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("CapBnd:\t0000000000000000"),
        "{status}"
    );
    client.kill().unwrap();
    client.wait().unwrap();
    wait_until("the program to end", || !is_running(&site, &pid));
    let units = "systemctl list-units --plain --no-legend 'app-run-*'";
    assert_eq!(site.root(units), "");
}

/// With either manager, and a first version live.
fn runs_once(site: &Site, address: SocketAddr) {
    let run = |args: &[&str]| site.xtask("run", &[&["--"], args].concat());
    let mut connection = Connection::open(address).unwrap();
    connection
        .send("POST /notes HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi")
        .unwrap();
    assert_eq!(connection.read_answer().unwrap().status, 200);
    // With its state.
    assert_eq!(run(&["count"]).succeeds(), "1\n");
    // Output, errors and exit code come back, and each argument as it is.
    let said = run(&["say", "a b", "$(id) '\"\\", "%h $HOME", "--help", "", "ü"]);
    assert_eq!(
        (said.code, said.programs.as_str()),
        (7, "a b|$(id) '\"\\|%h $HOME|--help||ü\n")
    );
    assert!(said.people.contains("an error"), "{said:?}");
    run(&[]).ends_as_wrong_usage("no arguments");
    run(&["a\nb"]).ends_as_wrong_usage("more than one line");
    takes_input(site);
    ends_with_its_client(site);
    let status = site.xtask("status", &["--json"]).succeeds();
    assert_eq!(status.matches("\"healthy\": true").count(), 1);
}

/// Larger than what a pipe holds.
fn takes_input(site: &Site) {
    let text: String = (0..60_000).map(|n| format!("{n}\0ü\n")).collect();
    let file = site.workspace.place.path("input");
    fs::write(&file, &text).unwrap();
    let run = |args: &[&str]| {
        let mut command = site.command(&[&["run", &*site.target()], args].concat());
        command.stdin(fs::File::open(&file).unwrap());
        said(&mut command)
    };
    run(&["--", "copy"]).fails(&["standard input is a file", "--stdin"]);
    assert!(run(&["--stdin", "--", "copy"]).succeeds() == text);
    // One that does not read it.
    assert_eq!(run(&["-i", "--", "say", "it"]).programs, "it\n");
    assert_eq!(site.root("ls -A /srv/app/log | grep input || :"), "");
}

fn ends_with_its_client(site: &Site) {
    // A terminal sends Ctrl-C to the whole process group.
    let (mut client, pid) = start_to_run(site);
    let group = format!("-{}", client.id());
    let interrupted = Command::new("kill").args(["-INT", "--", &group]).status();
    assert!(interrupted.unwrap().success());
    assert_ne!(client.wait().unwrap().code(), Some(0));
    wait_until("the program to end after Ctrl-C", || {
        !is_running(site, &pid)
    });
    // Nobody tells the server that its network is gone. The client signs every 15 seconds, so
    // the program outlasts the server's patience of 60 seconds as long as there is a network.
    let (mut client, pid) = start_to_run(site);
    sleep(Duration::from_secs(70));
    assert!(is_running(site, &pid));
    site.server.disconnect().unwrap();
    let start = Instant::now();
    while is_running(site, &pid) {
        assert!(start.elapsed() < Duration::from_secs(90), "it goes on");
        sleep(Duration::from_millis(200));
    }
    println!(
        "figure: a program ends {:?} after its network",
        start.elapsed()
    );
    site.server.connect().unwrap();
    assert_eq!(client.wait().unwrap().code(), Some(255));
}

/// Returns the client, in a process group of its own, and the program's pid on the server.
fn start_to_run(site: &Site) -> (Child, String) {
    let mut client = site.command(&["run", &site.target(), "--", "sleep"]);
    let client = client
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let find = "pgrep -u app -f 'versions/.* sleep' || :";
    let mut pid = String::new();
    wait_until("the program", || {
        pid = site.root(find).trim().to_owned();
        !pid.is_empty()
    });
    (client, pid)
}

fn is_running(site: &Site, pid: &str) -> bool {
    !site
        .root(&format!("ls -d /proc/{pid} 2>/dev/null"))
        .is_empty()
}
