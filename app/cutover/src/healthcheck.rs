//! `APP healthcheck`: does the instance that this binary was called as serve?
//!
//! Several instances may share the port, and the kernel picks one of them for each
//! connection, so it takes a few connections to meet a certain one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::identity::instance;
use crate::respond::INSTANCE_HEADER;
use crate::settings::settings;

/// With two instances, the chance to miss one of them is 2^-64.
const ATTEMPTS: u32 = 64;
const PAUSE: Duration = Duration::from_millis(10);
pub const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(300);
const TOTAL_TIMEOUT: Duration = Duration::from_millis(1500);
const MAX_HEAD_BYTES: u64 = 64 * 1024;

pub fn run() -> io::Result<()> {
    let instance = instance().ok_or_else(|| {
        io::Error::other("not started through an instance's link: there is nothing to check")
    })?;
    let address = settings()?.listen;
    find(instance, address)
        .map_err(|reason| io::Error::other(format!("no answer on {address}: {reason}")))
}

fn find(instance: &str, address: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    let mut last = io::Error::other("not tried");
    for _ in 0..ATTEMPTS {
        let elapsed = started.elapsed();
        if elapsed >= TOTAL_TIMEOUT {
            break;
        }
        // A short attempt gets away from another instance that is stuck, a long one waits for
        // a slow answer.
        let timeout = elapsed.max(ATTEMPT_TIMEOUT).min(TOTAL_TIMEOUT - elapsed);
        last = match ask(address, timeout) {
            Ok(answering) if answering == instance => return Ok(()),
            // xtask/server/nohup.sh knows these words.
            Ok(other) => io::Error::other(format!("only other instances answer, such as {other}")),
            Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(refused);
            }
            Err(error) => error,
        };
        sleep(PAUSE);
    }
    Err(last)
}

/// Returns the instance that answers with 200. The kernel takes 0.0.0.0 and [::] for this
/// machine.
pub fn ask(address: SocketAddr, timeout: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(
        format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let head = read_head(&stream)?;
    let (status, headers) = head.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("the answer is `{status}`")));
    }
    let instance = headers.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(INSTANCE_HEADER)
            .then(|| value.trim().to_owned())
    });
    instance.ok_or_else(|| io::Error::other("the answer names no instance"))
}

/// The body is the user's, so it is not even read.
fn read_head(stream: &TcpStream) -> io::Result<Vec<String>> {
    let lines = BufReader::new(stream.take(MAX_HEAD_BYTES)).lines();
    lines
        .take_while(|line| !matches!(line, Ok(line) if line.is_empty()))
        .collect()
}
