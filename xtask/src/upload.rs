//! The upload: packed by zstd where both sides can, a patch where a version is live;
//! else rsync.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use duct::cmd;

use crate::{
    config::NAME,
    host::{Host, Session, quote},
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

/// What zstd made of a build: a patch against what is live somewhere, by the sha256 of
/// that; and all of it where nothing is live, by no sha256.
pub type Packed = HashMap<String, Vec<u8>>;

/// How many builds are kept, for servers that are some deploys behind.
const SENT: usize = 10;

/// Higher ones take 15 times as long, and make a small patch no smaller.
const LEVEL: &str = "-12";

/// Once for all hosts that have the same live.
pub fn pack<'a>(built: &Built, states: impl Iterator<Item = &'a State>) -> Packed {
    let mut packed = Packed::new();
    for state in states {
        let Some(live) = live_sha256(state) else {
            continue;
        };
        if !packed.contains_key(live)
            && let Some(bytes) = zstd(built, state.live.as_ref(), live)
        {
            packed.insert(live.to_owned(), bytes);
        }
    }
    packed
}

/// Of hosts that can take what is packed.
fn live_sha256(state: &State) -> Option<&str> {
    match &state.live {
        _ if !state.zstd => None,
        Some(live) => state.sha256(live).ok(),
        None => Some(""),
    }
}

/// Nothing where we have no zstd, or not the bytes of what is live.
fn zstd(built: &Built, live: Option<&Version>, sha256: &str) -> Option<Vec<u8>> {
    let mut args = vec![
        LEVEL.to_owned(),
        "--quiet".to_owned(),
        "--stdout".to_owned(),
    ];
    if let Some(live) = live {
        let basis = built.sent.join(format!("{NAME}-{live}"));
        if version::sha256(&fs::read(&basis).ok()?) != sha256 {
            return None;
        }
        args.push(format!("--patch-from={}", basis.display()));
    }
    args.extend(["--".to_owned(), built.binary.display().to_string()]);
    let made = cmd("zstd", args)
        .stderr_null()
        .stdout_capture()
        .run()
        .ok()?;
    Some(made.stdout)
}

/// Puts a version where its activation looks for it.
pub fn upload(
    host: &Host,
    state: &State,
    built: &Built,
    packed: &Packed,
    receiver: Option<Session>,
) -> Result<()> {
    let to = host
        .directory
        .join(format!("incoming/{NAME}-{}", built.version));
    let (Some(remote), Some(receiver)) = (&host.remote, receiver) else {
        return copy(&built.binary, &to);
    };
    ui::step("Uploading", &format!("{} to {}", built.version, host.name));
    let bytes = live_sha256(state).and_then(|it| packed.get(it));
    let sent =
        bytes.is_some_and(|it| send(host, state, built, it, receiver, &to).is_ok_and(|it| it));
    if !sent {
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

/// Tells what a host has of uploads that were cut: rsync goes on with these. Then waits for
/// what zstd makes of a build: a patch, or all of it in one where nothing is live yet.
const RECEIVE: &str = r#"printf '%s\n' "$incoming"/* '' &&
    read -r basis && read -r to && read -r sha256 && [ ! -e "$to" ] &&
    zstd --decompress --quiet --stdout ${basis:+"--patch-from=$basis"} >"$to" &&
    [ "$(sha256sum <"$to")" = "$sha256  -" ] && echo received"#;

/// It is begun while the host is asked for its state, since a session takes two round
/// trips until it says anything, and a third until it hears anything.
pub fn expect(host: &Host) -> Result<Session> {
    let incoming = quote(&host.directory.join("incoming").to_string_lossy());
    Session::begin(host.shell(&format!("incoming={incoming}; {RECEIVE}"))?)
}

/// Returns whether it came out right.
fn send(
    host: &Host,
    state: &State,
    built: &Built,
    bytes: &[u8],
    mut receiver: Session,
    to: &Path,
) -> io::Result<bool> {
    // What is sent before one hears that it is not wanted is on its way already.
    let cut = receiver.output.by_ref().lines();
    for cut in cut.take_while(|it| !matches!(it, Ok(end) if end.is_empty())) {
        if to == Path::new(&cut?) {
            return Ok(false);
        }
    }
    let basis = state.live.as_ref().map(|live| host.installed(live));
    let basis = basis.unwrap_or_default();
    let (basis, to) = (basis.display(), to.display());
    writeln!(receiver.input, "{basis}\n{to}\n{}", built.sha256)?;
    let mut progress = Progress::new(format!("of it sent to {}", host.name));
    for (n, part) in bytes.chunks(PART).enumerate() {
        receiver.input.write_all(part)?;
        progress.at(n * PART * 100 / bytes.len());
    }
    drop(receiver.input);
    let mut said = String::new();
    receiver.output.read_to_string(&mut said)?;
    Ok(said.ends_with("received\n"))
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
