//! The tests of the xtask and of the script, all against real processes. `kit` is what
//! they are made of.

mod kit;

mod actions;
mod adoption;
mod arm64;
mod bad_versions;
mod builder;
mod cluster;
mod cluster_alone;
mod commands;
mod crash_points;
mod disk_full;
mod first_server;
mod fleet;
mod history;
mod hostile;
mod https;
mod internet;
mod lock;
mod notes;
#[path = "../../../app/tests/it/page.rs"]
mod page;
mod releases;
mod run_command;
mod servers;
mod servers_attacked;
mod servers_boot;
mod servers_cut;
mod servers_frozen;
mod servers_healed;
mod servers_soak;
mod servers_trial;
mod state;
mod switches;
mod test_command;
mod tour;
mod without_systemd;

use kit::{app, client, configured, http, lab, load, place, site, workspace};
