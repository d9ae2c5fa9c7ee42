//! `app healthcheck`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use crate::support::{Instance, NEW, OLD, address, command, outcome};

fn healthcheck(instance: &str, listen: SocketAddr) -> (Option<i32>, String) {
    outcome(command(instance, listen).arg("healthcheck"))
}

#[test]
fn each_instance_is_told_from_the_others() {
    let address = address();
    let (old, new) = (format!("{OLD}.1"), format!("{NEW}.1"));

    let _old = Instance::start(&mut command(&old, address));
    assert_eq!(healthcheck(&old, address), (Some(0), String::new()));

    // The other version, and the same version once more:
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
fn an_unspecified_address_is_asked_on_this_machine() {
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
fn nobody_there_is_a_failure() {
    let (code, reason) = healthcheck(&format!("{NEW}.1"), address());
    assert_eq!(code, Some(1));
    assert!(reason.contains("Connection refused"), "{reason}");
    assert_eq!(reason.lines().count(), 1, "{reason}");
}

#[test]
fn an_error_is_a_failure() {
    let address = address();
    let server = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let body = format!("ok {NEW}.1\n");
            let answer = format!("HTTP/1.1 500 Internal Server Error\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let (code, reason) = healthcheck(&format!("{NEW}.1"), address);
    assert_eq!(code, Some(1));
    assert!(reason.contains("500 Internal Server Error"), "{reason}");
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
