//! Lets a web server be replaced while it serves, without losing a request.
//!
//! # With axum
//!
//! [`serve`] is all that is needed:
//!
//! ```no_run
//! use axum::{Router, routing::get};
//!
//! fn main() -> std::process::ExitCode {
//!     cutover::serve(router)
//! }
//!
//! async fn router() -> Router {
//!     Router::new()
//!         .route("/", get(async || "hello"))
//!         .route("/healthz", get(async || "ok"))
//! }
//! ```
//!
//! Handlers and tasks may use:
//!
//! | | |
//! |---|---|
//! | [`Client`] | the client's address and scheme, also behind the proxy; a handler's argument |
//! | [`draining`] | an async function: the process is about to end, so start nothing new |
//! | [`on_shutdown`] | what must be finished before the process ends, such as closing a database |
//! | [`version`], [`instance`] | what is running |
//!
//! `axum::extract::ConnectInfo<SocketAddr>` works, too. WebSockets work; a handler that
//! waits for [`draining`] can send a close frame before its connection is cut. Event streams
//! (`text/event-stream`) end with the drain, so that their clients reconnect to the next
//! instance.
//!
//! # With another server
//!
//! The deployment knows nothing but a process. This is what it expects of one, and the parts
//! of this crate that help:
//!
//! | The process must | with |
//! |---|---|
//! | without systemd: exit with 0 on `APP healthcheck` if the instance that `argv[0]` ends with (`-VERSION.N`) answers `GET /healthz` on `LISTEN` with 200 | [`arguments`] |
//! | take the socket that systemd passes as descriptor 3, TCP or unix; else bind `LISTEN` with `SO_REUSEPORT` | [`socket`] |
//! | listen only when it can answer, and then send `READY=1` to `NOTIFY_SOCKET`, and `WATCHDOG=1` as long as it is well | [`Socket::listen`], [`ready`] |
//! | carry the header `cutover-instance: VERSION.N` in every answer, if `argv[0]` ends with an instance | [`INSTANCE_HEADER`], [`instance`] |
//! | on SIGTERM, go on as before for `LINGER_SECONDS`; then answer with `Connection: close` and end streams | [`draining`], [`is_draining`] |
//! | stop accepting only when new connections reach the next instance: at once with systemd's socket; on a port that it bound itself this must be arranged | [`handed_over`] |
//! | leave open connections time to be used once more: 5 s, or half of `DRAIN_SECONDS` if that is less | its own shutdown |
//! | exit with 0 when all have ended, at the latest `DRAIN_SECONDS` after the linger | [`deadline`] |
//!
//! `examples/hyper.rs` is such a server without axum.
//!
//! # Environment
//!
//! | | default | |
//! |---|---|---|
//! | `LISTEN` | `127.0.0.1:3000` | where to listen, unless systemd passes a socket |
//! | `DRAIN_SECONDS` | 30 | how long open connections may take to end |
//! | `LINGER_SECONDS` | 0 | how long to go on as before after SIGTERM, for load balancers that hear late of it |
//! | `RUST_LOG` | `info` | what to log, such as `warn` or `info,app=debug` |

#![deny(unsafe_code)] // allowed only at the few marked system calls

mod arguments;
mod client;
mod connections;
mod drain;
mod handover;
mod harden;
mod healthcheck;
mod identity;
mod listen;
mod log;
mod ready;
mod respond;
mod serve;
mod settings;
mod shutdown;
mod signals;

pub use arguments::arguments;
pub use client::Client;
pub use drain::{deadline, draining, handed_over, is_draining};
pub use identity::{instance, version};
pub use listen::{Listener, Socket, socket};
pub use ready::ready;
pub use respond::INSTANCE_HEADER;
pub use serve::{IntoRouter, serve};
pub use shutdown::on_shutdown;
