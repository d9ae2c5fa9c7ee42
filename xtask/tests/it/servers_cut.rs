//! Real servers whose line is cut, whose power fails, whose disk is full.

use std::{
    fs::{self, File},
    io::Read,
    thread,
    time::{Duration, Instant},
};

use crate::{
    app::app,
    client::Client,
    http,
    place::{version_of, wait_until},
    site::Site,
    workspace::{Said, Workspace},
};

/// Where a deploy can be cut, in its order. It is held there: while it builds (the host was
/// asked, and waits), while the host takes the upload, while it waits for the lock,
/// while it watches the new version, or while the server flushes to its disk: the lock,
/// once it has it; the version; `current`, committed already; the verdict.
const STAGES: [&str; 9] = [
    BUILDING,
    PATCHING,
    RSYNC,
    "Waiting",
    "sync lock",
    "sync versions/.new",
    WATCHING,
    "sync .",
    "sync history",
];

const BUILDING: &str = "cargo";
const PATCHING: &str = "zstd";
const RSYNC: &str = "rsync";
const WATCHING: &str = "sleep 0.3";

/// From when on the host goes on by itself.
fn is_asked_for(stage: &str) -> bool {
    ![BUILDING, PATCHING, RSYNC].contains(&stage)
}

#[test]
fn a_killed_client_does_not_stop_an_activation() {
    let site = slow_site("client");
    for stage in STAGES {
        let before = history(&site);
        let (binary, deploy) = deploy_up_to(&site, stage);
        assert_eq!(deploy.kill().code, -9, "{stage}");
        let_go(&site);
        let verdict = is_asked_for(stage).then_some(("live", &binary));
        ends_well(&site, stage, &before, verdict);
    }
    works(&site);
    println!("{} stages at which the client was killed", STAGES.len());
}

#[test]
fn a_killed_session_is_taken_up_again() {
    let site = slow_site("sshd");
    for stage in STAGES {
        let before = history(&site);
        let (binary, deploy) = deploy_up_to(&site, stage);
        site.root("pkill -KILL -f '^sshd: deploy'");
        let_go(&site);
        let Said { code, people, .. } = deploy.end();
        let (expected, told) = match stage {
            RSYNC => (1, "nothing was changed"),
            // Or the connection was lost before the state was read.
            BUILDING if people.contains("cannot read the state") => (1, "nothing was changed"),
            // What a patch could not do, rsync does, by a new connection.
            BUILDING | PATCHING => (0, "Connecting to deploy@sshd\n"),
            _ => (0, "connection to deploy@sshd lost"),
        };
        assert_eq!(code, expected, "{stage}: {people}");
        assert!(people.contains(told), "{stage}: {people}");
        let verdict = (code == 0).then_some(("live", &binary));
        ends_well(&site, stage, &before, verdict);
    }
    works(&site);
    println!("{} stages at which sshd was killed", STAGES.len());
}

#[test]
fn an_activation_ends_while_the_line_is_cut() {
    let site = slow_site("line");
    for stage in STAGES {
        let before = history(&site);
        let (binary, deploy) = deploy_up_to(&site, stage);
        site.server.disconnect().unwrap();
        let_go(&site);
        if is_asked_for(stage) {
            wait_for_lock(&site);
            assert_eq!(history(&site).len(), before.len() + 1, "{stage}");
        }
        site.server.connect().unwrap();
        let Said { code, people, .. } = deploy.end();
        assert_eq!(code, 0, "{stage}: {people}");
        ends_well(&site, stage, &before, Some(("live", &binary)));
    }
    works(&site);
    println!("{} stages at which the line was cut", STAGES.len());
}

#[test]
fn after_a_power_cut_it_serves_what_was_ready() {
    let site = slow_site("power");
    for stage in STAGES {
        let before = history(&site);
        let (binary, deploy) = deploy_up_to(&site, stage);
        site.server.kill().unwrap();
        deploy.kill();
        boot(&site);
        let verdict = match stage {
            BUILDING | PATCHING | RSYNC | "Waiting" => None,
            "sync ." | "sync history" => Some("live"),
            _ => Some("failed"),
        };
        ends_well(&site, stage, &before, verdict.map(|it| (it, &binary)));
    }
    works(&site);
    println!("{} stages at which the power failed", STAGES.len());
}

