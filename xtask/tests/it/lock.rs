//! One activation at a time.

use std::{
    fs,
    process::Command,
    thread::{self, sleep},
    time::{Duration, Instant},
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
        .filter(|it| it.contains("Waiting for tester@test as root, who has been activating 2026"));
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
    let b = place.upload(&app("B"));
    thread::scope(|threads| {
        let holder = threads.spawn(|| place.activate(&a));
        wait_until("it to hold the lock", || {
            fs::read_to_string(place.path("lock")).is_ok_and(|it| it.contains("tester@test"))
        });
        let next = threads.spawn(|| place.activate(&b));
        sleep(Duration::from_millis(100));
        kill_worker(&fs::read_to_string(place.path("lock")).unwrap(), &place);
        let said = holder.join().unwrap();
        assert!(said.contains("\nverdict failed it was killed\n"), "{said}");
        let said = next.join().unwrap();
        assert!(said.contains("\nverdict live\n"), "{said}");
    });
    let history = place.history();
    assert!(history[0].contains("\tfailed\t"), "{history:?}");
    assert_eq!((history.len(), place.live()), (2, Some(b.name)));
}

/// The attempt's last field names its activation, whose log begins `worker PID`.
fn kill_worker(attempt: &str, place: &Place) {
    let activation = attempt.trim_end().rsplit('\t').next().unwrap();
    let log = fs::read_to_string(place.path("log").join(activation)).unwrap();
    let pid = log.lines().next().unwrap().strip_prefix("worker ").unwrap();
    let kill = Command::new("kill").args(["-KILL", pid]).status();
    assert!(kill.unwrap().success());
}

#[test]
fn only_so_many_may_wait() {
    let place = &Place::new("queue");
    let version = place.upload(&app("A"));
    let lock = fs::File::create(place.path("lock")).unwrap();
    lock.lock().unwrap();
    let said: Vec<String> = thread::scope(|threads| {
        let all: Vec<_> = (0..16)
            .map(|_| threads.spawn(|| place.activate(&version)))
            .collect();
        // No assertion while the lock is held: the threads would wait for it.
        let begun = Instant::now();
        let waiting = || place.logs_with("Waiting for another command");
        while waiting() < 12 && begun.elapsed() < Duration::from_secs(30) {
            sleep(Duration::from_millis(20));
        }
        lock.unlock().unwrap();
        all.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let with = |words: &str| said.iter().filter(|it| it.contains(words)).count();
    assert_eq!(
        with("\nverdict failed 12 others are waiting"),
        4,
        "{said:?}"
    );
    assert_eq!(with("\nverdict live\n"), 12, "{said:?}");
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
