//! What a host tells of itself, as `bin/activate status` prints it.

use anyhow::{Context, Result, bail};

use crate::version::Version;

#[derive(Debug, Default)]
pub struct State {
    pub listen: String,
    /// The sha256 of bin/activate.
    pub script: String,
    /// As `uname -m` tells it.
    pub arch: String,
    /// Whether it can unpack what zstd has packed.
    pub zstd: bool,
    /// Bytes that are free for another version.
    pub free: u64,
    pub live: Option<Version>,
    pub running: Vec<Version>,
    pub healthy: bool,
    pub restarts: u32,
    /// What is in versions/.
    pub versions: Vec<Version>,
    /// The live version, the one before it, the one before that….
    pub rollback: Vec<Version>,
    /// Oldest first.
    pub activations: Vec<Activation>,
    /// What the host says of an activation that goes on.
    pub busy: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// RFC 3339
    pub at: String,
    pub is_live: bool,
    pub version: Version,
    pub sha256: String,
    pub by: String,
}

impl State {
    pub fn parse(text: &str) -> Result<State> {
        let mut state = State::default();
        for line in text.lines() {
            state
                .parse_line(line)
                .with_context(|| format!("the host said {line:?}"))?;
        }
        Ok(state)
    }

    /// A line of a kind that is not known is of a newer script, and passed over.
    fn parse_line(&mut self, line: &str) -> Result<()> {
        let (kind, value) = line.split_once('\t').unwrap_or((line, ""));
        match kind {
            "listen" => self.listen = value.to_owned(),
            "script" => self.script = value.to_owned(),
            "arch" => self.arch = value.to_owned(),
            "zstd" => self.zstd = value == "true",
            "free" => self.free = value.parse()?,
            "live" => self.live = Some(value.parse()?),
            "running" => self.running.push(value.parse()?),
            "healthy" => self.healthy = value == "true",
            "restarts" => self.restarts = value.parse()?,
            "version" => self.versions.push(value.parse()?),
            "rollback" => self.rollback.push(value.parse()?),
            "busy" => self.busy = Some(value.replace('\t', " ")),
            // One that cannot be read takes nothing from the others.
            "activation" => self.activations.extend(Activation::parse(value)),
            _ => {}
        }
        Ok(())
    }

    /// The sha256 of a version that was once live here, from when it was.
    pub fn sha256(&self, version: &Version) -> Result<&str> {
        let was = |it: &&Activation| it.is_live && it.version == *version;
        let activation = self.activations.iter().rfind(was);
        // Of what went live a moment before its activation was killed.
        let activation = activation.with_context(|| {
            format!("the history has no sha256 of {version}\nhint: `start` records what is live")
        })?;
        Ok(&activation.sha256)
    }
}

impl Activation {
    fn parse(line: &str) -> Result<Activation> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [at, verdict, version, sha256, by] = fields[..] else {
            bail!("an activation has 5 fields");
        };
        Ok(Activation {
            at: at.to_owned(),
            is_live: verdict == "live",
            version: version.parse()?,
            sha256: sha256.to_owned(),
            by: by.to_owned(),
        })
    }

    pub fn verdict(&self) -> &'static str {
        if self.is_live { "live" } else { "failed" }
    }
}
