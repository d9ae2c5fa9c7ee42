//! `APP healthcheck`: it succeeds only if this very instance answers.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::examples::{AXUM, command};
use crate::support::{self, Instance, NEW, OLD, address, outcome};

fn healthcheck(instance: &str, listen: SocketAddr) -> (Option<i32>, String) {
    outcome(command(instance, listen).arg("healthcheck"))
}

#[test]
fn it_finds_each_of_two_instances_and_no_other() {
    let address = address();
    let (old, new) = (format!("{OLD}.1"), format!("{NEW}.1"));

    let _old = Instance::start(&mut command(&old, address));
    assert_eq!(healthcheck(&old, address), (Some(0), String::new()));

    // Another version, and another instance of the same version:
    for other in [&new, &format!("{OLD}.2")] {
        let (code, reason) = healthcheck(other, address);
        assert_eq!(code, Some(1));
        assert!(
            reason.contains(&format!("only other instances answer, such as {old}")),
            "{reason}"
        );
    }

    let _new = Instance::start(&mut command(&new, address));
    for instance in [&old, &new] {
        assert_eq!(healthcheck(instance, address), (Some(0), String::new()));
    }
}

#[test]
fn an_unspecified_address_means_this_machine() {
    for any in ["0.0.0.0:0", "[::]:0"] {
        let free = TcpListener::bind(any).unwrap().local_addr().unwrap();
        let _app = Instance::start(&mut command(&format!("{NEW}.1"), free));
        assert_eq!(
            healthcheck(&format!("{NEW}.1"), free),
            (Some(0), String::new())
        );
    }
}

#[test]
fn a_closed_port_is_a_failure() {
    let (code, reason) = healthcheck(&format!("{NEW}.1"), address());
    assert_eq!(code, Some(1));
    assert!(reason.contains("Connection refused"), "{reason}");
    assert_eq!(reason.lines().count(), 1, "{reason}");
}

#[test]
fn an_answer_that_is_not_200_is_a_failure() {
    let reason = reason_after(&format!(
        "HTTP/1.1 500 Internal Server Error\r\ncutover-instance: {NEW}.1\r\n\r\n"
    ));
    assert!(reason.contains("500 Internal Server Error"), "{reason}");
}

/// Otherwise a version that never listens would go live on the answer of the old one.
#[test]
fn an_answer_that_names_no_instance_is_a_failure() {
    let reason = reason_after(&format!("HTTP/1.1 200 OK\r\n\r\nok {NEW}.1\n"));
    assert!(reason.contains("names no instance"), "{reason}");
}

#[test]
fn any_name_and_any_body_will_do() {
    for service in ["pastebin", "app-staging"] {
        let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join(service);
        let _ = fs::remove_file(&binary);
        symlink(&*AXUM, &binary).unwrap();
        let address = address();
        let mut command = support::command(&binary, &format!("{NEW}.1"), address);
        let _app = Instance::start(&mut command);
        let mut command = support::command(&binary, &format!("{NEW}.1"), address);
        assert_eq!(
            outcome(command.arg("healthcheck")),
            (Some(0), String::new())
        );
    }
}

#[test]
fn a_process_that_was_not_deployed_has_no_instance_to_check() {
    let (code, reason) = outcome(Command::new(&*AXUM).arg("healthcheck"));
    assert_eq!(code, Some(1));
    assert!(
        reason.contains("not started through an instance's link"),
        "{reason}"
    );
}

/// The reason that it gives after this answer.
fn reason_after(answer: &str) -> String {
    let address = address();
    let server = TcpListener::bind(address).unwrap();
    let answer = answer.to_owned();
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let (code, reason) = healthcheck(&format!("{NEW}.1"), address);
    assert_eq!(code, Some(1));
    reason
}

#[test]
fn silence_is_a_failure_in_bounded_time() {
    let address = address();
    let _silent = TcpListener::bind(address).unwrap();
    let start = std::time::Instant::now();
    let (code, reason) = healthcheck(&format!("{NEW}.1"), address);
    assert_eq!(code, Some(1), "{reason}");
    assert!(start.elapsed().as_secs_f32() < 4.0, "{:?}", start.elapsed());
}

#[test]
fn a_slow_answer_is_waited_for() {
    let address = address();
    let server = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 1024]);
                thread::sleep(std::time::Duration::from_millis(500));
                let answer = format!("HTTP/1.1 200 OK\r\ncutover-instance: {NEW}.1\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes());
            });
        }
    });
    let outcome = healthcheck(&format!("{NEW}.1"), address);
    assert_eq!(outcome, (Some(0), String::new()));
}
