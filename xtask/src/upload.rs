//! The upload: a patch against the live version where both sides have zstd, else rsync.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use duct::cmd;
use xshell::Shell;

use crate::{
    config::NAME,
    host::Host,
    rsync,
    session::Session,
    ssh::quote,
    state::State,
    terminal::{self, Progress},
    version::{self, Version},
};

/// Runs on the host and receives a patch.
const RECEIVE: &str = include_str!("../server/receive.sh");

/// zstd's level. Higher ones take 15 times as long, and make a small patch no smaller.
const LEVEL: &str = "-12";

/// This many builds that were sent to a server are kept, as the basis of patches.
const KEEP_SENT: usize = 10;

/// A patch is sent in parts of this size, so that its progress can be shown.
const PART_BYTES: usize = 64 * 1024;

/// A binary that was built, and its version.
pub struct Artifact {
    pub binary: PathBuf,
    pub version: Version,
    pub sha256: String,
    /// The folder of builds that were sent to a server.
    pub sent: PathBuf,
}

impl Artifact {
    pub fn new(sh: &Shell, binary: PathBuf, commit: version::Commit) -> Result<Artifact> {
        let bytes =
            fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let sha256 = version::sha256(&bytes);
        let built = fs::metadata(&binary)?.modified()?;
        Ok(Artifact {
            version: Version::new(built, commit, &sha256),
            sent: sh.current_dir().join("target/sent"),
            binary,
            sha256,
        })
    }
}

/// Compressed artifacts, by the sha256 of the version that each is a patch against. The
/// whole artifact, for hosts where nothing is live yet, stands under the empty string.
pub type Patches = HashMap<String, Vec<u8>>;

/// One patch for all hosts that have the same live version.
pub fn make_patches<'a>(artifact: &Artifact, states: impl Iterator<Item = &'a State>) -> Patches {
    let mut patches = Patches::new();
    for state in states {
        let Some(live) = live_sha256(state) else {
            continue;
        };
        if !patches.contains_key(live)
            && let Some(patch) = compress(artifact, state.live.as_ref(), live)
        {
            patches.insert(live.to_owned(), patch);
        }
    }
    patches
}

/// `None` for a host that cannot unpack a patch.
fn live_sha256(state: &State) -> Option<&str> {
    match &state.live {
        _ if !state.has_zstd => None,
        Some(live) => state.sha256(live).ok(),
        None => Some(""),
    }
}

/// `None` without zstd here, or without the exact bytes of the live version.
fn compress(artifact: &Artifact, live: Option<&Version>, live_sha256: &str) -> Option<Vec<u8>> {
    let mut args = vec![
        LEVEL.to_owned(),
        "--quiet".to_owned(),
        "--stdout".to_owned(),
    ];
    if let Some(live) = live {
        let basis = sent_file(&artifact.sent, live);
        if version::sha256(&fs::read(&basis).ok()?) != live_sha256 {
            return None;
        }
        args.push(format!("--patch-from={}", basis.display()));
    }
    args.extend(["--".to_owned(), artifact.binary.display().to_string()]);
    let output = cmd("zstd", args).stderr_null().stdout_capture().run();
    Some(output.ok()?.stdout)
}

/// Opens the session that receives a patch. A session takes two round trips until it
/// answers, so it is opened while the host's state is read.
pub fn open_receiver(host: &Host) -> Result<Session> {
    let incoming = quote(&host.path("incoming").to_string_lossy());
    let receive = quote(RECEIVE);
    Session::open(host.shell(&format!("exec sh -c {receive} receive {incoming}"))?)
}

/// Puts the artifact into `incoming/`, where its activation finds it.
pub fn upload(
    host: &Host,
    state: &State,
    artifact: &Artifact,
    patches: &Patches,
    receiver: Option<Session>,
) -> Result<()> {
    let to = host.version_file("incoming", state, &artifact.version);
    let (Some(remote), Some(receiver)) = (&host.remote, receiver) else {
        return copy(&artifact.binary, &to);
    };
    let what = format!("{} to {}", artifact.version, host.name());
    terminal::step("Uploading", &what);
    let live = state.live.as_ref();
    let basis = live.map(|live| host.version_file("versions", state, live));
    let patch = live_sha256(state).and_then(|live| patches.get(live));
    let was_received = patch.is_some_and(|patch| {
        let patch = Patch {
            basis: basis.as_deref(),
            bytes: patch,
            to: &to,
            sha256: &artifact.sha256,
        };
        send(host, &patch, receiver).is_ok_and(|received| received)
    });
    if !was_received {
        rsync::upload(host, remote, &artifact.binary, &to, basis.as_deref())?;
    }
    Ok(())
}

struct Patch<'a> {
    /// The file on the host that the patch applies to. `None`: it is the whole artifact.
    basis: Option<&'a Path>,
    bytes: &'a [u8],
    to: &'a Path,
    /// The sha256 of the result.
    sha256: &'a str,
}

/// Whether the host received the patch, and the result has the right sha256.
fn send(host: &Host, patch: &Patch, mut receiver: Session) -> Result<bool> {
    if was_interrupted(&mut receiver, patch.to)? {
        return Ok(false);
    }
    let basis = patch.basis.unwrap_or(Path::new(""));
    let (basis, to) = (basis.display(), patch.to.display());
    receiver.send(format!("{basis}\n{to}\n{}\n", patch.sha256).as_bytes())?;
    let mut progress = Progress::new(format!("uploaded to {}", host.name()));
    for (n, part) in patch.bytes.chunks(PART_BYTES).enumerate() {
        receiver.send(part)?;
        progress.update(n * PART_BYTES * 100 / patch.bytes.len());
    }
    receiver.close_input();
    let mut last = None;
    while let Some(line) = receiver.read_line()? {
        last = Some(line);
    }
    Ok(last.as_deref() == Some("received"))
}

/// The receiver first lists the uploads that were interrupted: rsync resumes these.
/// Waiting for the list costs less than to send a patch that nobody wants.
fn was_interrupted(receiver: &mut Session, to: &Path) -> Result<bool> {
    while let Some(line) = receiver.read_line()? {
        if line.is_empty() {
            return Ok(false);
        }
        if to == Path::new(&line) {
            return Ok(true);
        }
    }
    Ok(true)
}

fn copy(binary: &Path, to: &Path) -> Result<()> {
    fs::copy(binary, to).map(drop).or_else(|error| {
        let _ = fs::remove_file(to);
        Err(error).with_context(|| format!("cannot write {}; nothing was changed", to.display()))
    })
}

/// Keeps a build for the patches to come, and deletes the oldest ones.
pub fn keep_sent(artifact: &Artifact) -> Result<()> {
    fs::create_dir_all(&artifact.sent)?;
    fs::copy(
        &artifact.binary,
        sent_file(&artifact.sent, &artifact.version),
    )?;
    let mut kept: Vec<PathBuf> = fs::read_dir(&artifact.sent)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    kept.sort();
    for old in kept.iter().rev().skip(KEEP_SENT) {
        fs::remove_file(old)?;
    }
    Ok(())
}

fn sent_file(sent: &Path, version: &Version) -> PathBuf {
    sent.join(format!("{NAME}-{version}"))
}
