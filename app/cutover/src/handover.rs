//! Closing a port that the next instance listens on as well.
//!
//! With SO_REUSEPORT each process has a queue of its own. Closing it resets the connections
//! that wait in it or are in the middle of their handshake. It does not help to accept until
//! the queue is empty: as long as clients come there is always another one. So new
//! connections are sent to the other instance first.
//!
//! Lost requests, each on a new connection, on loopback (200 switches, 8,000 requests a
//! second) and over a round trip of 40 ms (50 switches, 1,200 requests a second):
//!
//! | the socket is closed                          | loopback | 40 ms |
//! |-----------------------------------------------|---------:|------:|
//! | at once                                       |      679 |  1223 |
//! | when its queue is empty                       |      243 |  1212 |
//! | at once, with `net.ipv4.tcp_migrate_req=1`    |        4 |     0 |
//! | as below                                      |        0 |     0 |
//!
//! The kernel's own remedy in the third row needs root to switch it on.
//!
//! Only one instance closes its port at a time. The next one begins to listen after that,
//! because a new socket changes which instance the kernel picks.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::{healthcheck, identity};

/// How long a connection may take from its first packet until it is accepted.
const HANDSHAKE: Duration = Duration::from_millis(500);

/// How long to wait for an older instance to close its port. One that is frozen never does.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// An index that no socket has: the kernel spreads connections as it likes.
const NO_SOCKET: u32 = u32::MAX;

/// The port that this process opened itself. systemd's is not here: the next instance
/// shares that very socket, so leaving it loses nothing.
static OWN_PORT: Mutex<Option<TcpListener>> = Mutex::new(None);

/// Returns when at most one instance listens on this address, or after a timeout. That one is
/// to be replaced; the ones before it have closed their port by then.
pub fn wait_for_closing(address: SocketAddr) {
    let begin = Instant::now();
    while listeners(address) > 1 && begin.elapsed() < CLOSING_TIMEOUT {
        thread::sleep(PAUSE);
    }
}

/// Counts the sockets that listen on this address.
fn listeners(address: SocketAddr) -> usize {
    let table = match address {
        SocketAddr::V4(_) => "/proc/net/tcp",
        SocketAddr::V6(_) => "/proc/net/tcp6",
    };
    File::open(table).map_or(0, |table| count_listeners(BufReader::new(table), address))
}

/// The kernel's table begins with the sockets that listen. The rest is not read: on a busy
/// server it is long, and may grow faster than it can be read.
fn count_listeners(table: impl BufRead, address: SocketAddr) -> usize {
    let local = format!(" {} ", in_table(address));
    let lines = table.lines().skip(1).map_while(Result::ok);
    lines
        .take_while(|line| line.contains(" 0A "))
        .filter(|line| line.contains(&local))
        .count()
}

/// An address as the kernel's table has it: in hex, by numbers of 32 bits in the byte order of
/// the processor.
fn in_table(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (numbers, _) = ip.as_chunks();
    let numbers = numbers.iter().map(|it| u32::from_ne_bytes(*it));
    let ip: String = numbers.map(|it| format!("{it:08X}")).collect();
    format!("{ip}:{:04X}", address.port())
}

/// For a socket that just began to listen. An instance that drained before may have left
/// its preference, which stays with the port.
pub fn register(listener: &TcpListener) -> std::io::Result<()> {
    steer(listener, NO_SOCKET);
    *OWN_PORT.lock().expect("no panic holds it") = Some(listener.try_clone()?);
    Ok(())
}

/// Returns when no new connection comes here any more. Until then, go on accepting.
pub async fn hand_over() {
    let own_port = OWN_PORT.lock().expect("no panic holds it").take();
    if let Some(listener) = own_port {
        steer_away(&listener).await;
        ignore_new(&listener);
        sleep(HANDSHAKE).await;
    }
}

