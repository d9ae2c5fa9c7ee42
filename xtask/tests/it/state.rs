//! An app with a database, a secret and a twin, on one server.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use crate::{
    app::app,
    http::{self, Connection},
    https::QUICK,
    load,
    notes::notes,
    place::wait_until,
    site::Site,
    workspace::{Said, said},
};

const SECRET: &str = "a \"quoted\" $HOME `id` #1 = x\\y\nüber";

impl Site {
    /// A command for another service on the same server.
    pub fn xtask_for(&self, service: &str, command: &str, args: &[&str]) -> Said {
        let target = format!("deploy@{}:/srv/{service}", self.name);
        said(&mut self.command(&[&[command, &*target], args].concat()))
    }

    pub fn deploy_for(&self, service: &str, binary: &[u8]) -> Said {
        fs::write(self.workspace.root.join("binary"), binary).unwrap();
        self.xtask_for(service, "deploy", &["--build", "host"])
    }

    pub fn set_up_notes(&self, service: &str, port: u16, secret: &str) -> SocketAddr {
        let listen = format!("0.0.0.0:{port}");
        self.xtask_for(service, "setup", &["--as", "root", "--listen", &listen])
            .succeeds();
        self.root(QUICK);
        let target = format!("deploy@{}:/srv/{service}", self.name);
        self.set_env(&target, "SECRET", secret);
        (self.server.ip(), port).into()
    }
}

/// Clients that write notes, each on new connections and kept ones in turn.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<(Vec<String>, Vec<String>)>>,
}

impl Writers {
    fn start(address: SocketAddr) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = |n| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || write(address, n, &stop))
        };
        let threads = (0..4).map(writer).collect();
        Writers { stop, threads }
    }

    /// The notes that were accepted, and what else was answered.
    fn stop(self) -> (BTreeSet<String>, Vec<String>) {
        self.stop.store(true, Relaxed);
        let mut all = (BTreeSet::new(), Vec::new());
        for thread in self.threads {
            let (written, lost) = thread.join().unwrap();
            all.0.extend(written);
            all.1.extend(lost);
        }
        all
    }
}

fn write(address: SocketAddr, writer: usize, stop: &AtomicBool) -> (Vec<String>, Vec<String>) {
    let (mut written, mut lost) = (Vec::new(), Vec::new());
    let mut kept: Option<Connection> = None;
    for n in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        let note = format!("note-{writer}-{n}");
        let mut post = || {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(address)?,
            };
            let length = note.len();
            connection.send(&format!(
                "POST /notes HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{note}"
            ))?;
            let answer = connection.read_answer()?;
            kept = (writer.is_multiple_of(2) && !answer.closes()).then_some(connection);
            std::io::Result::Ok(answer)
        };
        match post() {
            Ok(answer) if answer.status == 200 => written.push(note),
            Ok(answer) => lost.push(format!("{note}: {} {}", answer.status, answer.body)),
            Err(error) => lost.push(format!("{note}: {error}")),
        }
        sleep(Duration::from_millis(5));
    }
    (written, lost)
}

fn stored(address: SocketAddr) -> BTreeSet<String> {
    let body = http::get(address, "/notes").unwrap().body;
    body.lines().map(str::to_owned).collect()
}

fn switch_under_writes(name: &'static str, overlap: bool) {
    let site = Site::bare(name);
    let address = site.set_up_notes("app", 80, SECRET);
    site.root(&format!(
        "sed -i 's/overlap=true/overlap={overlap}/' /srv/app/settings"
    ));
    site.deploy(&notes("A")).succeeds();
    site.deploy(&notes("B")).succeeds();
    let writers = Writers::start(address);
    for _ in 0..10 {
        site.xtask("rollback", &[]).succeeds();
        site.xtask("deploy", &["--build", "host"]).succeeds();
    }
    let (written, lost) = writers.stop();
    println!(
        "overlap {overlap}: 20 switches, {} notes written, {} lost",
        written.len(),
        lost.len()
    );
    assert!(lost.is_empty() && written.len() > 200, "{lost:?}");
    assert_eq!(stored(address), written);

    // The state survives `setup`, and nobody but the app's user reads it.
    site.xtask("setup", &["--as", "root"]).succeeds();
    site.xtask("restart", &[]).succeeds();
    assert_eq!(stored(address), written);
    assert_eq!(http::get(address, "/secret").unwrap().body, SECRET);
    let mode = "stat --dereference --format '%U %a' /var/lib/app";
    assert_eq!(site.root(mode), "app 700\n");
}

#[test]
fn no_write_is_lost_when_two_versions_share_a_database() {
    switch_under_writes("writes", true);
}

#[test]
fn no_write_is_lost_when_one_version_waits_for_the_other() {
    switch_under_writes("waits", false);
}

