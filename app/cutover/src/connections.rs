//! Accepting connections and answering on them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::drain::{self, Phase};
use crate::listen::Listener;
use crate::respond::respond;

/// How long a connection may take to send a request's head, the idle time before it
/// included. Proxies keep idle connections for a minute, so it is they who close them:
/// a request is lost if the server closes the connection that it was just sent on.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(75);

/// How long to wait after an error such as having no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Where a connection comes from.
#[derive(Clone, Copy)]
pub enum Peer {
    /// A client, over TCP.
    Client(SocketAddr),
    /// The proxy on this machine, over a unix socket that nobody else may open.
    Proxy,
}

/// The connections of this process.
///
/// Nothing is ever sent on these channels. Each open connection holds a receiver of `open`,
/// so its sender knows how many there are and when the last one is gone. `accepting` does
/// the same for the task that accepts.
pub struct Connections {
    accepting: watch::Sender<()>,
    open: watch::Sender<()>,
}

impl Connections {
    pub fn accept(listener: Listener, router: Router) -> io::Result<Connections> {
        let connections = Connections {
            accepting: watch::Sender::new(()),
            open: watch::Sender::new(()),
        };
        let accepting = connections.accepting.subscribe();
        let open = connections.open.clone();
        let acceptor = Acceptor::new(&listener)?;
        tokio::spawn(async move {
            tokio::select! {
                () = accept_all(acceptor, &listener, &router, &open) => {}
                () = drain::handed_over() => {}
            }
            drop(listener);
            drop(accepting);
        });
        Ok(connections)
    }

    /// Waits until no connection can come any more.
    pub async fn cut_off(&self) {
        self.accepting.closed().await;
    }

    pub fn count(&self) -> usize {
        self.open.receiver_count()
    }

    /// Waits until no connection is open and none can be opened.
    pub async fn ended(&self) {
        self.cut_off().await;
        self.open.closed().await;
    }
}

/// Returns when no connection can come any more.
async fn accept_all(
    mut acceptor: Acceptor,
    listener: &Listener,
    router: &Router,
    open: &watch::Sender<()>,
) {
    loop {
        match acceptor.accept().await {
            Ok((stream, peer)) => {
                let _open = open.subscribe();
                let stream = OpenStream { stream, _open };
                tokio::spawn(serve(stream, peer, router.clone()));
            }
            Err(error) if is_shut_down(&error) => match revive(listener) {
                Ok(revived) => acceptor = revived,
                Err(error) => return tracing::error!("{error}"),
            },
            Err(error) if is_client_error(&error) => {}
            Err(error) => pause(&error).await,
        }
    }
}

fn is_shut_down(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

/// tokio keeps treating the old registration as closed, so this makes a new one.
fn revive(listener: &Listener) -> io::Result<Acceptor> {
    listener.revive()?;
    Acceptor::new(listener)
}

/// The client went away before it was accepted.
fn is_client_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};

    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

async fn pause(error: &io::Error) {
    tracing::error!("cannot accept: {error}");
    sleep(ACCEPT_PAUSE).await;
}

/// A client may end its connection as it likes, so the result is not logged.
async fn serve(stream: OpenStream, peer: Peer, router: Router) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let router = router.clone();
        async move { Ok::<_, io::Error>(respond(router, peer, request.map(Body::new)).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = pin!(connection);

    tokio::select! {
        _ = connection.as_mut() => {}
        () = drain::reached(Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixAcceptor),
}

impl Acceptor {
    fn new(listener: &Listener) -> io::Result<Acceptor> {
        Ok(match listener {
            Listener::Tcp(it) => Acceptor::Tcp(TcpListener::from_std(it.try_clone()?)?),
            Listener::Unix(it) => Acceptor::Unix(UnixAcceptor::new(it)?),
        })
    }

    async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // An answer is written in one go; there is nothing to wait for.
                let _ = stream.set_nodelay(true);
                Ok((Box::new(stream), Peer::Client(address)))
            }
            Acceptor::Unix(listener) => Ok((Box::new(listener.accept().await?), Peer::Proxy)),
        }
    }
}

/// A unix socket that was shut down stays readable, and tokio's own listener would try to
/// accept for ever. A stream tells that it is closed, so one of the same socket is waited on.
struct UnixAcceptor {
    listener: UnixListener,
    readiness: UnixStream,
}

impl UnixAcceptor {
    fn new(listener: &UnixListener) -> io::Result<UnixAcceptor> {
        let same = OwnedFd::from(listener.try_clone()?);
        Ok(UnixAcceptor {
            listener: listener.try_clone()?,
            readiness: UnixStream::from_std(same.into())?,
        })
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let ready = self.readiness.ready(Interest::READABLE).await?;
            if ready.is_read_closed() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let accept = || self.listener.accept();
            match self.readiness.try_io(Interest::READABLE, accept) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                accepted => {
                    let (stream, _) = accepted?;
                    stream.set_nonblocking(true)?;
                    return UnixStream::from_std(stream);
                }
            }
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that counts as open until it is dropped, also after an upgrade, when it
/// belongs to a handler's task.
struct OpenStream {
    stream: Box<dyn Stream>,
    _open: watch::Receiver<()>,
}

impl OpenStream {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut Box<dyn Stream>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl AsyncRead for OpenStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context,
        buffer: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl AsyncWrite for OpenStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context,
        slices: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::routing::get;
    use tokio::task::spawn_blocking;

    use super::*;

    #[tokio::test]
    async fn a_panic_costs_one_request_and_holds_nothing_open() {
        static PANICS: AtomicBool = AtomicBool::new(true);
        let handler = || async { assert!(!PANICS.swap(false, Ordering::Relaxed), "on purpose") };
        let router = Router::new().route("/", get(handler));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Connections::accept(Listener::Tcp(listener), router).unwrap();

        let request = move || answer(address);
        assert_eq!(spawn_blocking(request).await.unwrap(), "");
        let answer = spawn_blocking(request).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        connections.open.closed().await;
    }

    fn answer(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}
