//! What is finished before the process ends.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::examples::command;
use crate::support::{Connection, Instance, address, eventually, get, nth};

#[test]
fn hooks_run_after_the_last_request_and_the_last_one_first() {
    let address = address();
    let mut app = Instance::start(&mut command(&nth(1), address));
    let mut slow = Connection::open(address);
    slow.send("GET /slow/1500 HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    get(address, "/");
    app.signal("TERM");
    assert_eq!(slow.read_head().unwrap().status, 200);
    assert!(!app.log().contains("the queue is empty"), "{}", app.log());

    assert!(app.ends().0.success());
    let log = app.log();
    let position = |line| {
        log.find(line)
            .unwrap_or_else(|| panic!("no {line:?}: {log}"))
    };
    assert!(position("drained") < position("the queue is empty"));
    assert!(position("the queue is empty") < position("the database is closed"));
}

#[test]
fn hooks_run_even_if_a_connection_used_up_the_drain() {
    let address = address();
    let mut app = Instance::start(command(&nth(1), address).env("DRAIN_SECONDS", "1"));
    let mut endless = Connection::open(address);
    endless
        .send("GET /slow/60000 HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    get(address, "/");
    app.signal("TERM");
    let (status, took) = app.ends();
    assert!(
        status.success() && took < Duration::from_secs(3),
        "{status} {took:?}"
    );
    assert!(
        app.log().contains("the database is closed"),
        "{}",
        app.log()
    );
}

#[test]
fn a_thread_that_writes_is_not_cut_off() {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("w{}", std::process::id()));
    let _ = fs::remove_file(&file);
    let address = address();
    let mut app = Instance::start(command(&nth(1), address).env("FILE", &file));
    let mut connection = Connection::open(address);
    let answer = connection.post("/write-later", "the whole text");
    assert_eq!(answer.unwrap().body, "begun\n");
    drop(connection);

    app.signal("TERM");
    app.ends();
    assert_eq!(fs::read_to_string(&file).unwrap(), "the whole text");
    fs::remove_file(file).unwrap();
}

#[test]
fn sigterm_before_it_is_ready_ends_it() {
    let mut app = Instance::spawn(command(&nth(1), address()).env("SLOW_START", "1"));
    eventually(|| app.log().contains("opening the database"));
    app.signal("TERM");
    let (status, took) = app.ends();
    assert!(
        status.success() && took < Duration::from_secs(2),
        "{status} {took:?}"
    );
    assert!(!app.log().contains("listening"), "{}", app.log());
}
