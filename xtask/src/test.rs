//! `test`: everything the project is tested with.

use std::env;

use anyhow::{Context, Result};
use xshell::Shell;

use crate::{build, ui};

/// What takes containers.
const SERVERS: [&str; 2] = ["servers", "builder"];

pub fn test(sh: &Shell) -> Result<()> {
    let mut args = vec![
        "test",
        "--locked",
        "--workspace",
        "--",
        "--show-output",
        "--test-threads=4",
    ];
    if let Err(error) = build::check_engine() {
        if env::var_os("CI").is_some() {
            return Err(error.context("the tests with real servers cannot run"));
        }
        ui::warning(&format!("left out, all tests with real servers: {error:#}"));
        SERVERS.iter().for_each(|it| args.extend(["--skip", it]));
    }
    build::cargo(sh).args(args).run().context("a test failed")
}
