//! Real servers, started as on a host and asked over real sockets. The servers are the
//! crate's examples.

mod client;
mod drain;
mod examples;
mod healthcheck;
mod hostile;
mod shutdown;
mod start;
mod support;
mod switch;
mod websocket;
