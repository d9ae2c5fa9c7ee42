//! What a hostile version cannot do while it is on trial, and what a hostile uploader cannot
//! do to the activation that reads the upload.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use crate::{
    app::{app, faulty_app},
    hostile::VALUES,
    http,
    place::wait_until,
    servers_healed::{activate, is_at_rest, upload},
    site::Site,
};

/// A version that does this, see `hostile_version.rs`.
fn hostile(does: &str) -> Vec<u8> {
    hostile_build("", does)
}

fn hostile_build(name: &str, does: &str) -> Vec<u8> {
    static PROGRAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/hostile_version.rs");
        let compiled = Command::new("rustc")
            .args(["--edition", "2024", "-O", "-C", "panic=abort", "-C"])
            .args(["target-feature=+crt-static", source, "-o"])
            .arg(&program)
            .status();
        assert!(compiled.unwrap().success());
        fs::read(program).unwrap()
    });
    [&PROGRAM, format!("{name:40} does:{does}\n").as_bytes()].concat()
}

/// The settings allow 5 s to become ready, and 2 s to drain.
fn site(name: &'static str) -> (Site, String) {
    let site = Site::set_up(name);
    site.root(
        "sed -i 's/ready=[0-9]*/ready=5/; s/settle=[0-9.]*/settle=2/; s/drain=[0-9]*/drain=2/' \
             /srv/app/settings
         sed -i 's/TimeoutStartSec=.*/TimeoutStartSec=5/; s/TimeoutStopSec=.*/TimeoutStopSec=4/' \
             /etc/systemd/system/app@.service
         systemctl daemon-reload",
    );
    let live = site.deploy(&app("A")).succeeds().trim().to_owned();
    (site, live)
}

/// A failed activation makes sure that the port is open, and asks the live version.
#[test]
fn a_slow_live_version_is_not_taken_for_a_closed_port() {
    let site = Site::set_up("slow");
    let live = site.deploy(&faulty_app("A", "slow-health")).succeeds();
    let pid = || site.root("systemctl show --value --property MainPID 'app@*.service'");
    let before = pid();
    site.deploy(&faulty_app("B", "exits"))
        .fails(&[&format!("{} still serves", live.trim())]);
    assert_eq!(pid(), before);
}

#[test]
fn a_version_on_trial_does_no_harm() {
    let (site, live) = site("trial");
    site.root(
        "sed -i 's/^MemoryMax=.*/MemoryMax=128M/; s/^TasksMax=.*/TasksMax=64/' \
             /etc/systemd/system/app@.service; systemctl daemon-reload
         echo nameserver 127.0.0.1 >/etc/resolv.conf",
    );
    for (does, reason) in [
        ("extend-start", "it was not ready within 5 s"),
        (
            "never-accepts",
            "it was ready, but answered no request within 5 s",
        ),
        ("closes-the-port", "it "),
        ("sends-the-socket", "it was ready, then it exited"),
        ("litters", "it exited before it was ready"),
        ("leaves-memory", "it exited before it was ready"),
        ("leaves-a-queue", "it exited before it was ready"),
        ("reads-memory", "it exited before it was ready"),
        ("eats-memory", "it exited before it was ready"),
        ("starts-many", "it exited before it was ready"),
        ("looks-up", "it exited before it was ready"),
        ("escapes", "it exited before it was ready"),
    ] {
        let version = upload(&site, &hostile(does));
        let start = Instant::now();
        let said = activate(&site, &version);
        println!("{does}: a verdict after {:?}", start.elapsed());
        assert!(
            said.contains(&format!("\nverdict failed {reason}")),
            "{does}: {said}\n{}",
            site.root("journalctl --output short-precise --lines 20")
        );
        assert!(start.elapsed() < Duration::from_secs(40), "{does}: {said}");
        assert!(!said.contains(" allowed"), "{said}");
        assert!(
            does != "starts-many" || said.contains("| 63 threads"),
            "{said}"
        );
        // This does no harm, so it is not killed for it.
        assert!(does != "looks-up" || said.contains("| looked up"), "{said}");
        let control = |c: char| c.is_control() && c != '\n' && c != '\t';
        assert!(!said.contains(control), "{does}: {said:?}");
        assert!(said.len() < 10_000, "{does}: {} bytes", said.len());
        // The port is open, and the live version's alone.
        wait_until(&format!("{live} to run alone after {does}"), || {
            is_at_rest(&site, &live)
        });
        for _ in 0..10 {
            assert_eq!(http::served(site.address()).as_ref(), Some(&live), "{does}");
        }
        assert_eq!(site.root("ls /srv/app/incoming"), "", "{does}");
    }
    assert_eq!(site.root("tail -n +2 /proc/sysvipc/shm"), "");
    let litter =
        "find / -xdev -name litter -o -path /proc -prune -name x; ls /dev/shm /dev/mqueue /tmp";
    assert!(!site.root(litter).contains("litter"));
}

