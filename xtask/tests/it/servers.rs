//! Real servers: sshd and systemd, each in a container.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use crate::{
    app::{app, faulty_app},
    configured::{by, xtask_with},
    http,
    load::{Connections, Load, Report},
    place::wait_until,
    site::Site,
    workspace::said,
};

/// Sets the settle time to 0, for tests with many switches.
const QUICK: &str = "sed -i 's/settle=[0-9.]*/settle=0/' /srv/app/settings";

#[test]
fn from_bare_to_live_and_back() {
    let site = Site::set_up("loop");
    let a = site.deploy(&app("A")).succeeds();
    assert_eq!(site.served(), a.trim());
    let again = site.deploy(&app("A"));
    assert!(again.people.contains("the same build"), "{again:?}");
    let b = site.deploy(&app("B")).succeeds();
    wait_until("B to serve alone", || site.instances() == 1);
    assert_eq!(site.served(), b.trim());
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);

    let status = site.xtask("status", &["--json"]).succeeds();
    assert!(
        status.contains(&format!(
            "\"host\": \"deploy@loop\", \"live\": \"{}\"",
            a.trim()
        )),
        "{status}"
    );
    assert!(
        status.contains("\"healthy\": true, \"restarts\": 0, "),
        "{status}"
    );
    let history = site.xtask("history", &[]).succeeds();
    assert!(
        history.contains(&format!("{}  live\n", a.trim())),
        "{history}"
    );
    let logs = site.xtask("logs", &["--lines", "200"]).succeeds();
    assert!(logs.contains(&format!("ready: {}", b.trim())), "{logs}");

    let before = site.root("systemctl list-units --plain --no-legend 'app@*'");
    site.xtask("restart", &[]).succeeds();
    wait_until("the fresh instance to be alone", || site.instances() == 1);
    assert_ne!(
        site.root("systemctl list-units --plain --no-legend 'app@*'"),
        before
    );

    site.xtask("stop", &[]).succeeds();
    assert!(http::get(site.address(), "/").is_err());
    site.xtask("start", &[]).succeeds();
    assert_eq!(site.served(), a.trim());
}

#[test]
fn a_name_that_the_system_has_already() {
    let site = Site::bare("taken-names");
    let files = "getent passwd; getent group; find / -xdev -newer /root/before -type f \
        -not -path '/proc/*' -not -path '/var/log/*' -not -path '/sys/*'; ls -A /srv";
    site.root("sleep 1; touch /root/before; sleep 1");
    let before = site.root(files);
    let units = ["ssh", "dbus", "rsync", "systemd-journald", "user"]
        .map(|name| (name, "is another service's; choose another name"));
    let users = [
        ("mail", "its user mail is the system's"),
        ("nobody", "its user nobody is a person's"),
        ("admin", "its user admin is a person's"),
    ];
    for (name, taken) in units.into_iter().chain(users) {
        let target = format!("deploy@{}:/srv/{name}", site.name);
        let setup = ["setup", &*target, "--as", "root", "--listen", "0.0.0.0:80"];
        said(&mut site.command(&setup)).fails(&[taken]);
        assert_eq!(site.root(files), before, "{name}");
    }
    assert_eq!(
        site.root("systemctl is-active ssh dbus"),
        "active\nactive\n"
    );
}

#[test]
fn an_app_of_another_name() {
    let name = ("NAME: &str = \"app\"", "NAME: &str = \"web-shop\"");
    let xtask = xtask_with("of-another-name", &[name]);
    let site = Site::bare("renamed");
    let cargo = site.workspace.root.join("cargo");
    let text = fs::read_to_string(&cargo).unwrap();
    fs::write(&cargo, text.replace("release/app", "release/web-shop")).unwrap();
    let target = "deploy@renamed:/srv/web-shop";
    let run = |args: &[&str]| {
        let args = [&[args[0], target], &args[1..]].concat();
        said(&mut by(&xtask, &site.command(&args))).succeeds()
    };
    let deploy = |label: &str| {
        fs::write(site.workspace.root.join("binary"), app(label)).unwrap();
        run(&["deploy", "--build", "host"])
    };
    let serves = |version: &str| {
        let version = version.trim();
        let process = format!("pgrep -c -u web-shop -f '^/srv/web-shop/run/web-shop-{version}'");
        wait_until(version, || site.root(&process) == "1\n");
        assert_eq!(http::get(site.address(), "/").unwrap().status, 200);
    };
    run(&["setup", "--as", "root", "--listen", "0.0.0.0:80"]);
    let a = deploy("A");
    serves(&a);
    serves(&deploy("B"));
    assert_eq!(run(&["rollback"]), a);
    assert!(run(&["logs"]).contains("ready"));
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    serves(&a);
}

