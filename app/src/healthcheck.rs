//! `app healthcheck`: does the instance of this name serve?
//!
//! Several instances may share the port, and for each connection the kernel
//! picks one of them, so it takes a few connections to meet a certain one.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// With two instances, the chance to miss one of them so often is 2^-64.
const TRIES: u32 = 64;
const PAUSE: Duration = Duration::from_millis(10);
const EACH: Duration = Duration::from_millis(300);
const TOTAL: Duration = Duration::from_millis(1500);

pub fn run(instance: &str, listen: SocketAddr) -> Result<(), String> {
    let started = Instant::now();
    let mut reason = String::new();

    for _ in 0..TRIES {
        match ask(listen) {
            Ok(answer) if answer == instance => return Ok(()),
            Ok(other) => reason = format!("only other instances answer, such as {other}"),
            // Nobody listens, and asking again will not change it.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                reason = e.to_string();
                break;
            }
            Err(e) => reason = e.to_string(),
        }
        if started.elapsed() > TOTAL {
            break;
        }
        sleep(PAUSE);
    }
    Err(format!("it does not answer on {listen}: {reason}"))
}

/// The name of the instance that answers. 0.0.0.0 and [::] can be asked too:
/// the kernel takes them for this machine.
pub fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, EACH)?;
    stream.set_read_timeout(Some(EACH))?;
    stream.set_write_timeout(Some(EACH))?;
    stream.write_all(
        format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;

    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match body.trim_end().strip_prefix("ok ") {
        Some(instance) if status.starts_with("HTTP/1.1 200 ") => Ok(instance.to_string()),
        _ => Err(io::Error::other(format!("it answered `{status}`"))),
    }
}
