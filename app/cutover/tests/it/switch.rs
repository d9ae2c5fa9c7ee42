//! One instance takes over from another while clients keep sending requests.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::examples::{HYPER, command, command_with_socket};
use crate::support::{self, Connection, Instance, address, eventually, get, nth};

const SWITCHES: usize = 5;

#[test]
fn on_one_socket_no_request_is_lost() {
    let socket = TcpListener::bind(address()).unwrap();
    let command = |instance: &str| command_with_socket(instance, &socket);
    let switched = switch_under_load(socket.local_addr().unwrap(), command, |_| ());
    assert_eq!(switched.unwrap().len(), 1 + SWITCHES);
}

#[test]
fn on_one_port_no_request_is_lost() {
    let address = address();
    let command = |instance: &str| command(instance, address);
    let switched = switch_under_load(address, command, |old| {
        old.ends();
    });
    assert_eq!(switched.unwrap().len(), 1 + SWITCHES);
}

#[test]
fn without_axum_no_request_is_lost_either() {
    let address = address();
    let command = |instance: &str| support::command(&HYPER, instance, address);
    let switched = switch_under_load(address, command, |old| {
        old.ends();
    });
    assert_eq!(switched.unwrap().len(), 1 + SWITCHES);
}

#[test]
fn without_axum_no_request_is_lost_on_one_socket() {
    let socket = TcpListener::bind(address()).unwrap();
    let command = |instance: &str| support::command_with_socket(&HYPER, instance, &socket);
    let switched = switch_under_load(socket.local_addr().unwrap(), command, |_| ());
    assert_eq!(switched.unwrap().len(), 1 + SWITCHES);
}

/// Faster than anybody deploys: each instance starts while the one before the last drains.
#[test]
fn on_one_port_no_request_is_lost_when_drains_overlap() {
    let address = address();
    let command = |instance: &str| command(instance, address);
    switch_under_load(address, command, |_| ()).unwrap();
}

/// Returns the instances that answered, or the error of the first lost request.
fn switch_under_load(
    address: SocketAddr,
    command: impl Fn(&str) -> Command,
    after_sigterm: impl Fn(&mut Instance),
) -> io::Result<BTreeSet<String>> {
    let mut live = Instance::start(&mut command(&nth(0)));
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        let ask = |headers| keep_asking(address, &done, headers);
        let clients = ["Connection: close\r\n", "Connection: close\r\n", "", ""]
            .map(|headers| scope.spawn(move || ask(headers)));

        let stop_clients = SetOnDrop(&done); // also on panic, or they would go on for ever

        let mut old = Vec::new();
        for n in 1..=SWITCHES {
            let next = Instance::start(&mut command(&nth(n)));
            sleep(Duration::from_millis(100));
            live.signal("TERM");
            after_sigterm(&mut live);
            old.push(std::mem::replace(&mut live, next));
        }
        for instance in &mut old {
            instance.ends();
        }
        sleep(Duration::from_millis(100));
        drop(stop_clients);

        let mut seen = BTreeSet::new();
        for client in clients {
            seen.extend(client.join().unwrap()?);
        }
        Ok(seen)
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Like any client, makes a new connection after an answer with `Connection: close`.
fn keep_asking(
    address: SocketAddr,
    done: &AtomicBool,
    headers: &str,
) -> io::Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    let mut connection = Connection::try_open(address)?;
    while !done.load(Ordering::Relaxed) {
        let answer = connection.request("GET", "/healthz", headers)?;
        assert_eq!(answer.status, 200);
        seen.insert(answer.instance().to_owned());
        if answer.closes() || !headers.is_empty() {
            connection = Connection::try_open(address)?;
        }
    }
    Ok(seen)
}

/// Whichever of the two drains, new connections reach the other one, before the port of the
/// one that drains is closed. On a busy machine it may be closed before this has looked, so
/// there are several tries.
#[test]
fn an_instance_that_drains_steers_new_connections_away() {
    for drains_older in [true, false] {
        assert!((0..20).any(|_| steers_away(drains_older)));
    }
}

fn steers_away(drains_older: bool) -> bool {
    let address = address();
    let (old, new) = (nth(1), nth(2));
    let older = Instance::start(&mut command(&old, address));
    let newer = Instance::start(&mut command(&new, address));
    eventually(|| answering(address) == BTreeSet::from([old.clone(), new.clone()]));

    let (drains, stays) = if drains_older {
        (&older, &new)
    } else {
        (&newer, &old)
    };
    drains.signal("TERM");
    eventually(|| answering(address) == BTreeSet::from([stays.clone()]));
    let was_open = !drains.log().contains("drained");

    // That preference must not affect the instance that comes next.
    eventually(|| drains.log().contains("drained"));
    let third = nth(3);
    let _third = Instance::start(&mut command(&third, address));
    assert_eq!(answering(address), BTreeSet::from([stays.clone(), third]));
    was_open
}

/// A newcomer resets the preference, so it waits until the draining instance has closed its
/// port.
#[test]
fn a_newcomer_sends_no_client_to_an_instance_that_drains() {
    let address = address();
    let drains = Instance::start(&mut command(&nth(1), address));
    let _stays = Instance::start(&mut command(&nth(2), address));
    drains.signal("TERM");
    eventually(|| answering(address) == BTreeSet::from([nth(2)]));
    let _newcomer = Instance::start(&mut command(&nth(3), address));
    assert!(!answering(address).contains(&nth(1)));
}

/// The instances that answer if asked often enough to meet them all: with two of them, the
/// chance to miss one is 2^-39.
fn answering(address: SocketAddr) -> BTreeSet<String> {
    let ask = |_| {
        let start = Instant::now();
        let answer = get(address, "/healthz");
        let took = start.elapsed();
        assert!(
            took < Duration::from_millis(900),
            "the kernel had to try again"
        );
        answer.instance().to_owned()
    };
    (0..40).map(ask).collect()
}
