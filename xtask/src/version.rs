//! A version's name: when it was built, from which commit, and the hash of its bytes.

use std::{fmt, str::FromStr, time::SystemTime};

use anyhow::{Context, Error, Result, bail, ensure};
use sha2::{Digest, Sha256};
use time::{
    OffsetDateTime,
    format_description::well_known::{
        Iso8601,
        iso8601::{Config, TimePrecision},
    },
};
use xshell::{Shell, cmd};

/// ISO 8601 in its basic format, to the second: `20261122T183012Z`.
const TIME: Iso8601<
    {
        Config::DEFAULT
            .set_use_separators(false)
            .set_time_precision(TimePrecision::Second {
                decimal_digits: None,
            })
            .encode()
    },
> = Iso8601;

/// A version's name has this many hex digits of the commit, and of the sha256.
const DIGITS: usize = 12;

/// `20261122T183012Z-1a2b3c4d5e6f-9f86d081884c`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub time: OffsetDateTime,
    pub commit: Commit,
    hash: String,
}

/// `1a2b3c4d5e6f`, or `1a2b3c4d5e6f-dirty` with uncommitted changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub id: String,
    pub dirty: bool,
}

impl Version {
    /// The time is that of the build, so the same build always has the same name, and an
    /// interrupted upload can be resumed.
    pub fn new(built: SystemTime, commit: Commit, sha256: &str) -> Version {
        let time = OffsetDateTime::from(built).replace_nanosecond(0);
        let hash = sha256[..DIGITS].to_owned();
        Version {
            time: time.expect("0 is a valid nanosecond"),
            commit,
            hash,
        }
    }

    /// Whether the other one has the same bytes.
    pub fn is_same_build(&self, other: &Version) -> bool {
        self.hash == other.hash
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time.format(&TIME).map_err(|_| fmt::Error)?;
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
    let time = OffsetDateTime::parse(time, &TIME).context("its time is not valid")?;
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
        "it is not in the form {version}"
    );
    Ok(version)
}

/// The commit of the workspace. A file that git does not know counts as a change, because
/// it may be compiled in.
pub fn commit(sh: &Shell) -> Result<Commit> {
    let head = cmd!(sh, "git rev-parse --verify HEAD")
        .quiet()
        .ignore_status()
        .output()?;
    if !head.status.success() {
        bail!(
            "a version's name needs a commit, and there is none: {}\n\
             hint: `git init`, `git add --all`, `git commit`",
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

/// The time, written as in a version's name.
pub fn now() -> String {
    let now = OffsetDateTime::now_utc().format(&TIME);
    now.expect("the format has no field that may be missing")
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
    fn a_version_is_parsed_as_it_is_printed() {
        for text in [
            "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "20240229T235959Z-000000000000-dirty-ffffffffffff",
        ] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_rejected() {
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
