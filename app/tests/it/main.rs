//! The real binary, started as it is on a server, asked over real sockets.

mod browser;
mod drain;
mod healthcheck;
mod http;
mod start;
mod support;
mod switch;