/// Sends new connections to another instance, if there is one.
///
/// The kernel picks a socket by its index and tells nobody which index is whose, so this
/// tries one and asks who answers. The older instance, the one that normally drains, has
/// index 0 at first.
async fn steer_away(listener: &TcpListener) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    for index in [1, 0, 2] {
        steer(listener, index);
        let ask = move || healthcheck::ask(address, healthcheck::ATTEMPT_TIMEOUT);
        let answer = spawn_blocking(ask).await;
        if matches!(answer, Ok(Ok(other)) if Some(&*other) != identity::instance()) {
            return;
        }
    }
    steer(listener, NO_SOCKET);
}

/// New connections go to the socket with this index among those that share the port: the
/// program returns the index.
fn steer(listener: &TcpListener, index: u32) {
    attach(listener, Hook::SocketChoice, [(RETURN, 0, 0, index)]);
}

/// Drops the first packet of new connections that still come here, as on an old kernel. The
/// client sends it again a second later, when this socket is closed and another one takes it.
fn ignore_new(listener: &TcpListener) {
    const FLAGS: u32 = 13; // offset in a TCP header
    const SYN: u32 = 0x02;
    const DROP: u32 = 0;
    const KEEP: u32 = u32::MAX;

    let program = [
        (LOAD_BYTE, 0, 0, FLAGS),
        (IF_ANY_BIT, 0, 1, SYN), // skip none, or one
        (RETURN, 0, 0, DROP),
        (RETURN, 0, 0, KEEP),
    ];
    attach(listener, Hook::Packets, program);
}

enum Hook {
    SocketChoice,
    Packets,
}

/// An instruction of classic BPF, which needs no privilege: an opcode (linux/bpf_common.h),
/// how many to skip if true and if false, and an operand.
type Instruction = (u16, u8, u8, u32);

const RETURN: u16 = 0x06;
const LOAD_BYTE: u16 = 0x30;
const IF_ANY_BIT: u16 = 0x45;

/// Best effort: a failure only risks a few resets.
#[cfg(target_os = "linux")]
fn attach<const N: usize>(listener: &TcpListener, hook: Hook, program: [Instruction; N]) {
    use std::os::fd::AsRawFd;

    let option = match hook {
        Hook::SocketChoice => libc::SO_ATTACH_REUSEPORT_CBPF,
        Hook::Packets => libc::SO_ATTACH_FILTER,
    };
    let mut program = program.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let program = libc::sock_fprog {
        len: N as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel has copied the program when the call returns.
    #[allow(unsafe_code)]
    unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        );
    }
}

/// For `cargo run` elsewhere; servers are Linux.
#[cfg(not(target_os = "linux"))]
fn attach<const N: usize>(_listener: &TcpListener, _hook: Hook, _program: [Instruction; N]) {}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use super::*;

    /// The part of the kernel's table that must not be read.
    struct Connections;

    impl Read for Connections {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            panic!("the connections are read, too")
        }
    }

    #[test]
    fn the_listening_sockets_are_counted_and_no_connection_is_read() {
        let address = "127.0.0.1:3000".parse().unwrap();
        let line = |local: &str, state| format!("   0: {local} 00000000:0000 {state} 0 0\n");
        let table = [
            "  sl  local_address rem_address   st tx_queue\n".to_owned(),
            line(&in_table(address), "0A"),
            line("00000000:0016", "0A"),
            line(&in_table(address), "0A"),
            line(&in_table(address), "01"),
        ];
        let table = table.concat();
        let table = BufReader::new(table.as_bytes().chain(Connections));
        assert_eq!(count_listeners(table, address), 2);
    }

    #[test]
    fn a_listening_socket_of_its_own_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(listeners(listener.local_addr().unwrap()), 1);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn an_address_is_written_as_in_the_table() {
        for (address, text) in [
            ("127.0.0.1:3000", "0100007F:0BB8"),
            ("[::1]:80", "00000000000000000000000001000000:0050"),
        ] {
            assert_eq!(in_table(address.parse().unwrap()), text);
        }
    }
}
