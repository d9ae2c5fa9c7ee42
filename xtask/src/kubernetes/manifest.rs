//! The files in `xtask/kubernetes/`, with the target's values filled in.

use anyhow::{Result, bail};

use super::Cluster;
use crate::{
    config::{DRAIN_SECS, KEEP_VERSIONS, READY_TIMEOUT_SECS},
    placeholders,
    version::Version,
};

const DEPLOYMENT: &str = include_str!("../../kubernetes/deployment.yaml");
const SERVICE: &str = include_str!("../../kubernetes/service.yaml");

/// A stopping pod serves on for this time: it takes a moment until all nodes know of it.
const LINGER_SECS: u32 = 5;

/// A pod that still runs this long after its drain is killed.
const STOP_MARGIN_SECS: u32 = 5;

pub(super) const STOP_TIMEOUT_SECS: u32 = LINGER_SECS + DRAIN_SECS + STOP_MARGIN_SECS;

/// A pod may need this time, in seconds, before it starts: it waits for its node and its
/// image. If the API server was away, the controllers come back to it late, because they ask at
/// growing intervals.
const START_SECS: u32 = 50;

impl Cluster<'_> {
    /// What `deploy` applies.
    pub(super) fn deployment_manifest(
        &self,
        version: &str,
        image: &str,
        arch: &str,
        by: &str,
    ) -> Result<String> {
        let settle = self.target.settle_secs.ceil();
        let values: &[(&str, &str)] = &[
            ("SERVICE", self.service()),
            ("VERSION", version),
            ("IMAGE", image),
            ("ARCH", arch),
            ("BY", by),
            ("REPLICAS", &self.kubernetes.replicas.to_string()),
            ("SETTLE_SECS", &settle.to_string()),
            (
                "PROGRESS_SECS",
                &(READY_TIMEOUT_SECS + START_SECS).to_string(),
            ),
            ("KEEP_VERSIONS", &(KEEP_VERSIONS + 1).to_string()),
            ("LINGER_SECS", &LINGER_SECS.to_string()),
            ("DRAIN_SECS", &DRAIN_SECS.to_string()),
            ("STOP_TIMEOUT_SECS", &STOP_TIMEOUT_SECS.to_string()),
        ];
        let required = &["SERVICE", "VERSION", "IMAGE"];
        placeholders::fill(
            "xtask/kubernetes/deployment.yaml",
            DEPLOYMENT,
            values,
            required,
        )
    }

    /// What `setup` applies. `policy` is the API of disruption budgets that the cluster has.
    pub(super) fn service_manifest(&self, policy: &str) -> Result<String> {
        let values = [("SERVICE", self.service()), ("POLICY", policy)];
        placeholders::fill(
            "xtask/kubernetes/service.yaml",
            SERVICE,
            &values,
            &["SERVICE"],
        )
    }

    /// Returns what kubectl prints in this format.
    pub(super) fn apply(&self, manifest: &str, output: &str) -> Result<String> {
        let manager = format!("--field-manager={}", super::MANAGER);
        let output = format!("--output={output}");
        let args = ["apply", "--server-side", "--force-conflicts"];
        self.send(
            &[&args[..], &[&manager, &output, "--filename=-"]].concat(),
            manifest,
        )
    }

    /// What `apply` would change.
    pub(super) fn diff(&self, manifest: &str) -> Result<String> {
        let manager = format!("--field-manager={}", super::MANAGER);
        let args = ["diff", "--server-side", "--force-conflicts", "--filename=-"];
        let diff = self
            .kubectl(&[&args[..], &[&manager]].concat())
            .stdin_bytes(manifest);
        // Exit code 1: there are differences.
        let output = diff.stdout_capture().stderr_capture().unchecked().run()?;
        match output.status.code() {
            Some(0 | 1) if output.stderr.is_empty() => {
                Ok(String::from_utf8_lossy(&output.stdout).into_owned())
            }
            _ => bail!(self.explain(String::from_utf8_lossy(&output.stderr).trim())),
        }
    }
}

/// A version's label, or a word that stands for it where there is none.
pub(super) fn version_label(version: Option<&Version>) -> String {
    version.map_or("none".to_owned(), Version::to_string)
}
