//! WebSockets: they work, and a handler can say goodbye when the process drains.

use std::net::TcpListener;
use std::time::Duration;

use crate::examples::{command, command_with_socket};
use crate::support::{Connection, Instance, address, eventually, nth};

/// See RFC 6455, section 5.2.
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

/// "Service restart", RFC 6455's registry of close codes.
const RESTART: u16 = 1012;

#[test]
fn a_websocket_is_closed_with_a_close_frame() {
    let listener = TcpListener::bind(address()).unwrap();
    let mut app = Instance::start(&mut command_with_socket(&nth(1), &listener));
    let mut socket = Connection::open(listener.local_addr().unwrap());
    handshake(&mut socket);
    echo(&mut socket);

    app.signal("TERM");
    eventually(|| app.log().contains("draining: 1 open"));
    let [kind, length, code @ ..] = socket.read_bytes::<4>().unwrap();
    assert_eq!(
        (kind, length, u16::from_be_bytes(code)),
        (CLOSE, 2, RESTART)
    );
    socket.is_closed();
    let (status, took) = app.ends();
    assert!(
        status.success() && took < Duration::from_secs(4),
        "{status} {took:?}"
    );
    assert!(app.log().contains("drained"), "{}", app.log());
}

/// The handshake's answer must not say `Connection: close`.
#[test]
fn a_websocket_can_be_opened_on_a_connection_of_a_draining_instance() {
    let address = address();
    let app = Instance::start(&mut command(&nth(1), address));
    let mut connection = Connection::open(address);
    connection.get("/");
    app.signal("TERM");
    eventually(|| app.log().contains("draining"));
    handshake(&mut connection);
    assert_eq!(connection.read_bytes::<1>().unwrap(), [CLOSE]);
}

fn handshake(connection: &mut Connection) {
    connection
        .send(
            "GET /socket HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        )
        .unwrap();
    let answer = connection.read_head().unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("connection"), Some("upgrade"));
}

/// A client masks what it sends, here with zeros.
fn echo(socket: &mut Connection) {
    socket
        .send([TEXT, 0x80 | 2, 0, 0, 0, 0, b'h', b'i'])
        .unwrap();
    assert_eq!(socket.read_bytes().unwrap(), [TEXT, 2, b'h', b'i']);
}
