//! Closing a socket of our own beside the next instance's.
//!
//! With SO_REUSEPORT each process has a queue of its own, and to close it
//! resets what waits in it or is in the middle of its handshake. Accepting
//! until the queue is empty is not enough: as long as new connections come
//! there is always something. So they are sent elsewhere first.
//!
//! Lost requests, each on a new connection, on loopback (200 switches, 8,000 a
//! second) and over a round trip of 40 ms (50 switches, 1,200 a second):
//!
//! | closes                                        | loopback | 40 ms |
//! |-----------------------------------------------|---------:|------:|
//! | at once                                       |      679 |  1223 |
//! | when its queue is empty                       |      243 |  1212 |
//! | at once, with `net.ipv4.tcp_migrate_req=1`    |        4 |     0 |
//! | like this                                     |        0 |     0 |
//!
//! (The kernel's own remedy in the third row is root's to set.)

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::healthcheck;

/// How long connections that have begun may take to arrive.
const ARRIVAL: Duration = Duration::from_millis(500);

/// An index that no socket has: the kernel spreads connections as it likes.
const NOWHERE: u32 = u32::MAX;

/// For a socket that just began to listen. Whoever drained last may have left
/// its preference, which stays with the port.
pub fn welcome_all(listener: &TcpListener) {
    steer(listener, NOWHERE);
}

/// Returns when no more connections come. Until then, go on accepting.
pub async fn hand_over(listener: &TcpListener, instance: &str) {
    steer_away(listener, instance).await;
    ignore_new(listener);
    sleep(ARRIVAL).await;
}

/// Sends new connections to another instance, if there is one.
///
/// The kernel picks a socket by its index and tells nobody which is whose, so
/// try one and ask who answers. At first the older instance, the one that
/// normally drains, has 0.
async fn steer_away(listener: &TcpListener, instance: &str) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    for other in [1, 0, 2] {
        steer(listener, other);
        let answer = spawn_blocking(move || healthcheck::ask(address)).await;
        if matches!(answer, Ok(Ok(name)) if name != instance) {
            return;
        }
    }
    steer(listener, NOWHERE);
}

/// New connections go to the socket with this index among those that share the
/// port: the program returns it.
fn steer(listener: &TcpListener, index: u32) {
    attach(listener, Hook::ChoiceOfSocket, [(RETURN, 0, 0, index)]);
}

/// New connections that are not steered away (on an old kernel, or when three
/// instances come and go at once and the indices change) are not answered
/// either: the client asks again a second later, when this socket is closed.
fn ignore_new(listener: &TcpListener) {
    const FLAGS: u32 = 13; // where they are in a TCP header
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
    ChoiceOfSocket,
    Packets,
}

/// Of classic BPF, which needs no privilege: an opcode (linux/bpf_common.h),
/// how many to skip if true and if false, and an operand.
type Instruction = (u16, u8, u8, u32);

const RETURN: u16 = 0x06;
const LOAD_BYTE: u16 = 0x30;
const IF_ANY_BIT: u16 = 0x45;

/// That it can fail is no reason not to go on: what it prevents is rare.
#[cfg(target_os = "linux")]
fn attach<const N: usize>(listener: &TcpListener, hook: Hook, program: [Instruction; N]) {
    use std::os::fd::AsRawFd;

    let option = match hook {
        Hook::ChoiceOfSocket => libc::SO_ATTACH_REUSEPORT_CBPF,
        Hook::Packets => libc::SO_ATTACH_FILTER,
    };
    let mut program = program.map(|(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k });
    let program = libc::sock_fprog {
        len: N as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel has copied the program when the call returns.
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
