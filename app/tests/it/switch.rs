//! One instance takes over from another while clients keep asking.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::support::{
    Connection, Instance, NEW, OLD, address, command, command_with_socket, eventually, get,
};

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

/// Faster than anybody deploys: the next one drains while the last one does.
#[test]
fn on_one_port_no_request_is_lost_in_a_hurry() {
    let address = address();
    let command = |instance: &str| command(instance, address);
    switch_under_load(address, command, |_| ()).unwrap();
}

/// The instances that answered, or what happened to the first lost request.
fn switch_under_load(
    address: SocketAddr,
    command: impl Fn(&str) -> Command,
    after_sigterm: impl Fn(&mut Instance),
) -> io::Result<BTreeSet<String>> {
    let mut live = Instance::start(&mut command("0.1"));
    let done = AtomicBool::new(false);

    thread::scope(|scope| {
        let ask = |headers| keep_asking(address, &done, headers);
        let clients = ["Connection: close\r\n", "Connection: close\r\n", "", ""]
            .map(|headers| scope.spawn(move || ask(headers)));

        let until_here = SetOnDrop(&done); // also on panic, or nobody would stop

        let mut old = Vec::new();
        for n in 1..=SWITCHES {
            let next = Instance::start(&mut command(&format!("{n}.1")));
            sleep(Duration::from_millis(100));
            live.signal("TERM");
            after_sigterm(&mut live);
            old.push(std::mem::replace(&mut live, next));
        }
        for instance in &mut old {
            instance.ends();
        }
        sleep(Duration::from_millis(100));
        drop(until_here);

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

/// Like any client it makes a new connection after an answer that closes one.
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
        let instance = answer.body.trim_end().strip_prefix("ok ");
        seen.insert(instance.expect("its name").to_string());
        if answer.closes() || !headers.is_empty() {
            connection = Connection::try_open(address)?;
        }
    }
    Ok(seen)
}

/// Whichever of the two drains, the one that stays gets what is new from then
/// on, long before the other closes its socket.
#[test]
fn whoever_drains_steers_new_connections_away() {
    for drains_older in [true, false] {
        let address = address();
        let (old, new) = (format!("{OLD}.1"), format!("{NEW}.1"));
        let older = Instance::start(&mut command(&old, address));
        let newer = Instance::start(&mut command(&new, address));
        eventually(|| answering(address) == BTreeSet::from([old.clone(), new.clone()]));

        let (drains, stays) = if drains_older {
            (&older, &new)
        } else {
            (&newer, &old)
        };
        drains.signal("TERM");
        eventually(|| drains.log().contains("draining"));
        sleep(Duration::from_millis(150));
        assert_eq!(answering(address), BTreeSet::from([stays.clone()]));

        // Which must not be held against whoever comes next.
        eventually(|| drains.log().contains("drained"));
        let third = format!("{NEW}.2");
        let _third = Instance::start(&mut command(&third, address));
        assert_eq!(answering(address), BTreeSet::from([stays.clone(), third]));
    }
}

/// It makes itself known to the kernel, which forgets whom the other steered
/// to. Then those who are sent to the draining one are not answered, ask again
/// and find the others.
#[test]
fn a_newcomer_is_no_trouble_to_one_that_drains() {
    let address = address();
    let drains = Instance::start(&mut command("1.1", address));
    let _stays = Instance::start(&mut command("2.1", address));
    drains.signal("TERM");
    eventually(|| drains.log().contains("draining"));
    sleep(Duration::from_millis(100));
    let _newcomer = Instance::start(&mut command("3.1", address));
    for _ in 0..20 {
        assert_ne!(get(address, "/healthz").body, "ok 1.1\n");
    }
}

/// Who answers if asked often enough to hear everybody: with two of them, the
/// chance to miss one is 2^-39.
fn answering(address: SocketAddr) -> BTreeSet<String> {
    let ask = |_| {
        let start = Instant::now();
        let answer = get(address, "/healthz").body;
        let took = start.elapsed();
        assert!(
            took < Duration::from_millis(900),
            "the kernel had to ask again"
        );
        answer.trim_end().replace("ok ", "")
    };
    (0..40).map(ask).collect()
}
