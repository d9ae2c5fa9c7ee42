//! One activation at a time.

use std::{
    fs,
    process::Stdio,
    thread::{self, sleep},
    time::Duration,
};

use crate::{
    app::app,
    place::{Place, wait_until},
};

#[test]
fn eight_at_once_go_one_by_one() {
    let place = &Place::new("eight");
    place.set("ready=5 settle=0.3 drain=2 keep=8 overlap=true");
    let versions: Vec<_> = (0..8)
        .map(|n| place.upload(&app(&format!("{n}"))))
        .collect();
    let said: Vec<String> = thread::scope(|threads| {
        let all: Vec<_> = versions
            .iter()
            .map(|it| threads.spawn(|| place.activate(it)))
            .collect();
        all.into_iter().map(|it| it.join().unwrap()).collect()
    });
    for said in &said {
        assert!(said.contains("\nverdict live\n"), "{said}");
    }
    let waited: Vec<_> = said
        .iter()
        .filter(|it| it.contains("Waiting for "))
        .collect();
    assert_eq!(waited.len(), 7, "{said:?}");
    let told_whom = waited
        .iter()
        .filter(|it| it.contains("Waiting for tester@test, who has been activating 2026"));
    assert_eq!(told_whom.count(), 7, "{waited:?}");

    let history = place.history();
    assert_eq!(history.len(), 8, "{history:?}");
    for version in &versions {
        assert_eq!(
            history
                .iter()
                .filter(|it| it.contains(&version.sha256))
                .count(),
            1
        );
    }
    assert_eq!(place.served(), place.live());
    place.wait_for_processes(1);
}

#[test]
fn a_killed_holder_blocks_nobody() {
    let place = Place::new("killed-holder");
    let a = place.upload(&app("A"));
    let mut holder = place.script(&["perform", &a.name, &a.sha256, "killed@test"]);
    let mut holder = holder.stdout(Stdio::null()).spawn().unwrap();
    wait_until("it to hold the lock", || {
        fs::read_to_string(place.path("lock")).is_ok_and(|it| it.contains("killed@test"))
    });
    holder.kill().unwrap();
    holder.wait().unwrap();
    let b = place.make_live(&app("B"));
    assert!(
        place.history()[0].contains("\tfailed\t"),
        "{:?}",
        place.history()
    );
    assert_eq!(place.live(), Some(b.name));
}

#[test]
fn what_runs_does_not_hold_it() {
    let place = Place::new("free-lock");
    place.set("ready=5 settle=0.1 drain=30 keep=5 overlap=true");
    place.make_live(&app("A"));
    // The draining one and who watches its drain do not, either.
    let mut slow = crate::http::Connection::open(place.address).unwrap();
    slow.send("GET /slow/25 HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    sleep(Duration::from_millis(100));
    place.make_live(&app("B"));
    assert_eq!(place.processes().len(), 2);
    let lock = place.path("lock");
    wait_until("the activation to end", || {
        std::process::Command::new("flock")
            .arg("--nonblock")
            .arg(&lock)
            .arg("true")
            .status()
            .unwrap()
            .success()
    });
    assert_eq!(place.processes().len(), 2, "they still run");
}