#[test]
fn a_cut_upload_goes_on_where_it_was() {
    let site = slow_site("resume");
    for stage in [PATCHING, RSYNC] {
        let (binary, deploy) = deploy_up_to(&site, stage);
        deploy.kill();
        let_go(&site);
        wait_until("the host to be done with it", || {
            site.root("pgrep -x 'dd|zstd|rsync'").is_empty()
        });
        let there = site.root("cat /srv/app/incoming/app-2* | wc -c");
        let there: u64 = there.trim().parse().unwrap();
        let start = site.received();
        site.xtask("deploy", &["--build", "host"]).succeeds();
        let sent = site.received() - start;
        let len = binary.len() as u64;
        println!("{stage}: {there} bytes of {len} before the cut, {sent} sent after it");
        assert!(sent < len - there + 100_000, "{sent} for {len} - {there}");
        assert!(site.served().ends_with(&version_of(&binary).sha256[..12]));
        site.deploy(&app("little again")).succeeds();
    }
}

/// Long enough for ssh to give up the line: it notices after 15 s.
#[test]
fn a_client_connects_again_for_the_verdict() {
    let site = slow_site("again");
    let (binary, mut deploy) = deploy_up_to(&site, WATCHING);
    site.server.disconnect().unwrap();
    let_go(&site);
    deploy.wait_for("connection to deploy@again lost", 1);
    let start = Instant::now();
    let refused = site.deploy(&app("to nowhere"));
    assert!(start.elapsed() < Duration::from_secs(15), "{refused:?}");
    refused.fails(&["cannot connect to deploy@again"]);
    site.server.connect().unwrap();
    let Said { code, people, .. } = deploy.end();
    assert_eq!(code, 0, "{people}");
    assert!(history(&site)[1].contains(&version_of(&binary).sha256));
}