#[test]
fn bad_versions_never_become_live() {
    let site = Site::set_up("bad");
    let a = site.deploy(&app("A")).succeeds();
    site.root("sed -i 's/TimeoutStartSec=10/TimeoutStartSec=2/' /etc/systemd/system/app@.service; systemctl daemon-reload");
    let whole = app("B");
    let mut other = whole.clone();
    other[18..20].copy_from_slice(&[0xfe, 0xca]);
    let still = format!("{} still serves", a.trim());
    for (bad, reason) in [
        (faulty_app("B", "exits"), "fault: exits at once"),
        (faulty_app("B", "never-listens"), "fault: never listens"),
        (faulty_app("B", "unhealthy"), "500"),
        (
            b"#!/bin/sh\necho pwned\n".to_vec(),
            "not an executable for this machine",
        ),
        (
            whole[..whole.len() / 2].to_vec(),
            "it exited before it was ready",
        ),
        (other, "not an executable for this machine"),
    ] {
        let load = Load::start(site.address(), 2, Connections::New);
        site.deploy(&bad)
            .fails(&["did not become live", reason, &still]);
        assert_eq!(site.served(), a.trim());
        let report = load.stop();
        assert!(
            report.lost.is_empty() && !report.answered.is_empty(),
            "{reason}: {:?}",
            report.lost
        );
    }
    // This version dies while it answers requests, so the load would notice.
    site.deploy(&faulty_app("B", "dies-once-ready")).fails(&[
        "it was ready, then it",
        "dies once ready",
        &still,
    ]);
    assert_eq!(
        site.xtask("history", &[])
            .succeeds()
            .matches("  failed  ")
            .count(),
        7
    );
    site.xtask("rollback", &[])
        .fails(&["before the live one: 0"]);
    wait_until("A to be alone", || site.instances() == 1);
}

#[test]
fn a_version_that_dies_after_its_commit_is_started_again() {
    let site = Site::set_up("dies-later");
    site.root(QUICK);
    let a = site.deploy(&app("A")).succeeds();
    site.deploy(&faulty_app("B", "dies-when-live")).succeeds();
    wait_until("systemd to restart it", || {
        let status = site.xtask("status", &["--json"]).succeeds();
        !status.contains("\"restarts\": 0,") && status.contains("\"restarts\": ")
    });
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    wait_until("A to serve alone", || site.instances() == 1);
    assert_eq!(site.served(), a.trim());
}

