//! An activation that is frozen is killed when its time is over, and then healed: on a server
//! with systemd, and on one without.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    app::app,
    lab::{server_image, sysvinit_image},
    place::wait_until,
    servers_healed::{activate, at_step, upload},
    site::Site,
};

/// What the settings below allow an activation: 2 s for an upload, 3 s to become ready, 3 s to
/// settle, in which a busy machine has time to freeze it, 2 s to drain, 2 s to work.
const LIMIT: Duration = Duration::from_secs(12);
const COMMIT_TIMEOUT: Duration = Duration::from_secs(20);

const SETTINGS: &str = "cd /srv/app
    sed -i 's/ready=[0-9]*/ready=3/; s/settle=[0-9.]*/settle=3/; s/drain=[0-9]*/drain=2/' settings
    sed -i 's/^UPLOAD_TIMEOUT_SECS=.*/UPLOAD_TIMEOUT_SECS=1/; s/^WORK_SECS=.*/WORK_SECS=2/
        s/^COMMIT_TIMEOUT_SECS=.*/COMMIT_TIMEOUT_SECS=20/' bin/activate";

/// In a cgroup of its own.
const FREEZE: &str = "C=$C/$P; mkdir $C; echo $P >$C/cgroup.procs; echo 1 >$C/cgroup.freeze";

const STOP: &str = "kill -STOP $P";

#[test]
fn by_systemd() {
    let site = is_ended("frozen", &server_image().unwrap());
    // In the cgroup of its unit: what heals it there is frozen, too, so the next command does it.
    let version = upload(&site, &app("in its unit"));
    thread::scope(|threads| {
        threads.spawn(|| at_step(&site, "Installing", "echo 1 >$C/cgroup.freeze"));
        activate(&site, &version)
    });
    let said = activate(&site, &upload(&site, &app("next")));
    assert!(said.contains("\nverdict live\n"), "{said}");
    let records = site.root("tail -n 2 /srv/app/history");
    let failed = format!("\tfailed\t{}", version.name);
    assert!(
        records.contains(&failed) && records.contains("\tlive\t"),
        "{records}"
    );
}

#[test]
fn without_systemd() {
    is_ended("frozen-sysvinit", &sysvinit_image().unwrap());
}

fn is_ended(name: &'static str, image: &str) -> Site {
    let site = Site::bare_from(image, name, &[]);
    site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"])
        .succeeds();
    let live = site.deploy(&app("A")).succeeds();
    site.root(SETTINGS);
    for (step, way, more, limit) in [
        ("worker", STOP, "", LIMIT),
        ("Installing", FREEZE, "", LIMIT),
        ("Ready", FREEZE, "await-commit", LIMIT + COMMIT_TIMEOUT),
    ] {
        let version = upload(&site, &app(&format!("{step} {way}")));
        // Its client neither commits nor goes away.
        let request = format!(
            "rm -f /root/words; mkfifo /root/words; exec 3<>/root/words
             /srv/app/bin/activate activate {} {} tester@test {more} <&3",
            version.name, version.sha256
        );
        let (said, took) = thread::scope(|threads| {
            let frozen = threads.spawn(|| {
                at_step(&site, step, way);
                Instant::now()
            });
            let said = site.root(&request);
            (said, frozen.join().unwrap().elapsed())
        });
        println!("{name}: {took:.1?} frozen at {step} by {way}");
        let context = format!("{step} {way}: {said}");
        assert!(
            said.contains("\nverdict failed it was killed\n"),
            "{context}"
        );
        assert!(took < limit + Duration::from_secs(5), "{context}: {took:?}");
        wait_until(&format!("A to serve alone: {context}"), || {
            site.instances() == 1 && lock_is_free(&site)
        });
        assert_eq!(site.served(), live.trim(), "{context}");
        let record = site.root("tail -n 1 /srv/app/history");
        assert!(
            record.contains(&format!("\tfailed\t{}", version.name)),
            "{record}"
        );
    }
    one_that_waits_long_is_not_frozen(&site);
    site
}

/// It waits for the lock for longer than an activation may take.
fn one_that_waits_long_is_not_frozen(site: &Site) {
    let seconds = LIMIT.as_secs() + 4;
    site.root(&format!(
        "flock /srv/app/lock sleep {seconds} >/dev/null 2>&1 &"
    ));
    let start = Instant::now();
    let said = activate(site, &upload(site, &app("B")));
    assert!(start.elapsed() > LIMIT, "{said}");
    assert!(said.contains("\nverdict live\n"), "{said}");
}

fn lock_is_free(site: &Site) -> bool {
    site.root("flock -n /srv/app/lock test ! -s /srv/app/lock && echo free") == "free\n"
}
