//! The upload by rsync, for hosts without zstd. It also resumes an interrupted upload.

use std::{
    io::{self, Read},
    path::Path,
};

use anyhow::{Context, Result, anyhow, ensure};
use duct::cmd;

use crate::{
    host::Host,
    session,
    ssh::{Remote, quote},
    terminal::{self, Progress},
};

/// Sends only what differs from `basis`, an installed version; and after an interruption
/// only what is missing.
pub fn upload(
    host: &Host,
    remote: &Remote,
    binary: &Path,
    to: &Path,
    basis: Option<&Path>,
) -> Result<()> {
    let to = to.to_string_lossy();
    if let Some(basis) = basis {
        let basis = quote(&basis.to_string_lossy());
        let copy = format!("[ -s {0} ] || cp {basis} {0}", quote(&to));
        session::run(&host.shell(&copy)?, |stdout| session::read_all(stdout))?;
    }
    // Options that openrsync knows, which macOS ships.
    let rsync = cmd!(
        "rsync",
        "--compress",
        "--ignore-times", // the basis may have the new file's size and time
        "--inplace",
        "--partial",
        "--progress",
        "--rsh",
        remote.rsync_shell()?,
        "--",
        binary,
        format!("{}:{to}", remote.address)
    );
    // What it says may come from the host.
    let failed = format!("the upload to {} failed; nothing was changed", host.name());
    let answer = session::run(&rsync, |stdout| show_progress(stdout, host.name()))
        .map_err(hint_at_missing_rsync)
        .context(failed.clone())?;
    answer.stderr.lines().for_each(terminal::quote);
    ensure!(answer.status.success(), failed);
    Ok(())
}

fn hint_at_missing_rsync(error: anyhow::Error) -> anyhow::Error {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::NotFound) => {
            anyhow!("cannot run rsync\nhint: install it here; on the server `setup` installs it")
        }
        _ => error,
    }
}

/// Shows the percentages of rsync's output until that ends.
fn show_progress(mut output: impl Read, host: &str) -> Result<()> {
    let mut progress = Progress::new(format!("uploaded to {host}"));
    let mut buffer = [0; 1024];
    loop {
        let len = output.read(&mut buffer)?;
        if len == 0 {
            return Ok(());
        }
        if let Some(percent) = last_percentage(&String::from_utf8_lossy(&buffer[..len])) {
            progress.update(percent);
        }
    }
}

/// rsync writes ` 1,234,567  12%  1.20MB/s  0:00:07`.
fn last_percentage(text: &str) -> Option<usize> {
    let (before, _) = text.rsplit_once('%')?;
    before.rsplit(' ').next()?.parse().ok()
}
