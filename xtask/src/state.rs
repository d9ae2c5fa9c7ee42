//! A host's state, as `bin/activate session` tells it.

use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use crate::{
    target::{Address, check_service},
    version::Version,
};

#[derive(Debug)]
pub struct State {
    pub service: String,
    pub address: Address,
    /// The sha256 of `bin/activate`.
    pub script: String,
    pub arch: Arch,
    /// Whether the host can unpack what zstd has packed.
    pub has_zstd: bool,
    /// Free disk space for another version.
    pub free_bytes: u64,
    pub live: Option<Version>,
    pub running: Vec<Version>,
    pub healthy: bool,
    pub restarts: u32,
    /// The versions in `versions/`.
    pub installed: Vec<Version>,
    /// The live version first, then the one before it, and so on.
    pub rollback: Vec<KnownVersion>,
    /// The versions that once went live here and are still installed.
    pub kept: Vec<KnownVersion>,
    pub last: Option<Record>,
    /// The activation that is going on: since when, which version, by whom.
    pub busy: Option<String>,
}

/// A version that once went live here, and its sha256. That is empty if the version went
/// live a moment before its activation was killed.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownVersion {
    pub version: Version,
    pub sha256: String,
}

/// A line of the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// RFC 3339
    pub at: String,
    pub is_live: bool,
    pub version: Version,
    pub sha256: String,
    pub by: String,
}

/// The architectures that we can build for. The word names an image and folders, so it
/// is never taken from a host as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arch {
    X86_64,
    Aarch64,
}

impl State {
    pub fn parse(lines: &[String]) -> Result<State> {
        let fields = Fields(lines);
        Ok(State {
            service: checked(fields.required("service")?, check_service)?,
            address: fields.address().context("the host tells a wrong address")?,
            script: fields.required("script")?.to_owned(),
            arch: Arch::parse(fields.required("arch")?)?,
            has_zstd: fields.is_true("zstd"),
            free_bytes: fields
                .required("free")?
                .parse()
                .context("`free` is not a number")?,
            live: fields.parse_all("live", Version::from_str).pop(),
            running: fields.parse_all("running", Version::from_str),
            healthy: fields.is_true("healthy"),
            restarts: fields.first("restarts").unwrap_or("0").parse()?,
            installed: fields.parse_all("version", Version::from_str),
            rollback: fields.parse_all("rollback", KnownVersion::parse),
            kept: fields.parse_all("kept", KnownVersion::parse),
            last: fields.parse_all("last", Record::parse).pop(),
            busy: fields.first("busy").map(|value| value.replace('\t', " ")),
        })
    }

    /// The sha256 of a version that was once live here.
    pub fn sha256(&self, version: &Version) -> Result<&str> {
        let mut known = self.rollback.iter().chain(&self.kept);
        let known = known.find(|known| known.version == *version && !known.sha256.is_empty());
        let known = known.with_context(|| {
            format!("the history has no sha256 of {version}\nhint: `start` records what is live")
        })?;
        Ok(&known.sha256)
    }
}

/// Lines of the form `KEY<TAB>VALUE`. A key may have several lines.
struct Fields<'a>(&'a [String]);

impl<'a> Fields<'a> {
    fn all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        let field = |line: &'a String| line.split_once('\t');
        let fields = self.0.iter().filter_map(field);
        fields
            .filter(move |(its_key, _)| *its_key == key)
            .map(|(_, value)| value)
    }

    fn first(&self, key: &str) -> Option<&'a str> {
        self.all(key).next()
    }

    fn required(&self, key: &str) -> Result<&'a str> {
        self.first(key)
            .with_context(|| format!("the host does not report `{key}`; it says {:?}", self.0))
    }

    fn is_true(&self, key: &str) -> bool {
        self.first(key) == Some("true")
    }

    /// Leaves out values of another form: another client may have put a version with an
    /// impossible date into the history.
    fn parse_all<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T>) -> Vec<T> {
        self.all(key)
            .filter_map(|value| parse(value).ok())
            .collect()
    }

    fn address(&self) -> Result<Address> {
        match self.first("domain") {
            Some(domain) => Address::domain(domain),
            None => Address::port(self.required("listen")?),
        }
    }
}

impl KnownVersion {
    fn parse(line: &str) -> Result<KnownVersion> {
        let (version, sha256) = line.split_once('\t').unwrap_or((line, ""));
        Ok(KnownVersion {
            version: version.parse()?,
            sha256: match sha256 {
                "" => String::new(),
                sha256 => checked(sha256, check_sha256)?,
            },
        })
    }
}

impl Record {
    pub fn parse(line: &str) -> Result<Record> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [at, verdict, version, sha256, by] = fields[..] else {
            bail!("a record has 5 fields, not {}: {line:?}", fields.len());
        };
        Ok(Record {
            at: at.to_owned(),
            is_live: verdict == "live",
            version: version.parse()?,
            sha256: checked(sha256, check_sha256)?,
            by: by.to_owned(),
        })
    }

    pub fn verdict(&self) -> &'static str {
        if self.is_live { "live" } else { "failed" }
    }
}

impl Arch {
    pub fn this_machine() -> Result<Arch> {
        Arch::parse(std::env::consts::ARCH)
    }

    /// Takes the names that `uname -m` and Rust use.
    pub fn parse(name: &str) -> Result<Arch> {
        match name {
            "x86_64" => Ok(Arch::X86_64),
            "aarch64" => Ok(Arch::Aarch64),
            _ => bail!("unknown architecture {name:?}; known are x86_64 and aarch64"),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }
}

fn checked(value: &str, check: impl Fn(&str) -> Result<()>) -> Result<String> {
    check(value)?;
    Ok(value.to_owned())
}

fn check_sha256(value: &str) -> Result<()> {
    ensure!(
        value.len() == 64 && value.bytes().all(|b| b"0123456789abcdef".contains(&b)),
        "{value:?} is not a sha256"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "2026-11-22T18:30:12Z\tlive\t20261122T183012Z-1a2b3c4d5e6f-9f86d081884c\t\
        9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\talice@laptop as deploy";

    #[test]
    fn a_torn_line_is_no_record() {
        assert_eq!(Record::parse(RECORD).unwrap().by, "alice@laptop as deploy");
        // The server ends a torn line with more tabs than a record has.
        assert!(Record::parse(&format!("{RECORD}\t\t\t\t\ttorn")).is_err());
        let (cut, _) = RECORD.rsplit_once('\t').unwrap();
        assert!(Record::parse(cut).is_err());
        assert!(Record::parse(&RECORD.replace("9f86d081884c7", "9f86")).is_err());
    }
}
