//! Clients do not notice a switch.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use crate::{
    app::{app, faulty_app},
    http::{self, Connection},
    load::{Connections, Load},
    place::{Place, Version},
};

#[test]
fn no_request_is_lost_over_twenty_switches() {
    let place = Place::new("load");
    let versions = ["A", "B", "C"].map(|label| place.make_live(&app(label)));
    let clients = [
        Load::start(place.address, 8, Connections::New),
        Load::start(place.address, 8, Connections::KeptAlive),
    ];
    for n in 0..20 {
        place.make_live_again(&versions[n % 3]);
    }
    for (kind, load) in ["new", "kept"].into_iter().zip(clients) {
        let report = load.stop();
        let answered = report.answered.len();
        println!(
            "figure: 20 switches without systemd, {kind} connections: {} lost, {answered} answered",
            report.lost.len()
        );
        assert!(report.lost.is_empty(), "{kind}: {:?}", report.lost);
        assert!(answered > 1000, "only {answered} {kind}");
        assert_eq!(report.by_version.len(), 3, "{:?}", report.by_version);
    }
}

/// An instance that closes its port drops first packets, which a client's kernel sends again
/// after a second. So the next instance does not listen until that is over.
#[test]
fn switches_right_after_each_other_make_nobody_wait() {
    let place = Place::new("rapid");
    place.set("ready=20 settle=0 drain=30 keep=5 overlap=true");
    let versions = ["A", "B"].map(|label| place.make_live(&app(label)));
    let load = Load::start(place.address, 3, Connections::New);
    for n in 0..10 {
        place.make_live_again(&versions[n % 2]);
    }
    let report = load.stop();
    let answered = report.answered.len();
    let is_late = |it: &&Duration| **it >= Duration::from_secs(1);
    let late = report.answered.iter().filter(is_late).count();
    println!("figure: 10 switches without a pause: {late} of {answered} waited for a second");
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    assert!(late * 50 < answered, "{late} of {answered}");
}

#[test]
fn open_requests_are_finished() {
    let place = Place::new("in-flight");
    place.set("ready=5 settle=0.2 drain=5 keep=5 overlap=true");
    let a = place.make_live(&app("A"));
    let address = place.address;
    let slow: Vec<_> = (0..10)
        .map(|_| thread::spawn(move || http::get(address, "/slow/2")))
        .collect();
    sleep(Duration::from_millis(300));
    let b = place.make_live(&app("B"));
    assert_eq!(place.served(), Some(b.name));
    for answer in slow {
        let answer = answer.join().unwrap().unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "done\n"));
        assert_eq!(answer.version(), Some(&*a.name));
        assert!(answer.closes());
    }
    place.wait_for_processes(1);
}

#[test]
fn half_a_request_does_not_delay_the_drain() {
    let place = Place::new("half-sent");
    place.set("ready=5 settle=0.1 drain=2 keep=5 overlap=true");
    place.make_live(&app("A"));
    let mut half = Connection::open(place.address).unwrap();
    half.send("GET /version HTT").unwrap();
    let mut body = Connection::open(place.address).unwrap();
    body.send("POST /version HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nhalf")
        .unwrap();
    place.make_live(&app("B"));
    let start = Instant::now();
    place.wait_for_processes(1);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_drain_ends_at_its_deadline() {
    let place = Place::new("deadline");
    place.set("ready=5 settle=0.1 drain=2 keep=5 overlap=true");
    place.make_live(&app("A"));
    let address = place.address;
    let endless = thread::spawn(move || http::get(address, "/slow/60"));
    sleep(Duration::from_millis(200));
    place.make_live(&app("B"));
    place.wait_for_processes(1);
    assert!(endless.join().unwrap().is_err());
}

#[test]
fn event_streams_end_and_reconnect_to_the_new_version() {
    let place = Place::new("events");
    place.set("ready=5 settle=0.1 drain=5 keep=5 overlap=true");
    let a = place.make_live(&app("A"));
    assert!(stream_until(place.address, &a.name).is_ok());
    let mut stream = events(place.address);
    let b = place.make_live(&app("B"));
    let start = Instant::now();
    while stream.read_line().is_ok() {}
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "the stream was cut at the deadline"
    );
    stream_until(place.address, &b.name).unwrap();
    place.wait_for_processes(1);
}

