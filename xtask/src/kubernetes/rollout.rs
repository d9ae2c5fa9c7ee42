//! A rollout: a change of the Deployment, followed until the new pods serve alone. If they
//! do not, the version before is put back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::{consts::SIGINT, flag};

use super::{
    Cluster, MANAGER, contains_any,
    state::{Pod, ReplicaSet, State},
};
use crate::{
    json, terminal,
    version::{self, Version},
};

const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// The pods' last lines are shown after a failure.
const LAST_LINES: &str = "--tail=10";
const LOG_ATTEMPTS: u32 = 5;

/// What a node answers in place of a log that it does not find.
const NO_LOG: &[&str] = &["unable to retrieve", "failed to try resolving symlinks"];

/// While pods come and go, the controllers write the status again and again.
const CHANGE_ATTEMPTS: u32 = 20;
const MODIFIED: &[&str] = &["the object has been modified"];

/// What tells one person's change of the Deployment from another's.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Change<'a> {
    pub version: &'a str,
    pub by: &'a str,
}

/// A patch of the Deployment, refused unless its last change is still `from`.
pub(super) struct Edit<'a> {
    pub from: Change<'a>,
    pub to: Change<'a>,
    /// Ignored where the number is not ours: an autoscaler's, or that of a stopped Deployment.
    pub replicas: Option<u32>,
    /// kubectl's name for this kind of patch.
    pub kind: &'a str,
    pub patch: &'a str,
}

/// How a rollout ended, as far as the cluster is concerned.
enum End {
    Live(State),
    Failed(String),
    /// Somebody has changed the Deployment meanwhile.
    Replaced(String),
    Interrupted,
}

/// What has to be known for following a rollout and for undoing it.
pub(super) struct Rollout<'a> {
    pub cluster: &'a Cluster<'a>,
    pub before: &'a State,
    pub version: &'a Version,
    pub by: &'a str,
    pub interrupted: Arc<AtomicBool>,
}

impl<'a> Rollout<'a> {
    pub fn new(
        cluster: &'a Cluster<'a>,
        before: &'a State,
        version: &'a Version,
        by: &'a str,
    ) -> Result<Rollout<'a>> {
        let interrupted = Arc::new(AtomicBool::new(false));
        flag::register(SIGINT, Arc::clone(&interrupted))?;
        Ok(Rollout {
            cluster,
            before,
            version,
            by,
            interrupted,
        })
    }

    /// Follows the change. Prints the version, or JSON if that is wanted.
    pub fn conclude(&self, json: bool) -> Result<()> {
        let result = self.finish();
        match &result {
            _ if json => println!("{}", self.json(result.as_ref().err())),
            Ok(()) => println!("{}", self.version),
            Err(_) => {}
        }
        result
    }

    pub fn finish(&self) -> Result<()> {
        let (cluster, version) = (self.cluster, self.version);
        match self.follow(version)? {
            End::Live(state) => {
                cluster.note_live(&state)?;
                cluster.prune(&state);
                let note = match state.is_stopped() {
                    true => ", which is stopped",
                    false => "",
                };
                terminal::step("Live", &format!("{version} on {}{note}", cluster.name()));
                Ok(())
            }
            End::Failed(why) => {
                let still = self.put_back();
                let still = still.unwrap_or_else(|error| format!("cannot put back: {error:#}"));
                bail!(
                    "{version} did not become live on {}: {why}\n{still}",
                    cluster.name()
                )
            }
            End::Replaced(by) => bail!(
                "{version} did not become live on {}: {by} has changed the Deployment meanwhile\n\
                 hint: `cargo xtask status {}` shows what is live",
                cluster.name(),
                cluster.target.name
            ),
            End::Interrupted => bail!(
                "stopped following; the rollout of {version} continues on {}\n\
                 hint: `cargo xtask status {}` shows what is live",
                cluster.name(),
                cluster.target.name
            ),
        }
    }

    /// Follows until the Deployment serves this version. Anybody else's change has another
    /// version or person; an autoscaler's steps change neither.
    fn follow(&self, version: &Version) -> Result<End> {
        let mut shown = String::new();
        loop {
            let read = self.cluster.patiently(|| self.cluster.state());
            if self.interrupted.load(Relaxed) {
                return Ok(End::Interrupted);
            }
            let state = read?;
            let Some(deployment) = &state.deployment else {
                return Ok(End::Replaced("somebody".to_owned()));
            };
            if let Some(editor) = &deployment.editor {
                return Ok(End::Replaced(editor.clone()));
            }
            let ours = Change {
                version: &version.to_string(),
                by: self.by,
            };
            if deployment.change() != ours {
                return Ok(End::Replaced(deployment.by.clone()));
            }
            if state.is_complete() {
                return Ok(End::Live(state));
            }
            if let Some((why, pod)) = state.failure() {
                pod.inspect(|pod| self.cluster.show_last_lines(pod));
                return Ok(End::Failed(why));
            }
            show_progress(&state, &mut shown);
            sleep(POLL_INTERVAL);
        }
    }

    /// Returns what serves now.
    fn put_back(&self) -> Result<String> {
        let cluster = self.cluster;
        let Some(live) = self.before.live() else {
            let all = ["delete", "--ignore-not-found", &cluster.deployment()];
            cluster.patiently(|| cluster.read(&all))?;
            return Ok("nothing is live there".to_owned());
        };
        let still = &live.version;
        terminal::step("Restoring", &format!("{still} on {}", cluster.name()));
        let replicas = self.before.deployment.as_ref().map(|it| it.replicas);
        let failed = Change {
            version: &self.version.to_string(),
            by: self.by,
        };
        cluster.switch_to(live, failed, replicas, self.by)?;
        if self.before.is_stopped() {
            cluster.scale(0)?;
        }
        match self.follow(still)? {
            End::Live(state) => {
                cluster.note_live(&state)?;
                cluster.prune(&state);
                if state.is_stopped() {
                    return Ok(format!("{still} is stopped, as before"));
                }
                Ok(format!("{still} still serves"))
            }
            End::Failed(why) => Ok(format!("{still} is put back, but does not serve: {why}")),
            End::Replaced(by) => Ok(format!("{by} has changed the Deployment meanwhile")),
            End::Interrupted => Ok(format!("{still} is being put back")),
        }
    }

    fn json(&self, error: Option<&anyhow::Error>) -> String {
        let cluster = self.cluster;
        let now = cluster.state().unwrap_or_default();
        let live = now.live().map(|it| json::string(&it.version.to_string()));
        let live = live.unwrap_or("null".to_owned());
        let error = error.map(|it| json::string(&format!("{it:#}")));
        let outcome = match error {
            Some(_) => "failed",
            None => "live",
        };
        let error = error.unwrap_or("null".to_owned());
        let pods = now.pods.iter().filter(|pod| !pod.is_terminating);
        let pod = |pod: &Pod| {
            json::object([
                ("host", json::string(&pod.name)),
                ("live", live.clone()),
                ("outcome", json::string(outcome)),
                ("error", error.clone()),
            ])
        };
        cluster.to_json(pods.map(pod))
    }
}