#[test]
fn a_client_is_told_of_an_activation_that_power_cut_off() {
    let site = slow_site("told");
    let (_, deploy) = deploy_up_to(&site, WATCHING);
    site.server.kill().unwrap();
    boot(&site);
    let start = Instant::now();
    let Said { code, people, .. } = deploy.end();
    assert!(start.elapsed() < Duration::from_secs(30), "{people}");
    assert_eq!(code, 1, "{people}");
    // Whether the server has come to give it a verdict by now, or not yet.
    let told = ["did not become live", "outcome unknown"];
    assert!(told.iter().any(|it| people.contains(it)), "{people}");
    assert!(history(&site)[1].contains("\tfailed\t"));
    // Its pid may be anybody's after a reboot.
    let follow = "cd /srv/app && log=$(ls log/[0-9]* | tail -n 1) &&
        sed -i 's/^worker .*/worker 1/' $log && timeout 5 bin/activate follow ${log#log/}; echo $?";
    let said = site.root(follow);
    assert!(
        said.ends_with("verdict failed it was killed\n1\n"),
        "{said}"
    );
}

#[test]
fn a_full_disk_changes_nothing() {
    let site = small_site("full");
    let live = site.served();
    // Room enough for what is checked, but not for this one.
    fill(&site, 40);
    let big = [app("big"), random(45)].concat();
    site.deploy(&big)
        .fails(&["No space left on device", "nothing was changed"]);
    assert_eq!(site.served(), live);
    fill(&site, 20);
    site.deploy(&app("little")).fails(&[
        "full has only 2",
        " MB of free disk space",
        "nothing was changed",
    ]);
    // Room for its upload, but not for its copy.
    fill(&site, 40);
    let big = [app("big"), random(25)].concat();
    site.deploy(&big)
        .fails(&["No space left on device", "still serves"]);
    assert_eq!(site.served(), live);
    // No room from when it is ready on, and a verdict that begins a new page.
    let pages = "cd /srv/app; rm -f /srv/filler incoming/*; line=$(tail -n 1 history)
        while [ $(($(wc -c <history) + ${#line})) -lt 4096 ]; do echo \"$line\" >>history; done";
    site.root(pages);
    let before = history(&site);
    let (binary, deploy) = deploy_up_to(&site, WATCHING);
    fill(&site, 0);
    let_go(&site);
    let Said { code, people, .. } = deploy.end();
    assert_eq!(code, 0, "{people}");
    assert!(people.contains("history could not be written"), "{people}");
    assert!(site.served().ends_with(&version_of(&binary).sha256[..12]));
    site.root("rm -f /srv/filler");
    let next = site.deploy(&app("next")).succeeds();
    serves(&site, next.trim());
    let after = history(&site);
    let whole = |it: &&String| it.split('\t').count() == 5;
    let new: Vec<_> = after[before.len()..].iter().filter(whole).collect();
    assert_eq!(new.len(), 2, "{new:?}");
    assert!(new[0].contains(&version_of(&binary).sha256), "{new:?}");
    // A torn line that cannot be ended keeps nobody from starting what is live.
    site.root(
        "cd /srv/app && head -c $((4096 - $(wc -c <history) % 4096)) /dev/zero | tr '\\0' x >>history",
    );
    fill(&site, 0);
    site.xtask("stop", &[]).succeeds();
    site.xtask("start", &[]).succeeds();
    serves(&site, next.trim());
    // A setup for which there was no room is no obstacle to the next one.
    site.xtask("stop", &[]).succeeds();
    site.root("rm -r /srv/app");
    fill(&site, 0);
    let setup = || site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"]);
    setup().fails(&["No space left on device", "is not set up, or only partly"]);
    site.root("rm -f /srv/filler");
    setup().succeeds();
    let anew = site.deploy(&app("anew")).succeeds();
    serves(&site, anew.trim());
}

#[test]
fn a_read_only_disk_changes_nothing() {
    let site = small_site("read-only");
    let live = site.served();
    wait_for_lock(&site);
    // Not while the activation's last process has a file open.
    wait_until("/srv to be read-only", || {
        site.root("mount -o remount,ro /srv").is_empty()
    });
    site.deploy(&app("B"))
        .fails(&["Read-only file system", "nothing was changed"]);
    assert_eq!(site.served(), live);
    site.root("mount -o remount,rw /srv");
    let next = site.deploy(&app("C")).succeeds();
    serves(&site, next.trim());
}

/// The order is the history's, whatever the clock of who deployed said.
#[test]
fn a_clock_a_day_off_does_not_matter() {
    let site = slow_site("clock");
    let first = site.served();
    let ahead = activate_by_hand(&site, "+1 day");
    let between = site.deploy(&app("between")).succeeds();
    let behind = activate_by_hand(&site, "-1 day");
    let last = site.deploy(&app("last")).succeeds();
    for version in [between.trim(), &ahead, &behind] {
        assert_ne!(version, first);
    }
    let now = site.xtask("status", &["--json"]).succeeds();
    assert!(now.contains(last.trim()), "{now}");
    for expected in [&behind, between.trim(), &ahead, &first] {
        let back = site.xtask("rollback", &[]).succeeds();
        assert_eq!(back.trim(), expected);
        serves(&site, expected);
    }
}

#[test]
fn eight_clients_at_once_go_one_by_one() {
    let site = slow_site("eight");
    let clients: Vec<(Workspace, Vec<u8>)> = (1..=8)
        .map(|n| {
            (
                Workspace::new(&format!("client-{n}")),
                app(&format!("of {n}")),
            )
        })
        .collect();
    let said: Vec<Said> = thread::scope(|threads| {
        let deploys: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(n, (workspace, binary))| {
                fs::write(workspace.root.join("binary"), binary).unwrap();
                let mut command = workspace.command(&["deploy", &site.target()]);
                let ours = site.command(&[]);
                let path = ours.get_envs().find(|(key, _)| *key == "PATH").unwrap().1;
                command
                    .args(["--build", "host"])
                    .env("PATH", path.unwrap())
                    .env("USER", format!("person{n}"));
                threads.spawn(move || crate::workspace::said(&mut command))
            })
            .collect();
        deploys.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let waited = said
        .iter()
        .filter(|it| it.people.contains("Waiting for person"));
    assert!(waited.count() >= 4, "{said:?}");
    for it in said {
        it.succeeds();
    }
    let history = history(&site);
    assert_eq!(history.len(), 9, "{history:?}");
    for (n, (_, binary)) in clients.iter().enumerate() {
        let ours = |line: &&String| {
            line.contains("\tlive\t")
                && line.contains(&version_of(binary).sha256)
                && line.contains(&format!("\tperson{n}@"))
        };
        assert_eq!(history.iter().filter(ours).count(), 1, "{history:?}");
    }
    serves(&site, history[8].split('\t').nth(2).unwrap());
}

/// A server with a version live, that can be held at what it calls `sync` and `sleep` for,
/// and in the middle of an upload.
fn slow_site(name: &'static str) -> Site {
    can_be_held(Site::bare(name))
}

/// One whose disk is small, too.
fn small_site(name: &'static str) -> Site {
    can_be_held(Site::bare_with(name, &["--tmpfs=/srv:size=90m,exec"]))
}

fn can_be_held(site: Site) -> Site {
    site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"])
        .succeeds();
    site.root(
        r#"sed -i 's/settle=[0-9.]*/settle=0.3/' /srv/app/settings
        cat >/usr/local/sbin/sync <<'END'
#!/bin/sh
if [ "${0##*/} $*" = "$(cat /root/hold 2>/dev/null)" ]; then
    mv /root/hold /root/held
    while [ -e /root/held ]; do /usr/bin/sleep 0.05; done
fi
exec "/usr/bin/${0##*/}" "$@"
END
        chmod +x /usr/local/sbin/sync
        ln -s sync /usr/local/sbin/sleep
        cat >/usr/local/bin/rsync <<'END'
#!/bin/sh
[ -e /var/tmp/held ] || exec "/usr/bin/${0##*/}" "$@"
{
    dd bs=64k count=1500k iflag=count_bytes status=none
    while [ -e /var/tmp/held ]; do /usr/bin/sleep 0.05; done
    exec cat
} | {
    status=0
    "/usr/bin/${0##*/}" "$@" || status=$?
    pkill -P $$ -x cat
    exit $status
}
END
        chmod +x /usr/local/bin/rsync
        ln -s rsync /usr/local/bin/zstd"#,
    );
    site.deploy(&app("first")).succeeds();
    site
}

fn let_go(site: &Site) {
    site.root("rm -f /root/held /var/tmp/held");
    let _ = fs::remove_file(site.workspace.root.join("target/hold"));
}

/// What was held is gone with the power.
fn boot(site: &Site) {
    site.server.boot().unwrap();
    let_go(site);
}

/// Begins a deploy of a binary of its own, and returns when it is held at that stage.
fn deploy_up_to(site: &Site, stage: &str) -> (Vec<u8>, Client) {
    let mut binary = app(stage);
    match stage {
        BUILDING => fs::write(site.workspace.root.join("target/hold"), "").unwrap(),
        PATCHING | RSYNC => {
            binary.extend(random(3));
            site.root("touch /var/tmp/held");
            if stage == RSYNC {
                fs::remove_dir_all(site.workspace.root.join("target/sent")).unwrap();
            }
        }
        "Waiting" => drop(site.root(
            "touch /root/held; flock /srv/app/lock sh -c \
             'while [ -e /root/held ]; do sleep 0.05; done' >/dev/null 2>&1 &",
        )),
        _ => drop(site.root(&format!("echo '{stage}' >/root/hold"))),
    }
    fs::write(site.workspace.root.join("binary"), &binary).unwrap();
    let command = site.command(&["deploy", &site.target(), "--build", "host"]);
    let mut deploy = Client::start(&site.workspace, &command);
    match stage {
        BUILDING => wait_until(stage, || {
            !site
                .root("pgrep -f '^/bin/sh /srv/app/bin/activate session'")
                .is_empty()
        }),
        PATCHING | RSYNC => wait_until(stage, || {
            // Before rsync runs, its file may be a copy of the live version.
            let arrived = format!(
                "pgrep -f '^/bin/sh /usr/local/bin/{stage}' && find /srv/app/incoming -type f -size +1100k"
            );
            site.root(&arrived).contains("/srv/app/incoming/")
        }),
        "Waiting" => deploy.wait_for(stage, 1),
        _ => wait_until(stage, || site.root("ls /root/held") == "/root/held\n"),
    }
    (binary, deploy)
}

/// So many MB that cannot be compressed: they take a while to upload.
fn random(megabytes: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let random = File::open("/dev/urandom").unwrap();
    random
        .take(megabytes << 20)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

/// Leaves so many MB of the server's disk.
fn fill(site: &Site, megabytes: u64) {
    site.root(&format!(
        "rm -f /srv/filler /srv/app/incoming/*; touch /srv/filler
        head -c $(($(df -B1 --output=avail /srv | tail -n 1) - ({megabytes} << 20))) /dev/zero >/srv/filler"
    ));
}

/// As the script is asked to by a client whose clock is off.
fn activate_by_hand(site: &Site, clock: &str) -> String {
    let said = site.root(&format!(
        "cd /srv/app && {{ cat current; echo '{clock}'; }} >new && sum=$(sha256sum <new) &&
        version=$(date -u -d '{clock}' +%Y%m%dT%H%M%SZ)-1a2b3c4d5e6f-$(echo $sum | cut -c 1-12) &&
        mv new incoming/app-$version && bin/activate activate $version ${{sum%  -}} root@test && echo $version"
    ));
    assert!(said.contains("\nverdict live\n"), "{said}");
    said.lines().last().unwrap().to_owned()
}

fn history(site: &Site) -> Vec<String> {
    let text = site.root("cat /srv/app/history");
    text.lines().map(str::to_owned).collect()
}

/// No lock is held, what was begun has its verdict, and something valid is served. That
/// the next deploy works, the next stage shows, and `works` after the last.
fn ends_well(site: &Site, stage: &str, before: &[String], verdict: Option<(&str, &Vec<u8>)>) {
    wait_for_lock(site);
    let history = history(site);
    let (old, new) = history.split_at(before.len());
    assert_eq!(old, before, "{stage}");
    match verdict {
        None => assert_eq!(new, [""; 0], "{stage}"),
        Some((verdict, binary)) => {
            assert_eq!(new.len(), 1, "{stage}: {new:?}");
            for part in [&format!("\t{verdict}\t"), &version_of(binary).sha256] {
                assert!(new[0].contains(part), "{stage}: {new:?}");
            }
        }
    }
    let last = history.iter().rfind(|it| it.contains("\tlive\t")).unwrap();
    serves(site, last.split('\t').nth(2).unwrap());
    if !is_asked_for(stage) {
        works(site);
    }
}

fn works(site: &Site) {
    let number = history(site).len();
    let next = site.deploy(&app(&format!("next {number}"))).succeeds();
    serves(site, next.trim());
}

fn wait_for_lock(site: &Site) {
    wait_until("the lock to be free", || {
        site.root("flock -n /srv/app/lock echo free") == "free\n"
    });
}

fn serves(site: &Site, version: &str) {
    let current = site.root("readlink /srv/app/current; sha256sum </srv/app/current");
    let (link, sha256) = current.split_once('\n').unwrap();
    assert_eq!(link, format!("versions/app-{version}"));
    assert!(version.ends_with(&sha256[..12]), "{current}");
    let answer = http::get(site.address(), "/").unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.version(), Some(version));
}
