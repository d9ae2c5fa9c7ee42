//! The listening socket: systemd's, or our own beside the one of the instance
//! that is being replaced.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::FromRawFd;

use tokio::net::{TcpListener, TcpSocket};

use crate::handover;

/// As many connections may wait to be accepted (the kernel's own limit,
/// `net.core.somaxconn`, permitting).
const BACKLOG: u32 = 1024;

/// Bound, so that a wrong address is an error at once; but it takes no
/// connection before [`Socket::listen`].
pub enum Socket {
    Passed(StdListener),
    Own(TcpSocket, SocketAddr),
}

/// Whose queue it is that connections wait in.
pub enum Listener {
    /// systemd's, which the next instance shares: to leave it loses nothing.
    Passed(TcpListener),
    /// This process's own. To close it resets what waits in it. The instance is
    /// there to recognise our own answers.
    Own(TcpListener, &'static str),
}

pub fn passed_or_bound(address: SocketAddr) -> Result<Socket, String> {
    match passed().map_err(|e| format!("cannot use the socket that systemd passes: {e}"))? {
        Some(listener) => Ok(Socket::Passed(listener)),
        // Nobody would find it at the default.
        None if is_set("NOTIFY_SOCKET") && !is_set("LISTEN") => {
            Err("systemd passes no socket, and there is no `LISTEN`".to_owned())
        }
        None => bound(address)
            .map(|socket| Socket::Own(socket, address))
            .map_err(|e| cannot_listen(address, &e)),
    }
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

fn passed() -> io::Result<Option<StdListener>> {
    let Some(fd) = sd_notify::listen_fds()?.next() else {
        return Ok(None);
    };
    // SAFETY: systemd says that the descriptor is ours, and this is the only
    // place that takes it.
    let listener = unsafe { StdListener::from_raw_fd(fd) };
    listener.local_addr()?; // an error if it is no such socket
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

/// SO_REUSEPORT is what lets two instances listen on one port; the kernel
/// picks one for each connection.
fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

impl Socket {
    pub fn listen(self, instance: &'static str) -> Result<Listener, String> {
        match self {
            Socket::Passed(listener) => TcpListener::from_std(listener)
                .map(Listener::Passed)
                .map_err(|e| format!("cannot use the socket that systemd passes: {e}")),
            Socket::Own(socket, address) => {
                let listener = socket
                    .listen(BACKLOG)
                    .map_err(|e| cannot_listen(address, &e))?;
                handover::welcome_all(&listener);
                Ok(Listener::Own(listener, instance))
            }
        }
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    format!("cannot listen on {address}: {error}; `LISTEN` sets another address")
}

impl Listener {
    pub fn tcp(&self) -> &TcpListener {
        match self {
            Listener::Passed(listener) | Listener::Own(listener, _) => listener,
        }
    }

    pub fn address(&self) -> String {
        match self.tcp().local_addr() {
            Ok(address) => address.to_string(),
            Err(e) => e.to_string(),
        }
    }

    /// Returns when it can be closed. Until then, go on accepting.
    pub async fn hand_over(&self) {
        if let Listener::Own(listener, instance) = self {
            handover::hand_over(listener, instance).await;
        }
    }
}
