//! The upload: a patch against the live version where both sides can, else rsync.

use std::{
    fs,
    io::{self, PipeWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use duct::{Handle, cmd};

use crate::{
    config::NAME,
    host::Host,
    state::State,
    ui::{self, Progress},
    version::{self, Version},
};

/// A build, and where builds are kept that went to a server: what is live there now is
/// what the next one is a patch against.
pub struct Built {
    pub binary: PathBuf,
    pub version: Version,
    pub sha256: String,
    pub sent: PathBuf,
}

/// How many builds are kept, for servers that are some deploys behind.
const SENT: usize = 10;

/// Higher ones take 15 times as long, and make a small patch no smaller.
const LEVEL: &str = "-12";

/// Else it takes in the whole binary before it gives out anything, and nobody knows how
/// far it is.
const STREAMING: &str = "--single-thread";

/// Puts a version where its activation looks for it.
pub fn upload(host: &Host, state: &State, built: &Built, receiver: Option<Receiver>) -> Result<()> {
    let to = host
        .directory
        .join(format!("incoming/{NAME}-{}", built.version));
    let (Some(remote), Some(receiver)) = (&host.remote, receiver) else {
        return copy(&built.binary, &to);
    };
    ui::step("Uploading", &format!("{} to {}", built.version, host.name));
    if !patch(host, state, built, receiver, &to)? {
        host.rsync(remote, &built.binary, &to, state.live.as_ref())?;
    }
    Ok(())
}

fn copy(binary: &Path, to: &Path) -> Result<()> {
    fs::copy(binary, to).map(drop).or_else(|error| {
        let _ = fs::remove_file(to);
        Err(error).with_context(|| format!("cannot write {}; nothing was changed", to.display()))
    })
}

/// Waits on a host for a patch. It is begun while the host is asked for its state, since
/// a session takes some round trips until it takes anything.
pub struct Receiver {
    input: PipeWriter,
    session: Handle,
}

/// What is there already, of an upload that was cut, rsync goes on with.
const RECEIVE: &str = r#"read -r basis && read -r to && read -r sha256 && [ ! -e "$to" ] &&
    zstd --decompress --quiet --force --patch-from="$basis" -o "$to" &&
    [ "$(sha256sum <"$to")" = "$sha256  -" ]"#;

impl Receiver {
    pub fn begin(host: &Host) -> Result<Receiver> {
        let (output, input) = io::pipe()?;
        let session = host.shell(RECEIVE)?.stdin_file(output);
        let session = session.stdout_null().stderr_null().unchecked().start()?;
        Ok(Receiver { input, session })
    }
}

/// Returns whether it came out right. It is made, sent and applied as a stream.
fn patch(
    host: &Host,
    state: &State,
    built: &Built,
    mut receiver: Receiver,
    to: &Path,
) -> Result<bool> {
    let Some((old, basis)) = basis(host, state, &built.sent) else {
        return Ok(false);
    };
    let head = format!("{}\n{}\n{}\n", basis.display(), to.display(), built.sha256);
    if receiver.input.write_all(head.as_bytes()).is_err() {
        return Ok(false);
    }
    let binary = fs::read(&built.binary)?;
    let (output, input) = io::pipe()?;
    let size = format!("--stream-size={}", binary.len());
    let old = format!("--patch-from={}", old.display());
    let made = cmd!("zstd", LEVEL, STREAMING, "--quiet", "--stdout", size, old)
        .stdin_file(output)
        .stdout_file(receiver.input)
        .stderr_null()
        .unchecked()
        .start();
    let Ok(made) = made else {
        return Ok(false);
    };
    feed(input, &binary, &host.name);
    Ok(made.wait()?.status.success() && receiver.session.wait()?.status.success())
}

/// What is live there, where it is here and there.
fn basis(host: &Host, state: &State, sent: &Path) -> Option<(PathBuf, PathBuf)> {
    let live = state.live.as_ref().filter(|_| state.zstd)?;
    let here = sent.join(format!("{NAME}-{live}"));
    let sha256 = version::sha256(&fs::read(&here).ok()?);
    let there = host.directory.join(format!("versions/{NAME}-{live}"));
    (state.sha256(live).ok()? == sha256).then_some((here, there))
}

/// One who takes no more has failed, and says so by its status.
fn feed(mut writer: PipeWriter, bytes: &[u8], name: &str) {
    let mut progress = Progress::new(format!("of it sent to {name}"));
    for (n, part) in bytes.chunks(PART).enumerate() {
        if writer.write_all(part).is_err() {
            return;
        }
        progress.at(n * PART * 100 / bytes.len());
    }
}

const PART: usize = 64 * 1024;

/// Keeps a build for the patches to come, and not too many of them.
pub fn keep(built: &Built) -> Result<()> {
    fs::create_dir_all(&built.sent)?;
    let kept = built.sent.join(format!("{NAME}-{}", built.version));
    fs::copy(&built.binary, kept)?;
    let mut all: Vec<PathBuf> = fs::read_dir(&built.sent)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    all.sort();
    for old in all.iter().rev().skip(SENT) {
        fs::remove_file(old)?;
    }
    Ok(())
}
