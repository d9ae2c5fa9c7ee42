//! What the tests and the benchmark are made of.

pub mod app;
pub mod client;
pub mod cluster;
pub mod configured;
pub mod http;
pub mod lab;
pub mod load;
pub mod place;
pub mod site;
pub mod workspace;
