//! SIGTERM: nobody who is connected loses an answer, and it ends in time.

use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{
    Connection, Instance, NEW, address, command, command_with_socket, eventually,
};

const INSTANCE: &str = "1.1";

/// With a socket that systemd keeps, and a deadline (twice the grace) in seconds.
fn start(deadline: &str) -> (Instance, TcpListener) {
    let socket = TcpListener::bind(address()).unwrap();
    let mut command = command_with_socket(INSTANCE, &socket);
    let app = Instance::start(command.env("DRAIN_SECONDS", deadline));
    (app, socket)
}

fn terminate(app: &Instance) {
    app.signal("TERM");
    eventually(|| app.log().contains("draining"));
}

#[test]
fn open_connections_are_answered_once_more_and_closed() {
    let (mut app, socket) = start("20");
    let address = socket.local_addr().unwrap();
    let mut half_sent = Connection::open(address);
    half_sent.send("GET /healthz HTTP/1.1\r\n").unwrap();
    let mut just_opened = Connection::open(address);
    // It comes last, so when it is answered, all three are accepted.
    let mut used = Connection::open(address);
    assert!(!used.get("/healthz").closes());

    terminate(&app);
    assert!(app.log().contains("draining: 3 open"), "{}", app.log());

    half_sent.send("Host: test\r\n\r\n").unwrap();
    let answer = half_sent.read_head().unwrap();
    assert_eq!((answer.status, answer.closes()), (200, true));
    for connection in [&mut used, &mut just_opened] {
        let answer = connection.get("/");
        assert_eq!((answer.status, answer.closes()), (200, true));
        connection.is_closed();
    }

    // The last one is gone, so it goes, long before any deadline.
    let (status, took) = app.ends();
    assert!(status.success());
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(app.log().ends_with("drained\n"), "{}", app.log());
}

#[test]
fn new_connections_wait_for_the_next_instance() {
    let (app, socket) = start("20");
    let address = socket.local_addr().unwrap();
    let mut open = Connection::open(address);
    open.get("/healthz");
    terminate(&app);
    sleep(Duration::from_millis(300)); // until it has stopped accepting

    let mut waiting = Connection::open(address);
    waiting
        .send("GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    sleep(Duration::from_millis(100));
    let next = format!("{NEW}.1");
    let _next = Instance::start(&mut command_with_socket(&next, &socket));
    assert_eq!(waiting.read_head().unwrap().header("x-version"), Some(NEW));

    // And the first one is still there for its own.
    assert_eq!(open.get("/version").header("x-version"), Some("1"));
}

#[test]
fn idle_connections_are_kept_for_a_grace() {
    let (mut app, socket) = start("4");
    let mut idle = Connection::open(socket.local_addr().unwrap());
    idle.get("/healthz");
    terminate(&app);

    let took = idle.is_closed().as_secs_f32();
    assert!((1.5..3.0).contains(&took), "closed after {took} s");
    let (status, took) = app.ends();
    assert!(status.success());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn half_a_request_does_not_hold_it_up() {
    let (mut app, socket) = start("2");
    let address = socket.local_addr().unwrap();
    let mut half_sent = Connection::open(address);
    half_sent.send("GET /healthz HT").unwrap();
    Connection::open(address).get("/healthz"); // so the other one is accepted
    terminate(&app);

    let (status, took) = app.ends();
    let took = took.as_secs_f32();
    assert!((1.5..4.0).contains(&took), "ended after {took} s");
    assert!(status.success());
    assert!(
        app.log().contains("deadline passed: 1 open"),
        "{}",
        app.log()
    );
}

#[test]
fn streams_end_and_it_with_them() {
    let (mut app, socket) = start("20");
    let mut events = Connection::open(socket.local_addr().unwrap());
    events
        .send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    events.read_head().unwrap();
    while !events.read_line().unwrap().starts_with("data:") {}
    terminate(&app);

    let start = Instant::now();
    // The last chunk, which says that this is the end and not an accident.
    while events.read_line().unwrap() != "0" {}
    assert_eq!(events.read_line().unwrap(), "");
    events.is_closed();
    let (status, _) = app.ends();
    assert!(status.success());
    assert!(start.elapsed() < Duration::from_secs(2));
}

/// On the connection that it has, until it makes a new one.
#[test]
fn a_stream_that_comes_back_is_sent_away() {
    let (app, socket) = start("20");
    let mut connection = Connection::open(socket.local_addr().unwrap());
    connection.get("/");
    terminate(&app);

    connection
        .send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    assert!(connection.read_head().unwrap().closes());
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line| line != "0") {
        lines.push(connection.read_line().unwrap());
    }
    assert!(lines.contains(&"retry: 200".to_string()), "{lines:?}");
    assert!(!lines.concat().contains("version"), "{lines:?}");
}

#[test]
fn a_second_sigterm_changes_nothing_and_a_second_sigint_ends_it() {
    let (mut app, socket) = start("20");
    let mut open = Connection::open(socket.local_addr().unwrap());
    open.get("/healthz");
    app.signal("INT");
    eventually(|| app.log().contains("draining"));
    app.signal("TERM");
    app.signal("TERM");
    sleep(Duration::from_millis(200));
    assert!(app.is_running());

    app.signal("INT");
    let (_, took) = app.ends();
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn with_nobody_there_it_ends_at_once() {
    let (mut app, _socket) = start("20");
    app.signal("TERM");
    let (status, took) = app.ends();
    assert!(status.success());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn with_a_socket_of_its_own_it_ends_after_a_moment() {
    let address = address();
    let mut app = Instance::start(&mut command(INSTANCE, address));
    app.signal("TERM");
    let (status, took) = app.ends();
    assert!(status.success());
    // Connections that have begun are waited for, even if there is none.
    let took = took.as_secs_f32();
    assert!((0.4..3.0).contains(&took), "ended after {took} s");
    assert!(Connection::try_open(address).is_err());
}
