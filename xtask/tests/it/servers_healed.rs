//! An activation on a real server is killed at each of its steps, in each of the ways that
//! a host can do that. Nobody gives a command then, and exactly the live version runs.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    app::app,
    place::{Version, version_of, wait_until},
    site::Site,
};

/// From the kill until exactly the live version runs, the verdict is recorded, the lock is
/// free and the client was told.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// As root on the server, with `$A` the activation, `$P` its worker and `$C` its cgroup.
const WAYS: &[&str] = &[
    "kill -KILL $P",
    "systemctl kill --signal KILL app-activation-$A.service",
    "systemctl stop app-activation-$A.service",
    "kill -STOP $P; kill -KILL $P",
    "echo 1 >$C/cgroup.kill",
];

const STEPS: &[&str] = &["worker", "Locked", "Installing", "Starting", "Watching"];

#[test]
fn a_killed_activation_is_healed() {
    let site = Site::set_up("healed");
    site.root("sed -i 's/settle=[0-9.]*/settle=0.5/; s/drain=[0-9]*/drain=2/' /srv/app/settings");
    let mut live = site.deploy(&app("A")).succeeds().trim().to_owned();
    let mut killed = 0;
    for step in STEPS {
        for way in WAYS {
            let version = upload(&site, &app(&format!("{step} {way}")));
            let (said, took) = killed_at(&site, &version, step, way);
            let context = format!("{way} at {step}: {said}");
            let records = site.root("wc -l </srv/app/history; tail -n 1 /srv/app/history");
            assert!(records.contains(&version.name), "{context}: {records}");
            // The kill may come after the commit.
            if said.contains("\nverdict live") {
                live = version.name;
                assert!(records.contains("\tlive\t"), "{context}: {records}");
            } else {
                assert!(said.contains("\nverdict failed it was killed"), "{context}");
                assert!(records.contains("\tfailed\t"), "{context}: {records}");
            }
            wait_until(&format!("only {live} to run: {context}"), || {
                is_at_rest(&site, &live)
            });
            assert_eq!(site.served(), live, "{context}");
            println!("{:?} at rest after {took:?}: {way} at {step}", site.name);
            assert!(took < REST_TIMEOUT, "{context}: {took:?}");
            killed += 1;
        }
    }
    println!("{killed} activations killed, each healed without a command");
}

/// The record is written, and the old version not yet told to stop.
#[test]
fn one_that_is_killed_after_its_record_is_live() {
    let site = Site::set_up("recorded");
    site.deploy(&app("A")).succeeds();
    site.root(
        "cd /usr/local/sbin; printf '#!/bin/sh\n[ \"$1\" != stop ] || sleep 2\nexec /usr/bin/systemctl \"$@\"\n' >systemctl
         chmod 755 systemctl",
    );
    let version = upload(&site, &app("B"));
    let kill = format!(
        "until grep -q 'live.{}' /srv/app/history; do sleep 0.05; done
         /usr/bin/systemctl kill --signal KILL 'app-activation-*'",
        version.name
    );
    let said = thread::scope(|threads| {
        threads.spawn(|| site.root(&kill));
        activate(&site, &version)
    });
    assert!(said.contains("\nverdict live\n"), "{said}");
    wait_until("B to run alone", || is_at_rest(&site, &version.name));
    let records = site.root("cat /srv/app/history");
    assert_eq!(records.matches(&version.name).count(), 1, "{records}");
    assert_eq!(site.root("cat /srv/app/lock"), "");
}

/// Returns what the client was told, and how long after the kill it was at rest.
fn killed_at(site: &Site, version: &Version, step: &str, way: &str) -> (String, Duration) {
    thread::scope(|threads| {
        let killer = threads.spawn(|| {
            at_step(site, step, way);
            Instant::now()
        });
        let said = activate(site, version);
        let killed = killer.join().unwrap();
        let recorded = || {
            site.root("flock -n /srv/app/lock cat /srv/app/lock")
                .is_empty()
        };
        while !recorded() {
            assert!(killed.elapsed() < Duration::from_secs(30), "{said}");
        }
        (said, killed.elapsed())
    })
}

/// Runs a command as root once an activation is at that step, or never if none gets there.
/// The log is the newest file whose name ends with a digit; reading a client's FIFO would hang.
pub fn at_step(site: &Site, step: &str, command: &str) {
    site.root(&format!(
        "cd /srv/app/log; for i in $(seq 2000); do
             A=$(ls -t 2*[0-9] 2>/dev/null | head -n 1)
             grep -qs '^{step}' \"$A\" && ! grep -q '^verdict' \"$A\" || {{ sleep 0.01; continue; }}
             read -r _ P <\"$A\"
             C=/sys/fs/cgroup; [ ! -d $C/unified ] || C=$C/unified
             C=$C$(sed -n s/^0:://p /proc/$P/cgroup)
             {command}; exit
         done"
    ));
}

/// A version with these bytes, ready to be activated.
pub fn upload(site: &Site, bytes: &[u8]) -> Version {
    let version = version_of(bytes);
    let write = format!(
        "cat >/srv/app/incoming/app-{0} && chown deploy: /srv/app/incoming/app-{0}",
        version.name
    );
    let mut ssh = Command::new(site.workspace.place.path("shims/ssh"))
        .args([&format!("root@{}", site.name), &write])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    ssh.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(ssh.wait().unwrap().success());
    version
}

pub fn activate(site: &Site, version: &Version) -> String {
    site.root(&format!(
        "/srv/app/bin/activate activate {} {} tester@test",
        version.name, version.sha256
    ))
}

pub fn is_at_rest(site: &Site, live: &str) -> bool {
    let units = "systemctl list-units --plain --no-legend 'app@*' | grep -v ' inactive '";
    let units = site.root(units);
    units.lines().count() == 1
        && units.contains(&format!("app@{live}."))
        && units.contains(" running ")
}
