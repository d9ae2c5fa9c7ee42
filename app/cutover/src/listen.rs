//! The listening socket: systemd's, or one of our own beside that of the instance that is
//! being replaced.

use std::env;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixListener;

use socket2::{Domain, SockRef, Type};

use crate::settings::settings;
use crate::{handover, harden};

/// How many connections may wait to be accepted, if the kernel's `net.core.somaxconn`
/// permits it.
const BACKLOG: i32 = 4096;

/// A socket that takes no connection yet, see [`socket`].
pub struct Socket {
    socket: socket2::Socket,
    owner: Owner,
}

enum Owner {
    Systemd,
    Process,
}

/// A socket that takes connections. It does not block, as async runtimes want it.
#[derive(Debug)]
pub enum Listener {
    /// Clients connect to it, over the network.
    Tcp(TcpListener),
    /// Only a proxy on this machine may connect to it.
    Unix(UnixListener),
}

/// Takes the socket that systemd passes, or binds `LISTEN`. Call it once, early: a wrong
/// address is then an error before anything else is done.
pub fn socket() -> io::Result<Socket> {
    harden::forbid_memory_access()?;
    let address = settings()?.listen;
    match passed().map_err(|e| context("cannot use the socket that systemd passes", &e))? {
        Some(socket) => Ok(Socket {
            socket,
            owner: Owner::Systemd,
        }),
        // Nobody would find the app at the default address.
        None if is_set("NOTIFY_SOCKET") && !is_set("LISTEN") => Err(io::Error::other(
            "systemd passes no socket, and `LISTEN` is not set",
        )),
        None => Ok(Socket {
            socket: bound(address).map_err(|e| cannot_listen(address, &e))?,
            owner: Owner::Process,
        }),
    }
}

fn is_set(name: &str) -> bool {
    env::var_os(name).is_some()
}

fn passed() -> io::Result<Option<socket2::Socket>> {
    let Some(fd) = sd_notify::listen_fds()?.next() else {
        return Ok(None);
    };
    let socket = take(fd);
    socket.set_nonblocking(true)?;
    Ok(Some(socket))
}

#[allow(unsafe_code)]
fn take(fd: RawFd) -> socket2::Socket {
    // SAFETY: systemd says that the descriptor is ours, and nothing else takes it.
    unsafe { socket2::Socket::from_raw_fd(fd) }
}

/// SO_REUSEPORT lets two instances listen on one port; the kernel picks one for each
/// connection.
fn bound(address: SocketAddr) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

impl Socket {
    /// Begins to take connections. Call it when the app can answer: on a port that two
    /// instances share, clients come from here on.
    pub fn listen(self) -> io::Result<Listener> {
        match self.owner {
            Owner::Systemd => self.listen_on_passed(),
            Owner::Process => self.listen_on_own(),
        }
    }

    fn listen_on_passed(self) -> io::Result<Listener> {
        let address = self.socket.local_addr()?;
        if address.is_unix() {
            Ok(Listener::Unix(self.socket.into()))
        } else if address.as_socket().is_some() {
            if !is_listening(&self.socket) {
                listen_again(&self.socket)?;
            }
            Ok(Listener::Tcp(self.socket.into()))
        } else {
            Err(io::Error::other(
                "the socket that systemd passes is neither TCP nor unix",
            ))
        }
    }

    fn listen_on_own(self) -> io::Result<Listener> {
        let address = settings()?.listen;
        handover::wait_for_closing(address);
        self.socket
            .listen(BACKLOG)
            .map_err(|e| cannot_listen(address, &e))?;
        let listener = TcpListener::from(self.socket);
        handover::register(&listener)?;
        Ok(Listener::Tcp(listener))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address}"),
                Err(error) => write!(f, "{error}"),
            },
            Listener::Unix(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{address:?}"),
                Err(error) => write!(f, "{error}"),
            },
        }
    }
}

impl Listener {
    /// Every process that holds the shared socket can shut it down for all of them. Linux lets
    /// a TCP socket listen again after that, but not a unix socket.
    pub(crate) fn revive(&self) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listen_again(&SockRef::from(listener)),
            Listener::Unix(_) => Err(io::Error::other(
                "another process shut the unix socket down, which is for good",
            )),
        }
    }
}

fn listen_again(socket: &socket2::Socket) -> io::Result<()> {
    tracing::error!("another process shut the socket down: listening again");
    socket.listen(BACKLOG)
}

#[cfg(target_os = "linux")]
fn is_listening(socket: &socket2::Socket) -> bool {
    socket.is_listener().unwrap_or(true)
}

/// For `cargo run` elsewhere; servers are Linux.
#[cfg(not(target_os = "linux"))]
fn is_listening(_: &socket2::Socket) -> bool {
    true
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> io::Error {
    let message =
        format!("cannot listen on {address}: {error}\nhint: set `LISTEN` to another address");
    io::Error::new(error.kind(), message)
}

fn context(message: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{message}: {error}"))
}