/// The app ends then, to be started with another socket; a live version that does not notice is
/// started by the activation.
#[test]
fn a_socket_that_a_version_shuts_down_is_replaced() {
    let site = Site::set_up("shut");
    serves_again(&site, &[hostile("serves")], ("INET", "127.0.0.1:80"));
}

/// Behind Caddy it is a unix socket, which nobody can make listen again.
#[test]
fn a_unix_socket_that_a_version_shuts_down_is_replaced() {
    let site = Site::set_up("unix");
    site.root(
        "sed -i 's,^ListenStream=.*,ListenStream=/run/app/http.sock,; /^NoDelay/d' \
             /etc/systemd/system/app.socket
         sed -i 's,listen=[^ ]*,listen=/run/app/http.sock,; s/drain=[0-9]*/drain=2/' /srv/app/settings
         systemctl daemon-reload",
    );
    let socket = ("UNIX", "/run/app/http.sock");
    serves_again(&site, &[hostile("serves"), app("A")], socket);
    // More often than systemd starts a unit by default within ten seconds.
    site.root("sed -i 's/settle=1/settle=0.2/' /srv/app/settings");
    let live = site.root("/srv/app/bin/activate status | sed -n 's/^live.//p'");
    let builds = ["1", "2", "3", "4", "5", "6", "7"];
    let builds = builds.map(|it| upload(&site, &hostile_build(it, "closes-the-port")));
    let attempts = builds.map(|it| {
        let words = format!("{} {} tester@test", it.name, it.sha256);
        format!("/srv/app/bin/activate activate {words}; ")
    });
    let start = Instant::now();
    let said = site.root(&attempts.concat());
    println!("seven of them took {:?}", start.elapsed());
    let answer = answer(&site, socket);
    assert!(answer.contains(live.trim()), "{answer}\n{said}");
}

fn answer(site: &Site, (kind, address): (&str, &str)) -> String {
    site.root(&format!(
        "perl -MIO::Socket::{kind} -e '
             alarm 10; my $socket = IO::Socket::{kind}->new($ARGV[0]) or die \"$!\\n\";
             print $socket \"GET /version HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n\";
             print <$socket>' {address} 2>&1"
    ))
}

/// After a version on trial has shut the socket down, for each of these that is live.
fn serves_again(site: &Site, lives: &[Vec<u8>], socket: (&str, &str)) {
    for live in lives {
        let live = upload(site, live);
        let said = activate(site, &live);
        assert!(said.contains("\nverdict live\n"), "{said}");
        let version = upload(site, &hostile("closes-the-port"));
        let said = activate(site, &version);
        assert!(said.contains("\nverdict failed it "), "{said}");
        let answer = answer(site, socket);
        let instance = format!("cutover-instance: {}", live.name);
        assert!(answer.contains(&instance), "{answer}\n{said}");
        wait_until("it to serve alone", || is_at_rest(site, &live.name));
        let status = site.root("/srv/app/bin/activate status");
        assert!(status.contains("healthy\ttrue"), "{status}");
    }
}