#[test]
fn a_secret_stays_where_it_belongs() {
    let site = Site::bare("secret");
    let target = site.target();
    let env = |args: &[&str]| site.xtask("env", args);
    env(&["--as", "root"]).fails(&["is not set up", "cargo xtask setup"]);
    let address = site.set_up_notes("app", 80, SECRET);
    site.set_env(&target, "OTHER", "1");
    assert_eq!(env(&["--as", "root"]).succeeds(), "SECRET\nOTHER\n");
    env(&[]).fails(&["--as root"]);
    env(&["set", "A B"]).ends_as_wrong_usage("not the name of a variable");
    env(&["unset", "OTHER", "--as", "admin"]).succeeds();
    env(&["unset", "OTHER", "--as", "root"]).fails(&["OTHER is not set"]);
    assert_eq!(env(&["--as", "admin"]).succeeds(), "SECRET\n");

    site.deploy(&notes("A")).succeeds();
    assert_eq!(http::get(address, "/secret").unwrap().body, SECRET);
    site.set_env(&target, "SECRET", "needle-in-the-log");
    site.xtask("restart", &[]).succeeds();
    wait_until("the new value", || {
        http::get(address, "/secret").is_ok_and(|it| it.body == "needle-in-the-log")
    });
    let places = "journalctl | grep -c needle-in-the; grep -rlc needle-in-the /srv /etc /var/log /home 2>/dev/null; stat -c '%U %a' /srv/app/env";
    assert_eq!(site.root(places), "0\n/srv/app/env\nroot 600\n");
}

#[test]
fn services_on_one_server_do_not_touch_each_other() {
    let site = Site::bare("three");
    let production = site.set_up_notes("app", 80, "production");
    let staging = site.set_up_notes("app-staging", 81, "staging");
    site.xtask_for("shop", "setup", &["--as", "root", "--listen", "0.0.0.0:82"])
        .succeeds();
    site.root(QUICK);
    let shop: SocketAddr = (site.server.ip(), 82).into();
    let services = ["app", "app-staging", "shop"];
    let addresses = [production, staging, shop];
    for label in ["A", "B"] {
        site.deploy_for("app", &notes(&format!("{label}-production")))
            .succeeds();
        site.deploy_for("app-staging", &notes(&format!("{label}-staging")))
            .succeeds();
        site.deploy_for("shop", &app(label)).succeeds();
    }
    assert_eq!(http::get(production, "/secret").unwrap().body, "production");
    assert_eq!(http::get(staging, "/secret").unwrap().body, "staging");

    for (n, service) in services.iter().enumerate() {
        let served = |n: usize| http::served(addresses[n]).unwrap();
        let others: Vec<usize> = (0..3).filter(|other| *other != n).collect();
        let before: Vec<String> = others.iter().map(|other| served(*other)).collect();
        let loads = addresses.map(|it| load::Load::start(it, 2, load::Connections::New));
        let history = |service: &str| site.xtask_for(service, "history", &["--json"]).succeeds();
        let histories: Vec<String> = others
            .iter()
            .map(|other| history(services[*other]))
            .collect();
        let was = served(n);
        site.xtask_for(service, "rollback", &[]).succeeds();
        assert_ne!(served(n), was);
        for load in loads {
            let report = load.stop();
            assert!(
                report.lost.is_empty() && report.answered.len() > 20,
                "{:?}",
                report.lost
            );
        }
        let after: Vec<String> = others.iter().map(|other| served(*other)).collect();
        assert_eq!(after, before, "{service}");
        let after: Vec<String> = others
            .iter()
            .map(|other| history(services[*other]))
            .collect();
        assert_eq!(after, histories, "{service}");
    }
    site.xtask_for("app-staging", "stop", &[]).succeeds();
    assert!(http::get(staging, "/").is_err() && http::get(production, "/secret").is_ok());

    // One service's user does not read what is another's.
    for path in ["/var/lib/app", "/srv/app/env", "/srv/app/log"] {
        let read = format!(
            "setpriv --reuid app-staging --regid app-staging --clear-groups \
             sh -c 'if [ -d {path} ]; then ls {path}; else cat {path}; fi' 2>&1"
        );
        assert!(site.root(&read).contains("Permission denied"), "{path}");
    }
    // A directory or units that are another's.
    site.root("cp -r /srv/app /srv/taken");
    site.xtask_for(
        "taken",
        "setup",
        &["--as", "root", "--listen", "0.0.0.0:83"],
    )
    .fails(&["/srv/taken is the directory of the service app"]);
    let elsewhere = format!("deploy@{}:/opt/app", site.name);
    said(&mut site.command(&[
        "setup",
        &elsewhere,
        "--as",
        "root",
        "--listen",
        "0.0.0.0:84",
    ]))
    .fails(&["app.socket was not created by `setup` for /opt/app"]);
}