fn show_progress(state: &State, shown: &mut String) {
    let pods: Vec<&Pod> = state.current_pods().collect();
    let ready = pods.iter().filter(|pod| pod.is_ready).count();
    let wanted = state.deployment.as_ref().map_or(0, |it| it.replicas);
    let text = format!("{ready} of {wanted} new pods are ready");
    if !pods.is_empty() && *shown != text {
        terminal::step("Replacing", &text);
        *shown = text;
    }
}

impl Cluster<'_> {
    pub(super) fn to_json(&self, pods: impl Iterator<Item = String>) -> String {
        json::object([
            ("target", json::string(self.target.name)),
            ("hosts", json::array(pods)),
        ])
    }

    /// Waits for a rollout that is under way, and notes its version if its client was killed.
    /// A Deployment that somebody has edited by hand is left alone.
    pub(super) fn state_for_change(&self) -> Result<State> {
        let mut waits = false;
        loop {
            let state = self.state_if_set_up().context("nothing was changed")?;
            self.refuse_edited(&state)?;
            if !state.is_rolling() {
                if state.is_complete() && self.note_live(&state)? {
                    return self.state();
                }
                return Ok(state);
            }
            if let (false, Some(deployment)) = (waits, &state.deployment) {
                let text = format!("for the rollout by {}", deployment.by);
                terminal::step("Waiting", &text);
                waits = true;
            }
            sleep(POLL_INTERVAL);
        }
    }

    pub(super) fn refuse_edited(&self, state: &State) -> Result<()> {
        let editor = state.deployment.as_ref().and_then(|it| it.editor.as_ref());
        if let Some(editor) = editor {
            bail!(
                "{} in {} was edited by {editor}; nothing was changed\n\
                 hint: edit xtask/kubernetes/deployment.yaml instead; `cargo xtask setup {}` \
                 replaces the edited one by it",
                self.deployment(),
                self.name(),
                self.target.name
            );
        }
        Ok(())
    }

    /// Changes the Deployment back to a former ReplicaSet.
    pub(super) fn switch_to(
        &self,
        set: &ReplicaSet,
        from: Change,
        replicas: Option<u32>,
        by: &str,
    ) -> Result<()> {
        let template = "--output=jsonpath={.spec.template}";
        let template = self.patiently(|| self.read(&["get", "replicaset", &set.name, template]))?;
        let steps = [
            json::object([
                ("op", json::string("replace")),
                ("path", json::string("/spec/template")),
                ("value", template),
            ]),
            r#"{"op": "remove", "path": "/spec/template/metadata/labels/pod-template-hash"}"#
                .to_owned(),
        ];
        self.change(&Edit {
            from,
            to: Change {
                version: &set.version.to_string(),
                by,
            },
            replicas,
            kind: "json",
            patch: &json::array(steps),
        })
    }

    /// Changes the Deployment, if nobody else has changed it. The result is applied
    /// as a deploy's manifest is, so that the next deploy takes back what only this one has.
    pub(super) fn change(&self, edit: &Edit) -> Result<()> {
        let is_modified = |error: &anyhow::Error| contains_any(&format!("{error:#}"), MODIFIED);
        let attempt = || {
            let mut attempts_left = CHANGE_ATTEMPTS;
            loop {
                attempts_left -= 1;
                match self.try_change(edit) {
                    // Usually only the status was. `try_change` checks the rest each time.
                    Err(error) if attempts_left > 0 && is_modified(&error) => sleep(POLL_INTERVAL),
                    result => return result,
                }
            }
        };
        let failed = || format!("cannot change {}", self.deployment());
        self.patiently(attempt).with_context(failed)
    }

    fn try_change(&self, edit: &Edit) -> Result<()> {
        let now = self.read(&["get", &self.deployment(), "--output=json"])?;
        // Read after `now`, whose resourceVersion makes the API server refuse this change if
        // there was another one since.
        let state = self.state()?;
        self.refuse_edited(&state)?;
        let deployment = state.deployment.context("somebody has deleted it")?;
        let last = deployment.change();
        // `to`: an earlier attempt succeeded, but its answer was lost.
        ensure!(
            last == edit.from || last == edit.to,
            "{} has changed it meanwhile",
            deployment.by
        );
        let replicas = match deployment.has_fixed_replicas {
            true => edit.replicas.unwrap_or(deployment.replicas).to_string(),
            false => "null".to_owned(),
        };
        let ours = format!(
            r#"{{"metadata": {{"managedFields": null, "annotations": {{"kubernetes.io/change-cause": {}}}}}, "spec": {{"replicas": {replicas}}}}}"#,
            json::string(edit.to.by)
        );
        let changed = self.patched(&now, "merge", &ours)?;
        let changed = self.patched(&changed, edit.kind, edit.patch)?;
        self.apply(&changed, "name")?;
        Ok(())
    }

    fn patched(&self, object: &str, kind: &str, patch: &str) -> Result<String> {
        let kind = format!("--type={kind}");
        let args = ["patch", "--local", "--filename=-", "--output=json", &kind];
        self.send(&[&args[..], &["--patch", patch]].concat(), object)
    }

    pub(super) fn scale(&self, replicas: u32) -> Result<()> {
        let deployment = self.deployment();
        let manager = format!("--field-manager={MANAGER}");
        let patch = format!(r#"{{"spec": {{"replicas": {replicas}}}}}"#);
        let args = [
            "patch",
            &deployment,
            "--type=merge",
            &manager,
            "--patch",
            &patch,
        ];
        self.patiently(|| self.read(&args))?;
        Ok(())
    }

    /// Notes that the present version is live. Returns whether that was not noted yet.
    pub(super) fn note_live(&self, state: &State) -> Result<bool> {
        let Some(current) = state.current() else {
            return Ok(false);
        };
        let noted = state.replica_sets.iter().map(|it| &it.last_live).max();
        if current.was_live() && noted == Some(&current.last_live) {
            return Ok(false);
        }
        let now = version::now();
        let first = state.first_live(&current.version).unwrap_or(&now);
        let labels = [
            format!("cutover/live={now}"),
            format!("cutover/first-live={first}"),
        ];
        let args = ["label", "--overwrite", "replicaset", &current.name];
        let args = [&args[..], &labels.each_ref().map(String::as_str)].concat();
        self.patiently(|| self.read(&args))?;
        Ok(true)
    }

    /// The cluster keeps a number of ReplicaSets, whatever became of them. So that failures
    /// and restarts do not push out what one can go back to, only the last failed one and
    /// one of each version stay.
    fn prune(&self, state: &State) {
        let Some(current) = state.current() else {
            return;
        };
        let kept = state.kept();
        let is_failed = |it: &&ReplicaSet| !it.was_live() && it.name != current.name;
        let failed = state.replica_sets.iter().rfind(is_failed);
        let is_needed = |set: &ReplicaSet| {
            set.name == current.name
                || set.replicas > 0
                || failed == Some(set)
                || (kept.contains(&set) && set.version != current.version)
        };
        let stale = state.replica_sets.iter().filter(|it| !is_needed(it));
        let stale: Vec<&str> = stale.map(|it| it.name.as_str()).collect();
        if !stale.is_empty() {
            let args = ["delete", "--wait=false", "--ignore-not-found", "replicaset"];
            if let Err(error) = self.read(&[&args[..], &stale].concat()) {
                terminal::warning(&format!("cannot delete old ReplicaSets: {error:#}"));
            }
        }
    }

    /// For a pod that was started again, those of the run before. A busy node may need a
    /// moment to find them.
    fn show_last_lines(&self, pod: &Pod) {
        let args = ["logs", &pod.name, LAST_LINES];
        let read = |more: &[&str]| self.read(&[&args[..], more].concat()).ok();
        let is_log = |it: &String| !it.is_empty() && !NO_LOG.iter().any(|no| it.starts_with(no));
        let before = || read(&["--previous"]).filter(is_log);
        let lines = (0..LOG_ATTEMPTS).find_map(|attempt| {
            sleep(POLL_INTERVAL * attempt);
            before().or_else(|| read(&[]).filter(is_log))
        });
        lines.unwrap_or_default().lines().for_each(terminal::quote);
    }
}
