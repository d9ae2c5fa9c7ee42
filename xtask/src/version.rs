//! A version's name tells all: when it was built, from which commit, and which bytes.

use std::{fmt, str::FromStr, time::SystemTime};

use anyhow::{Context, Error, Result, bail, ensure};
use sha2::{Digest, Sha256};
use time::{
    OffsetDateTime, PrimitiveDateTime, format_description::StaticFormatDescription,
    macros::format_description,
};
use xshell::{Shell, cmd};

const TIME: StaticFormatDescription =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// Hex digits of a commit and of a hash that make it into a version's name.
const DIGITS: usize = 12;

/// `20261122T183012Z-1a2b3c4d5e6f-9f86d081884c`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub time: OffsetDateTime,
    pub commit: Commit,
    hash: String,
}

/// `1a2b3c4d5e6f`, or `1a2b3c4d5e6f-dirty` where the tree was not as committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    id: String,
    pub dirty: bool,
}

impl Version {
    /// The time is that of the build, so that the same build has the same name, and an
    /// upload that was cut goes on where it was.
    pub fn new(built: SystemTime, commit: Commit, sha256: &str) -> Version {
        let time = OffsetDateTime::from(built).replace_nanosecond(0);
        let hash = sha256[..DIGITS].to_owned();
        Version {
            time: time.expect("0 is in range"),
            commit,
            hash,
        }
    }

    pub fn is_of(&self, sha256: &str) -> bool {
        sha256.starts_with(&self.hash)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.format(TIME).map_err(|_| fmt::Error)?;
        write!(f, "{time}-{}-{}", self.commit, self.hash)
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.id, if self.dirty { "-dirty" } else { "" })
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Version> {
        parse(text).with_context(|| format!("not a version: {text:?}"))
    }
}

fn parse(text: &str) -> Result<Version> {
    let (time, rest) = text.split_once('-').context("it has no commit")?;
    let (commit, hash) = rest.rsplit_once('-').context("it has no hash")?;
    let (id, dirty) = match commit.strip_suffix("-dirty") {
        Some(id) => (id, true),
        None => (commit, false),
    };
    for digits in [id, hash] {
        ensure!(
            digits.len() == DIGITS && digits.bytes().all(|b| b"0123456789abcdef".contains(&b)),
            "{digits:?} is not {DIGITS} lower-case hex digits"
        );
    }
    let time = PrimitiveDateTime::parse(time, TIME)
        .context("its time is none")?
        .assume_utc();
    let commit = Commit {
        id: id.to_owned(),
        dirty,
    };
    let version = Version {
        time,
        commit,
        hash: hash.to_owned(),
    };
    ensure!(
        version.to_string() == text,
        "it is not spelled as {version}"
    );
    Ok(version)
}

/// The commit that the workspace is at. What git does not know about counts as a
/// change: it may well be compiled in.
pub fn commit(sh: &Shell) -> Result<Commit> {
    let head = cmd!(sh, "git rev-parse --verify HEAD")
        .quiet()
        .ignore_status()
        .output()?;
    if !head.status.success() {
        bail!(
            "a version is named after its commit, and there is none: {}\n\
             hint: `git init`, `git add --all` and `git commit` make one",
            String::from_utf8_lossy(&head.stderr).trim()
        );
    }
    let id = String::from_utf8(head.stdout)?;
    let changes = cmd!(sh, "git status --porcelain -- .").quiet().read()?;
    Ok(Commit {
        id: id[..DIGITS].to_owned(),
        dirty: !changes.is_empty(),
    })
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_survives_its_text() {
        for text in [
            "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "20240229T235959Z-000000000000-dirty-ffffffffffff",
        ] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_not_spelled_exactly_is_no_version() {
        for text in [
            "",
            "-",
            "20261122T183012Z",
            "20261122T183012Z-1a2b3c4d5e6f",
            "20261122T183012Z-1a2b3c4d5e6f-",
            "20261122T183012Z-1a2b3c4d5e6-9f86d081884c",
            "20261122T183012Z-1A2b3c4d5e6f-9f86d081884c",
            "20261122T183012Z-1a2b3c4d5e6f-clean-9f86d081884c",
            "20261122T183012Z-1a2b3c4d5e6f-dirty-dirty-9f86d081884c",
            "20261322T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "20250229T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "20261122T183060Z-1a2b3c4d5e6f-9f86d081884c",
            "+20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            " 20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c\n",
            "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c/..",
            "../20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "--20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "20261122T183012Z-$(id)c4d5e6f-9f86d081884c",
            "２0261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
    }
}
