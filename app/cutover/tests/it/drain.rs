//! SIGTERM: no client loses an answer, and the process ends in time.

use std::net::TcpListener;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::examples::{command, command_with_socket};
use crate::support::{Connection, Instance, address, eventually, nth};

/// With a socket that systemd keeps, and a deadline in seconds. Silent connections are closed
/// after half of that.
fn start(deadline: &str) -> (Instance, TcpListener) {
    let socket = TcpListener::bind(address()).unwrap();
    let mut command = command_with_socket(&nth(1), &socket);
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
    // The last one: when it is answered, all three are accepted.
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

    // No connection is left, so the process ends long before its deadline.
    let (status, took) = app.ends();
    assert!(status.success());
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(app.log().contains("drained\n"), "{}", app.log());
}

#[test]
fn new_connections_wait_for_the_next_instance() {
    let (app, socket) = start("20");
    let address = socket.local_addr().unwrap();
    let mut open = Connection::open(address);
    open.get("/healthz");
    terminate(&app);
    sleep(Duration::from_millis(300)); // then it has stopped accepting

    let mut waiting = Connection::open(address);
    waiting
        .send("GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    sleep(Duration::from_millis(100));
    let _next = Instance::start(&mut command_with_socket(&nth(2), &socket));
    assert_eq!(waiting.read_head().unwrap().instance(), nth(2));

    // The first one still answers on the connections that it has.
    assert_eq!(open.get("/").instance(), nth(1));
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
fn half_a_request_ends_at_the_deadline() {
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
        app.log().contains("deadline passed") && app.log().contains("cut off: 1 open"),
        "{}",
        app.log()
    );
}

#[test]
fn event_streams_end_and_then_the_process() {
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

/// A browser may reconnect on another connection that it still has.
#[test]
fn an_event_stream_that_begins_during_a_drain_ends_at_once() {
    let (app, socket) = start("20");
    let mut connection = Connection::open(socket.local_addr().unwrap());
    connection.get("/");
    terminate(&app);

    connection
        .send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    assert!(connection.read_head().unwrap().closes());
    assert_eq!(connection.read_line().unwrap(), "0");
    assert_eq!(connection.read_line().unwrap(), "");
    connection.is_closed();
}

/// So that a load balancer that hears late of the end still finds the process.
#[test]
fn it_lingers_before_it_drains() {
    let address = address();
    let mut app = Instance::start(command(&nth(1), address).env("LINGER_SECONDS", "1"));
    app.signal("TERM");
    sleep(Duration::from_millis(500));
    let mut new = Connection::open(address);
    assert!(!new.get("/").closes());
    assert!(!app.log().contains("draining"), "{}", app.log());

    eventually(|| app.log().contains("draining"));
    assert!(new.get("/").closes());
    assert!(app.ends().0.success());
}

#[test]
fn a_second_sigterm_changes_nothing_and_a_second_sigint_ends_the_process() {
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
fn without_connections_it_ends_at_once() {
    let (mut app, _socket) = start("20");
    app.signal("TERM");
    let (status, took) = app.ends();
    assert!(status.success());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn on_a_port_of_its_own_it_ends_after_the_handover() {
    let address = address();
    let mut app = Instance::start(&mut command(&nth(1), address));
    app.signal("TERM");
    let (status, took) = app.ends();
    assert!(status.success());
    // It waits for handshakes that have begun, even if there is none.
    let took = took.as_secs_f32();
    assert!((0.4..3.0).contains(&took), "ended after {took} s");
    assert!(Connection::try_open(address).is_err());
}