/// The version before still drains from the deploy. A second instance of it starts.
#[test]
fn rollback_right_after_a_deploy() {
    let place = Place::new("at-once");
    place.set("ready=5 settle=0.3 drain=30 keep=5 overlap=true");
    let a = place.make_live(&app("A"));
    let address = place.address;
    let long = thread::spawn(move || http::get(address, "/slow/20"));
    sleep(Duration::from_millis(200));
    place.make_live(&app("B"));
    sleep(Duration::from_secs(1));
    let start = Instant::now();
    place.make_live_again(&a);
    println!(
        "figure: a rollback during a drain takes {:?}, 0.3 s of it settle time",
        start.elapsed()
    );
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(place.served().as_ref(), Some(&a.name));
    // The draining instance is not taken for the one that serves.
    let failed = place.activate(&place.upload(&faulty_app("C", "exits")));
    assert!(failed.contains("verdict failed"), "{failed}");
    assert_eq!(place.served().as_ref(), Some(&a.name));
    let answer = long.join().unwrap().unwrap();
    assert_eq!((answer.status, answer.version()), (200, Some(&*a.name)));
}

/// A killed restart leaves two instances of the live version. The older one serves, by its
/// number: the ninth is older than the tenth.
#[test]
fn after_a_killed_restart_the_older_instance_stays() {
    let place = Place::new("killed-restart");
    let a = place.make_live(&app("A"));
    for serving in [1, 9] {
        place.set("ready=5 settle=30 drain=5 keep=5 overlap=true");
        kill_while_it_watches(&place, &a);
        assert_eq!(place.processes().len(), 2);
        place.set("ready=5 settle=0.1 drain=5 keep=5 overlap=true");
        let failed = place.activate(&place.upload(&faulty_app("B", "exits")));
        assert!(failed.contains("verdict failed"), "{failed}");
        place.wait_for_processes(1);
        assert_eq!(place.processes()[0].1, format!("{}.{serving}", a.name));
        for used in 3..9 {
            fs::write(place.path(&format!("log/app-{}.{used}", a.name)), "").unwrap();
        }
        place.make_live_again(&a);
        place.wait_for_processes(1);
    }
}

fn kill_while_it_watches(place: &Place, version: &Version) {
    let args = ["activate", &version.name, &version.sha256, "tester@test"];
    let mut activation = place.script(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(activation.stdout.take().unwrap()).lines();
    let mut until = |word: &str| {
        let line = lines.find_map(|line| Some(line.unwrap().strip_prefix(word)?.to_owned()));
        line.unwrap()
    };
    let worker = until("worker ");
    until("Watching");
    let kill = Command::new("kill").args(["-KILL", &worker]).status();
    assert!(kill.unwrap().success());
    activation.wait().unwrap();
}

#[test]
fn without_overlap_two_instances_never_run_at_once() {
    let place = Place::new("no-overlap");
    place.set("ready=5 settle=0.1 drain=5 keep=5 overlap=false");
    let a = place.make_live(&app("A"));
    let b = place.make_live(&app("B"));
    assert_eq!(place.processes().len(), 1);
    assert_eq!(place.served(), Some(b.name.clone()));
    let said = place.activate(&place.upload(&faulty_app("C", "exits")));
    assert!(said.contains("verdict failed"), "{said}");
    assert_eq!(
        place.served(),
        Some(b.name.clone()),
        "the old version does not serve again"
    );
    assert_eq!(place.status("rollback"), [b.name, a.name]);
}

fn events(address: std::net::SocketAddr) -> Connection {
    let mut stream = Connection::open(address).unwrap();
    stream
        .send("GET /events HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n")
        .unwrap();
    stream
}

fn stream_until(address: std::net::SocketAddr, word: &str) -> std::io::Result<()> {
    let mut stream = events(address);
    while !stream.read_line()?.contains(word) {}
    Ok(())
}
