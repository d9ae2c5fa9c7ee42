//! The client's address and scheme, and attempts to forge them.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::examples::{command, command_with_socket};
use crate::support::{Instance, address, nth, request};

const FORGED: &str = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n\
    X-Forwarded-Host: example.com\r\nX-Real-IP: 192.0.2.2\r\nForwarded: for=192.0.2.3\r\n";

#[test]
fn a_tcp_client_cannot_forge_its_address() {
    let address = address();
    let _app = Instance::start(&mut command(&nth(1), address));
    let answer = request(address, "GET", "/client", FORGED);
    assert_eq!(answer.body, "127.0.0.1 http host\n");
}

#[test]
fn the_proxy_tells_the_address_and_the_scheme() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = UnixListener::bind(&path).unwrap();
    let mut app = Instance::start(&mut command_with_socket(&nth(1), &socket));

    let body = ask(&path, FORGED);
    let believed = "x-forwarded-for x-forwarded-proto x-forwarded-host";
    assert_eq!(
        body,
        format!("192.0.2.1 https host connection {believed}\n")
    );
    assert_eq!(ask(&path, ""), "127.0.0.1 http host connection\n");

    app.signal("TERM");
    assert!(app.ends().0.success());
    std::fs::remove_file(path).unwrap();
}

fn ask(socket: &Path, headers: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let head = "GET /client HTTP/1.1\r\nHost: test\r\nConnection: close\r\n";
    stream
        .write_all(format!("{head}{headers}\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}