#[test]
fn a_rollback_does_not_wait_for_a_drain() {
    let site = Site::set_up("at-once");
    let a = site.deploy(&app("A")).succeeds();
    let address = site.address();
    let mut long = vec![thread::spawn(move || http::get(address, "/slow/25"))];
    sleep(Duration::from_millis(200));
    let b = site.deploy(&app("B")).succeeds();
    sleep(Duration::from_secs(1));
    let start = Instant::now();
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    println!(
        "figure: a rollback during a drain takes {:?}, 1 s of it settle time",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert!(
        !long[0].is_finished(),
        "the old instance does not drain any more"
    );

    // Back and forth, with a request at each step that outlasts the switch.
    site.root(QUICK);
    for to in [&b, &a, &b, &a] {
        long.push(thread::spawn(move || http::get(address, "/slow/15")));
        sleep(Duration::from_millis(100));
        assert_eq!(&site.xtask("rollback", &["--to", to.trim()]).succeeds(), to);
    }
    assert!(
        site.instances() > 2,
        "the old instances do not drain any more"
    );
    for answer in long {
        assert_eq!(answer.join().unwrap().unwrap().status, 200);
    }
    wait_until("all old instances to exit", || site.instances() == 1);
    assert_eq!(site.served(), a.trim());
}

#[test]
fn no_request_of_a_million_is_lost() {
    let site = Site::set_up("load");
    let versions = ["A", "B", "C"].map(|label| site.deploy(&app(label)).succeeds());
    let load = || {
        [
            Load::start(site.address(), 4, Connections::New),
            Load::start_with(site.address(), 6, Connections::KeptAlive, Duration::ZERO),
        ]
    };
    let calm = load();
    sleep(Duration::from_secs(5));
    let calm = calm.map(Load::stop);

    let loads = load();
    let mut switches = 0;
    while switches < 20 || loads.iter().map(Load::asked).sum::<usize>() < 1_000_000 {
        let (command, args) = match switches % 4 {
            3 => ("rollback", vec![]),
            n => ("rollback", vec!["--to", versions[n].trim()]),
        };
        let said = site.xtask(command, &args);
        assert!(
            said.code == 0 || said.people.contains("is live already"),
            "{said:?}"
        );
        switches += 1;
    }
    let reports = loads.map(Load::stop);
    for (kind, (report, calm)) in ["new", "kept"].into_iter().zip(reports.iter().zip(&calm)) {
        println!(
            "figure: {switches} switches, {kind} connections: {} lost, {} answered; p99.9 {:?}, without switches {:?}",
            report.lost.len(),
            report.answered.len(),
            report.p999(),
            calm.p999()
        );
        assert_eq!(report.lost, [""; 0]);
        assert_eq!(report.by_version.len(), 3, "{:?}", report.by_version);
    }

    for (server, signal) in [
        ("this app, which drains", "SIGTERM"),
        ("a server that does not drain", "SIGKILL"),
    ] {
        let report = shell_script(&site, signal);
        println!(
            "figure: 10 switches of the shell script with {server}: {} lost, {} answered; p99.9 {:?}",
            report.lost.len(),
            report.answered.len(),
            report.p999()
        );
        assert!(
            signal == "SIGTERM" || report.lost.len() > 10,
            "the load does not notice lost connections"
        );
    }
}

/// For comparison, the shell script that this project began as: `rm`, `ln -s`, restart.
fn shell_script(site: &Site, signal: &str) -> Report {
    site.root(&format!(
        "mkdir -p /srv/plain && cd /srv/plain && cp /srv/app/versions/app-* .
         ln -sf \"$(ls app-* | head -n 1)\" current
         printf '[Unit]\nStartLimitIntervalSec=0\n[Service]\nEnvironment=LISTEN=0.0.0.0:8080\nKillSignal={signal}\nExecStart=/srv/plain/current\n' \\
             >/etc/systemd/system/plain.service
         systemctl daemon-reload; systemctl restart plain.service"
    ));
    let address = (site.server.ip(), 8080).into();
    wait_until("it to serve", || http::get(address, "/version").is_ok());
    let load = Load::start(address, 10, Connections::KeptAlive);
    for _ in 0..10 {
        site.root(
            "cd /srv/plain && for v in app-*; do [ \"$v\" = \"$(readlink current)\" ] || next=$v; done
             rm current; ln -s \"$next\" current; systemctl restart plain.service",
        );
        sleep(Duration::from_millis(500));
    }
    load.stop()
}

/// The activation fails at once, because nothing was uploaded.
#[test]
fn an_answer_after_the_end_leaves_nothing_behind() {
    let site = Site::set_up("late");
    let sha256 = "0".repeat(64);
    let said = site.root(&format!(
        "cd /srv/app && {{ sleep 3; echo cancel; }} | bin/activate activate \
             20261122T183012Z-1a2b3c4d5e6f-000000000000 {sha256} test@test await-commit
         sleep 1; ls log"
    ));
    assert!(said.contains("verdict failed"), "{said}");
    assert!(!said.contains(".answer"), "{said}");
}

#[test]
fn a_hundred_deploys_leave_nothing_behind() {
    let site = Site::set_up("hundred");
    site.root(QUICK);
    site.deploy(&app("A")).succeeds();
    let names = "20261122T183012Z-1a2b3c4d5e6f";
    let said = site.root(&format!(
        "cd /srv/app && for n in $(seq 100); do
             {{ cat versions/app-*-*[0-9a-f] | head -c 100; echo $n; }} >/dev/null
             cp \"$(readlink -f current)\" /tmp/next && echo $n >>/tmp/next
             sha=$(sha256sum </tmp/next | cut -d ' ' -f 1)
             v={names}-$(echo $sha | head -c 12)
             cp /tmp/next incoming/app-$v
             bin/activate activate $v $sha test@test | tail -n 1
         done"
    ));
    assert_eq!(said.matches("verdict live").count(), 100, "{said}");
    wait_until("the old instance to exit", || site.instances() == 1);
    site.xtask("restart", &[]).succeeds();
    wait_until("the old instance to exit", || site.instances() == 1);
    site.xtask("restart", &[]).succeeds();
    let count = |command: &str| -> usize { site.root(command).trim().parse().unwrap() };
    assert_eq!(count("ls /srv/app/versions | wc -l"), 5);
    assert_eq!(count("ls -A /srv/app/incoming | wc -l"), 0);
    assert!(count("ls -A /srv/app/run | wc -l") <= 4);
    assert!(count("ls /srv/app/log | wc -l") <= 60);
    assert!(count("ls -A /srv/app | wc -l") <= 10);
    wait_until("the old instance to exit", || site.instances() == 1);
    let units = "systemctl list-units --all --plain --no-legend 'app*' | grep -vc 'app.socket\\|app.service'";
    wait_until("systemd to forget the old unit", || count(units) == 1);
    assert_eq!(count("pgrep -c activate || :"), 0);
    assert_eq!(
        count("ls /tmp | grep -vc '^next$\\|^systemd-private' || :"),
        0
    );
}

#[test]
fn without_overlap_connections_wait_in_the_socket() {
    let site = Site::set_up("no-overlap");
    site.root(QUICK);
    site.root("sed -i 's/overlap=true/overlap=false/' /srv/app/settings");
    let a = site.deploy(&app("A")).succeeds();
    let load = Load::start(site.address(), 4, Connections::New);
    let b = site.deploy(&app("B")).succeeds();
    assert_eq!(site.instances(), 1, "two instances run at once");
    site.deploy(&faulty_app("C", "exits")).fails(&[
        "fault: exits at once",
        &format!("{} still serves", b.trim()),
    ]);
    site.deploy(b"no program")
        .fails(&["not an executable", &format!("{} still serves", b.trim())]);
    assert_eq!(site.instances(), 1, "the old instance was stopped");
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    let report = load.stop();
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    assert_eq!(report.by_version.len(), 2, "{:?}", report.by_version);
}

#[test]
fn a_version_that_ignores_sigterm_is_killed() {
    let site = Site::set_up("deaf");
    site.root(QUICK);
    site.root("sed -i 's/TimeoutStopSec=35/TimeoutStopSec=2/' /etc/systemd/system/app@.service; systemctl daemon-reload");
    site.deploy(&faulty_app("A", "deaf")).succeeds();
    let b = site.deploy(&app("B")).succeeds();
    wait_until("the deaf one to be killed", || site.instances() == 1);
    assert_eq!(site.served(), b.trim());
}

#[test]
fn an_upload_is_a_patch_and_otherwise_rsync() {
    let site = Site::set_up("patch");
    site.root(QUICK);
    // The first upload is compressed as a whole; without rsync, to show that it is not used.
    site.root("mv /usr/bin/rsync /usr/bin/rsync.away");
    site.deploy(&app("A")).succeeds();
    site.root("mv /usr/bin/rsync.away /usr/bin/rsync");
    let little = (app("A").len() * 12 / 1000 + 8000) as u64;
    let zstd_here = site.workspace.place.path("shims/zstd");
    let sent = site.workspace.root.join("target/sent");
    type Break<'a> = &'a dyn Fn();
    let cases: [(&str, Break, bool); 6] = [
        ("both sides have zstd", &|| {}, true),
        (
            "the host has no zstd",
            &|| drop(site.root("mv /usr/bin/zstd /usr/bin/zstd.away")),
            false,
        ),
        (
            "the host's zstd writes something else",
            &|| {
                site.root("printf '#!/bin/sh\\necho x\\n' >/usr/bin/zstd; chmod +x /usr/bin/zstd");
            },
            false,
        ),
        (
            "the zstd here fails",
            &|| {
                site.root("mv /usr/bin/zstd.away /usr/bin/zstd");
                fs::write(&zstd_here, "#!/bin/sh\nexit 1\n").unwrap();
                fs::set_permissions(&zstd_here, Permissions::from_mode(0o755)).unwrap();
            },
            false,
        ),
        (
            "the live version is not kept here",
            &|| {
                fs::remove_file(&zstd_here).unwrap();
                fs::remove_dir_all(&sent).unwrap();
            },
            false,
        ),
        (
            "the kept version has other bytes",
            &|| {
                for kept in fs::read_dir(&sent).unwrap() {
                    fs::write(kept.unwrap().path(), "other bytes").unwrap();
                }
            },
            false,
        ),
    ];
    for (case, break_it, is_patch) in cases {
        break_it();
        let before = site.received();
        let live = site.deploy(&app(case)).succeeds();
        let received = site.received() - before;
        println!("figure: {case}: the server received {received} bytes");
        assert_eq!(site.served(), live.trim());
        assert!(!is_patch || received < little, "{case}: {received}");
    }
}

#[test]
fn each_command_logs_in_once() {
    let site = Site::set_up("once");
    let logins = || -> usize {
        let count = site.root("journalctl | grep -c 'Accepted publickey' || :");
        count.trim().parse().unwrap()
    };
    site.deploy(&app("A")).succeeds();
    site.deploy(&app("B")).succeeds();
    for (command, args) in [
        ("deploy", &["--build", "host"][..]),
        ("rollback", &[]),
        ("status", &[]),
        ("history", &[]),
        ("logs", &[]),
        ("restart", &[]),
    ] {
        let before = logins();
        site.xtask(command, args).succeeds();
        assert_eq!(logins() - before, 1, "{command}");
    }
}
