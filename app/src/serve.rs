//! Accepting connections and answering on them.

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::drain::{Phase, WatchPhase};
use crate::listen::Listener;
use crate::log;

/// How long a connection may take to send a request's head, its idle time
/// included. More than the minute for which proxies keep idle connections, so
/// that it is they who close them, and not we under their hands.
const HEAD: Duration = Duration::from_secs(75);

/// Nothing is ever sent on these channels. Each connection holds a receiver of
/// `open`, so its sender knows how many there are, and when the last is gone;
/// and the same with `accepting` and the one task that accepts.
pub struct Server {
    accepting: watch::Sender<()>,
    open: watch::Sender<()>,
}

impl Server {
    pub fn start(listener: Listener, router: Router, phase: WatchPhase) -> Server {
        let server = Server {
            accepting: watch::Sender::new(()),
            open: watch::Sender::new(()),
        };
        let held = server.accepting.subscribe();
        let open = server.open.clone();
        tokio::spawn(async move {
            accept(listener, router, phase, open).await;
            drop(held);
        });
        server
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.open.receiver_count()
    }

    /// No connection is open, and none will be.
    pub async fn ended(&self) {
        self.accepting.closed().await;
        self.open.closed().await;
    }
}

async fn accept(listener: Listener, router: Router, phase: WatchPhase, open: watch::Sender<()>) {
    let accept_all = async {
        loop {
            match listener.tcp().accept().await {
                Ok((stream, _)) => {
                    let served = serve(stream, router.clone(), phase.clone());
                    let held = open.subscribe();
                    tokio::spawn(async move {
                        served.await;
                        drop(held);
                    });
                }
                Err(e) => accept_failed(&e).await,
            }
        }
    };
    let handed_over = async {
        phase.clone().reaches(Phase::Draining).await;
        listener.hand_over().await;
    };
    tokio::select! {
        () = accept_all => {}
        () = handed_over => {}
    }
}

/// One client's failure is that client's; anything else, such as having no
/// more file descriptors, may pass.
async fn accept_failed(error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};

    if !matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    ) {
        log::error(&format!("cannot accept: {error}"));
        sleep(Duration::from_secs(1)).await;
    }
}

/// How a connection ends is the client's affair, hence no line about it.
async fn serve(stream: TcpStream, router: Router, mut phase: WatchPhase) {
    // An answer is written in one go; there is nothing to wait for.
    let _ = stream.set_nodelay(true);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);

    tokio::select! {
        _ = connection.as_mut() => {}
        () = phase.reaches(Phase::Closing) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::routing::get;
    use tokio::net::TcpListener;
    use tokio::task::spawn_blocking;

    use super::*;
    use crate::{drain, healthcheck};

    #[tokio::test]
    async fn a_panic_costs_one_request_and_holds_nothing_open() {
        static PANICS: AtomicBool = AtomicBool::new(true);
        let handler = || async {
            assert!(!PANICS.swap(false, Ordering::Relaxed), "meant to happen");
            "ok it"
        };
        let router = Router::new().route("/healthz", get(handler));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_phase, watch_phase) = drain::phases();
        let server = Server::start(Listener::Passed(listener), router, watch_phase);

        let ask = move || healthcheck::ask(address).map_err(|e| e.to_string());
        assert_eq!(
            spawn_blocking(ask).await.unwrap(),
            Err("it answered ``".into())
        );
        assert_eq!(spawn_blocking(ask).await.unwrap(), Ok("it".into()));
        server.open.closed().await;
    }
}