#[test]
fn stop_leaves_no_process_behind() {
    let (site, _) = site("deaf");
    let version = upload(&site, &hostile("extend-stop"));
    let said = activate(&site, &version);
    assert!(said.contains("\nverdict live\n"), "{said}");
    let start = Instant::now();
    let said = site.root("/srv/app/bin/activate stop");
    println!("stopped after {:?}", start.elapsed());
    assert!(said.contains("\nStopped\n"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(20), "{said}");
    assert_eq!(site.instances(), 0);
    assert!(std::net::TcpStream::connect(site.address()).is_err());
}

/// With the deploy user's rights, while root's worker reads an upload.
#[test]
fn an_uploader_cannot_hold_the_lock() {
    let (site, live) = site("upload");
    site.root("sed -i 's/^UPLOAD_TIMEOUT_SECS=.*/UPLOAD_TIMEOUT_SECS=10/' /srv/app/bin/activate");
    let version = "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c";
    let sha256 = format!("9f86d081884c{:052}", 0);
    for attack in [
        "mkfifo $U",
        "mkfifo $U; sleep 60 3<>$U &",
        "truncate --size 6G $U",
        "ln -s /dev/zero $U",
        "ln -s /dev/zero $U.a; (for i in $(seq 3000); do ln -sfn /dev/zero $U; ln -f /etc/hostname $U; done) &",
        "truncate --size 900M $U; (for i in $(seq 600); do pkill -STOP -u deploy -x dd; sleep 0.01; done) &",
        // Keeps the pipe open from which root's worker reads: pidfd_open(2) and pidfd_getfd(2).
        "truncate --size 900M $U; perl -e \"while (1) { for my \\$pid (split /\\n/, qx(pgrep -u deploy -x dd)) {
             exit sleep 60 if syscall(438, syscall(434, \\$pid + 0, 0), 1, 0) >= 0 } }\" &",
        "mkdir $U",
    ] {
        site.root(&format!(
            "rm -rf /srv/app/incoming/*; runuser -u deploy -- sh -c \
             'U=/srv/app/incoming/app-{version}; {{ {attack}
              }} >/dev/null 2>&1 </dev/null' >/dev/null 2>&1"
        ));
        let start = Instant::now();
        let said = site.root(&format!(
            "/srv/app/bin/activate activate {version} {sha256} tester@test"
        ));
        println!("{:?}: {attack}", start.elapsed());
        assert!(said.contains("\nverdict failed "), "{attack}: {said}");
        assert!(
            start.elapsed() < Duration::from_secs(45),
            "{attack}: {said}"
        );
        // Nobody waits for a FIFO.
        let is_fifo = attack.starts_with("mkfifo");
        assert!(!is_fifo || start.elapsed() < Duration::from_secs(8), "{attack}");
        assert_eq!(site.served(), live);
        site.root("pkill -KILL -u deploy");
    }
    // It fills no disk.
    let said = site.root(&format!(
        "sed -i 's/^MAX_UPLOAD_BYTES=.*/MAX_UPLOAD_BYTES=5000000/' /srv/app/bin/activate
         rm -rf /srv/app/incoming/*
         runuser -u deploy -- truncate --size 6G /srv/app/incoming/app-{version}
         mount -t tmpfs -o size=20m tmpfs /srv/app/versions
         /srv/app/bin/activate activate {version} {sha256} tester@test
         umount /srv/app/versions"
    ));
    assert!(
        said.contains("verdict failed the upload is damaged"),
        "{said}"
    );
    // Nothing of a client's reaches the worker, and so nothing tears its record.
    let next = upload(&site, &app("B"));
    let said = site.root(&format!(
        "runuser -u deploy -- sh -c 'ulimit -f 0; ulimit -n 64; umask 777; cd /; \
         echo activate {} {} deploy@test | sudo -n /srv/app/bin/activate session' | cat; sleep 1; \
         tail -n 1 /srv/app/history",
        next.name, next.sha256
    ));
    assert!(said.contains("verdict live"), "{said}");
    let record = format!("\tlive\t{}\t{}\tdeploy@test\n", next.name, next.sha256);
    assert!(said.ends_with(&record), "{said}");
    // What was live is never replaced by other bytes, nor named by another's sha256.
    let other = format!("{}{:052}", &next.sha256[..12], 0);
    site.root(&format!(
        "rm /srv/app/versions/app-{}.x; echo x >/srv/app/versions/app-{}",
        next.name, next.name
    ));
    for (sha256, reason) in [
        (&*other, "another build of this name was live here"),
        (&"0".repeat(64), "not the sha256 of"),
    ] {
        let said = site.root(&format!(
            "/srv/app/bin/activate activate {} {sha256} tester@test",
            next.name
        ));
        assert!(said.contains(reason), "{said}");
    }
}

/// A name that extends another's confuses neither units nor versions.
#[test]
fn two_services_on_one_host() {
    let site = Site::set_up("two");
    let xtask = |command: &str, args: &[&str]| site.xtask(command, args);
    let live = site.deploy(&app("A")).succeeds().trim().to_owned();
    // As `setup` installs it, under another name and in another directory.
    site.root(
        "set -e; cd /etc/systemd/system
         for unit in .socket .service @.service; do
             sed 's,/srv/app,/srv/app-staging,; s/^ListenStream=.*/ListenStream=0.0.0.0:81/' \
                 app$unit >app-staging$unit
         done
         useradd --system app-staging; cp -a /srv/app /srv/app-staging; cd /srv/app-staging
         rm -rf history run/* log/* current lock; sed -i 's/service=app/service=app-staging/; s/:80/:81/' settings
         rm -f versions/* incoming/*
         systemctl daemon-reload; systemctl start app-staging.socket || :",
    );
    let staging = upload(&site, &app("S"));
    site.root("mv /srv/app/incoming/app-2* /tmp; cd /tmp; for it in app-2*; do mv $it /srv/app-staging/incoming/app-staging-${it#app-}; done");
    let main_pid = || site.root("systemctl show --property MainPID 'app@*'");
    let before = main_pid();
    let at_staging = |request: &str| site.root(&format!("/srv/app-staging/bin/activate {request}"));
    let said = at_staging(&format!(
        "activate {} {} tester@test",
        staging.name, staging.sha256
    ));
    assert!(said.contains("\nverdict live\n"), "{said}");
    let address = (site.server.ip(), 81).into();
    let running = |text: String| text.lines().filter(|it| it.starts_with("running")).count();
    assert_eq!(running(at_staging("status")), 1);
    assert_eq!(running(site.root("/srv/app/bin/activate status")), 1);
    assert!(
        !site
            .root("/srv/app/bin/activate logs 1000")
            .contains(&staging.name)
    );
    assert!(!at_staging("logs 1000").contains(&live));
    // Neither is stopped with the other.
    xtask("stop", &[]).succeeds();
    assert!(http::get(address, "/").is_ok());
    xtask("start", &[]).succeeds();
    let said = at_staging("stop");
    assert!(said.contains("\nStopped\n"), "{said}");
    assert_eq!(site.served(), live);
    assert_ne!(main_pid(), before);
    let setup = xtask("setup", &["--as", "root"]);
    assert!(setup.people.contains("is set up already"), "{setup:?}");
}

#[test]
fn setup_refuses_what_would_give_the_deployer_root() {
    let site = Site::bare("refused");
    site.root("useradd --create-home deploy; useradd --system app2; mkdir -p /srv/open /srv/ok; chmod 777 /srv/open; ln -s /srv/ok /srv/link; mkdir -p /srv/other; echo 'service=shop manager=systemd' >/srv/other/settings");
    let before = site.root("find /etc /srv -printf '%p %u %m %s %T@\\n'");
    for (target, reason) in [
        (
            "deploy@refused:/home/deploy/app",
            "can be changed by others than root",
        ),
        (
            "deploy@refused:/srv/open/app",
            "can be changed by others than root",
        ),
        (
            "deploy@refused:/tmp/app",
            "can be changed by others than root",
        ),
        ("deploy@refused:/srv/link/app", "is a link"),
        (
            "deploy@refused:/srv/ok/../../home/deploy/app",
            "is not a plain path",
        ),
        ("app@refused:/srv/app", "the app's own user"),
        (
            "deploy@refused:/srv/other",
            "the service shop, not of other",
        ),
    ] {
        let args = ["setup", target, "--as", "root", "--listen", "0.0.0.0:80"];
        crate::workspace::said(&mut site.command(&args)).fails(&[reason]);
    }
    assert_eq!(
        site.root("find /etc /srv -printf '%p %u %m %s %T@\\n'"),
        before
    );
    // The user that `setup` makes cannot let anybody else in.
    site.root("userdel --remove deploy; sed -i '1i # mine' /root/.ssh/authorized_keys");
    site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"])
        .succeeds();
    let keys = site.root("cat /home/deploy/.ssh/authorized_keys");
    assert!(
        keys.starts_with("restrict ssh-ed25519 ") && keys.lines().count() == 1,
        "{keys}"
    );
    for attempt in [
        "echo x >>~/.ssh/authorized_keys",
        "mv ~/.ssh ~/x",
        "touch ~/.ssh/x ",
        "touch ~/x",
        "ls /srv/app/log",
    ] {
        let tried = [
            "runuser",
            "-u",
            "deploy",
            "--",
            "sh",
            "-c",
            &format!("HOME=/home/deploy; {attempt}"),
        ];
        assert!(
            !site.server.exec(&tried).unwrap().status.success(),
            "{attempt}"
        );
    }
    site.deploy(&app("A")).succeeds();
}

/// systemd reads it as the nohup manager does, see `hostile.rs`.
#[test]
fn systemd_reads_an_environment_as_it_was_set() {
    let (site, live) = site("env");
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    for (name, value) in VALUES {
        site.root(&format!(
            "printf '%s\\n' {} | /srv/app/bin/activate env-set {name}",
            quoted(value)
        ));
    }
    site.root("/srv/app/bin/activate env-unset EMPTY");
    let said = activate(&site, &upload(&site, &app("B")));
    assert!(said.contains("\nverdict live\n"), "{live}: {said}");
    wait_until("A to exit", || site.instances() == 1);
    let pid = "systemctl show --property MainPID --value 'app@*' | grep -v '^$'";
    let environment = site.root(&format!("cat /proc/$({pid})/environ"));
    let variables: Vec<&str> = environment.split('\0').collect();
    for (name, value) in VALUES {
        let set = variables.contains(&&*format!("{name}={value}"));
        assert_eq!(set, *name != "EMPTY", "{name}: {variables:?}");
    }
    assert!(variables.contains(&"STATE_DIRECTORY=/var/lib/app"));
    let state = site.root("stat -c '%U %a' /var/lib/app /srv/app/env");
    assert_eq!(state, "app 700\nroot 600\n");
}
