//! A server without axum, made of the parts that the crate documentation lists.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use cutover::{INSTANCE_HEADER, Listener};
use hyper::body::Incoming;
use hyper::header::CONNECTION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;

/// How long a silent connection is kept after the drain began. It has to be less than the
/// drain itself.
const GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    if let Some(code) = cutover::arguments() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run() -> io::Result<()> {
    let listener = match cutover::socket()?.listen()? {
        Listener::Tcp(listener) => listener,
        Listener::Unix(_) => return Err(io::Error::other("this server knows only TCP")),
    };
    // Each connection holds a receiver: the sender knows when the last one has gone.
    let open = watch::Sender::new(());
    let accepting = tokio::spawn(accept(listener, open.clone()));
    cutover::ready(async || Ok(())).await?;
    eprintln!("ready");

    cutover::handed_over().await;
    accepting.abort();
    tokio::select! {
        () = open.closed() => {}
        () = cutover::deadline() => {}
    }
    Ok(())
}

async fn accept(listener: TcpListener, open: watch::Sender<()>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let held = open.subscribe();
        tokio::spawn(async move {
            serve(stream).await;
            drop(held);
        });
    }
}

async fn serve(stream: TcpStream) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let mut connection = pin!(connection);
    let silent = async {
        cutover::draining().await;
        sleep(GRACE).await;
    };
    tokio::select! {
        _ = connection.as_mut() => {}
        () = silent => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let mut response = Response::builder();
    if let Some(instance) = cutover::instance() {
        response = response.header(INSTANCE_HEADER, instance);
    }
    if cutover::is_draining() {
        response = response.header(CONNECTION, "close");
    }
    Ok(response
        .body("hello\n".to_owned())
        .expect("these headers are valid"))
}
