//! The tests of the xtask and of the script, all against real processes. The files
//! `app`, `http`, `load`, `place` and `workspace` are what they are made of.

mod app;
mod builder;
mod http;
mod lab;
mod load;
mod place;
mod site;
mod workspace;

mod bad_versions;
mod commands;
mod crash_points;
mod disk_full;
mod history;
mod hostile;
mod lock;
mod servers;
mod servers_attacked;
mod servers_cut;
mod switches;
mod tour;
