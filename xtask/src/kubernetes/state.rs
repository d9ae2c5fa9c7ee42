//! What the cluster knows of a target. It is the whole state: nothing is kept elsewhere.
//!
//! A version is a label of its ReplicaSets. One that was live has two labels more: when it
//! went live first, and last. So the cluster keeps the history, too.

use anyhow::{Context, Result};

use super::rollout::Change;
use crate::version::Version;

/// Prints a line for each fact, with its fields between tabs.
pub const TEMPLATE: &str = include_str!("state.gotemplate");

#[derive(Debug, Default)]
pub struct State {
    pub is_set_up: bool,
    pub deployment: Option<Deployment>,
    pub replica_sets: Vec<ReplicaSet>,
    pub pods: Vec<Pod>,
}

#[derive(Debug, Default)]
pub struct Deployment {
    /// Each change of the specification has a number.
    pub generation: u64,
    observed: u64,
    pub replicas: u32,
    existing: u32,
    updated: u32,
    available: u32,
    pub version: String,
    revision: String,
    /// Who has changed it last.
    pub by: String,
    /// Whether the number of pods is the one that was applied: not an autoscaler's, and not
    /// that of a stopped Deployment.
    pub has_fixed_replicas: bool,
    /// Why the rollout cannot go on.
    pub problem: Option<String>,
    /// A program other than ours that has changed the specification, and when.
    pub editor: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSet {
    pub name: String,
    pub revision: u64,
    pub by: String,
    pub version: Version,
    /// Like a version's time, so that they can be compared as text. Empty: never.
    pub first_live: String,
    pub last_live: String,
    /// RFC 3339
    pub created: String,
    pub replicas: u32,
    pub image: String,
}

#[derive(Debug, Default)]
pub struct Pod {
    pub name: String,
    pub version: Option<Version>,
    pub template: String,
    pub is_terminating: bool,
    pub is_ready: bool,
    pub restarts: u32,
    is_running: bool,
    unscheduled: Option<String>,
    /// Why its container does not run.
    waiting: Option<(String, String)>,
    exited: Option<String>,
}

impl State {
    pub fn parse(text: &str) -> Result<State> {
        let mut state = State::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let fields: Vec<&str> = line.split('\t').collect();
            state
                .take(&fields)
                .with_context(|| format!("kubectl prints an unknown line: {line:?}"))?;
        }
        state.replica_sets.sort_by_key(|it| it.revision);
        Ok(state)
    }

    fn take(&mut self, fields: &[&str]) -> Option<()> {
        match *fields {
            ["service"] => self.is_set_up = true,
            ["deployment", ..] => self.deployment = Some(Deployment::parse(fields)?),
            ["condition", kind, status, reason, message] => {
                let deployment = self.deployment.as_mut()?;
                deployment.take_condition(kind, status, reason, &unquote(message));
            }
            ["editor", name, time] => {
                let ours = name == super::MANAGER || name == "kube-controller-manager";
                let editor = (!ours).then(|| format!("{name} at {time}"));
                let deployment = self.deployment.as_mut()?;
                deployment.editor = deployment.editor.take().or(editor);
            }
            ["applied replicas"] => self.deployment.as_mut()?.has_fixed_replicas = true,
            // What has no version is not ours.
            ["replicaset", ..] => self.replica_sets.extend(ReplicaSet::parse(fields)),
            ["pod", name, version, template, deleted] => self.pods.push(Pod {
                name: name.to_owned(),
                version: version.parse().ok(),
                template: template.to_owned(),
                is_terminating: !deleted.is_empty(),
                ..Pod::default()
            }),
            _ => self.pods.last_mut()?.take(fields)?,
        }
        Some(())
    }

    /// The ReplicaSet of the Deployment's present specification.
    pub fn current(&self) -> Option<&ReplicaSet> {
        let deployment = self.deployment.as_ref()?;
        let is_known = deployment.observed >= deployment.generation;
        let revision = deployment.revision.parse().ok()?;
        let mut sets = self.replica_sets.iter();
        sets.find(|set| is_known && set.revision == revision)
    }

    /// Whether the Deployment's present specification serves alone.
    pub fn is_complete(&self) -> bool {
        self.current().is_some()
            && self.deployment.as_ref().is_some_and(|it| {
                it.updated == it.replicas
                    && it.existing == it.replicas
                    && it.available == it.replicas
            })
    }

    pub fn is_stopped(&self) -> bool {
        self.deployment.as_ref().is_some_and(|it| it.replicas == 0)
    }

    /// Whether old pods are still being replaced.
    pub fn is_rolling(&self) -> bool {
        let is_rolling = |it: &Deployment| it.existing > it.updated || it.updated < it.replicas;
        self.deployment.as_ref().is_some_and(is_rolling) && self.failure().is_none()
    }

    /// If a client was killed, nobody has noted that its version is live.
    pub fn live(&self) -> Option<&ReplicaSet> {
        match self.is_complete() {
            true => self.current(),
            false => self.noted(),
        }
    }

    /// What a client has noted as live.
    pub fn noted(&self) -> Option<&ReplicaSet> {
        let noted = self.replica_sets.iter().filter(|it| it.was_live());
        noted.max_by(|a, b| a.last_live.cmp(&b.last_live))
    }

    /// The live version first, then the one before it, and so on.
    pub fn rollback(&self) -> Vec<&ReplicaSet> {
        let Some(live) = self.live() else {
            return Vec::new();
        };
        let first_live = |it: &ReplicaSet| self.first_live(&it.version);
        // What was not noted yet has gone live after all others.
        let is_before = |it: &&ReplicaSet| match first_live(live) {
            Some(time) => first_live(it) < Some(time),
            None => it.version != live.version,
        };
        let mut before: Vec<_> = self.kept().into_iter().filter(is_before).collect();
        before.sort_by_key(|it| std::cmp::Reverse(first_live(it)));
        [live].into_iter().chain(before).collect()
    }

    /// The versions that were live once, each with its latest ReplicaSet that was.
    pub fn kept(&self) -> Vec<&ReplicaSet> {
        let live = self.live().into_iter();
        let noted = self.replica_sets.iter().filter(|it| it.was_live());
        let mut kept: Vec<&ReplicaSet> = Vec::new();
        for set in live.chain(noted.rev()) {
            if !kept.iter().any(|it| it.version == set.version) {
                kept.push(set);
            }
        }
        kept
    }

    /// `None` for a version that was never live, or for which that was not noted yet.
    pub fn first_live(&self, version: &Version) -> Option<&str> {
        let sets = self.replica_sets.iter().filter(|it| it.was_live());
        let times = sets.filter(|it| it.version == *version);
        times.map(|it| it.first_live.as_str()).min()
    }

    /// The pods of the Deployment's present specification.
    pub fn current_pods(&self) -> impl Iterator<Item = &Pod> {
        let template = self.current().map(|it| it.name.as_str());
        let template = template.and_then(|name| name.rsplit('-').next());
        let pods = self.pods.iter().filter(|pod| !pod.is_terminating);
        pods.filter(move |pod| Some(pod.template.as_str()) == template)
    }

    /// Why the present rollout has failed, and the pod that shows it.
    pub fn failure(&self) -> Option<(String, Option<&Pod>)> {
        let of_pod = |pod| Pod::failure(pod).map(|why| (why, Some(pod)));
        if let Some(found) = self.current_pods().find_map(of_pod) {
            return Some(found);
        }
        let problem = self.deployment.as_ref()?.problem.clone();
        self.current()?;
        let unready = self.current_pods().find(|pod| !pod.is_ready);
        let why = unready.and_then(Pod::obstacle).or(problem.clone());
        problem.and(why).map(|why| (why, unready))
    }
}

impl Deployment {
    fn parse(fields: &[&str]) -> Option<Deployment> {
        let [
            _,
            generation,
            observed,
            replicas,
            existing,
            updated,
            available,
            version,
            revision,
            by,
        ] = *fields
        else {
            return None;
        };
        Some(Deployment {
            generation: generation.parse().ok()?,
            observed: observed.parse().ok()?,
            replicas: replicas.parse().ok()?,
            existing: existing.parse().ok()?,
            updated: updated.parse().ok()?,
            available: available.parse().ok()?,
            version: version.to_owned(),
            revision: revision.to_owned(),
            by: by.to_owned(),
            ..Deployment::default()
        })
    }

    /// The last change.
    pub fn change(&self) -> Change<'_> {
        Change {
            version: &self.version,
            by: &self.by,
        }
    }

    fn take_condition(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let problem = match (kind, status) {
            ("Progressing", "False") if reason == "ProgressDeadlineExceeded" => {
                "it did not become ready in time".to_owned()
            }
            ("Progressing", _) if reason == "DeploymentPaused" => {
                "the Deployment is paused; `kubectl rollout resume` ends that".to_owned()
            }
            ("ReplicaFailure", "True") => format!("no pod can be made: {message}"),
            _ => return,
        };
        // The latter says more.
        if self.problem.is_none() || kind == "ReplicaFailure" {
            self.problem = Some(problem);
        }
    }
}

impl ReplicaSet {
    fn parse(fields: &[&str]) -> Option<ReplicaSet> {
        let [
            _,
            name,
            revision,
            by,
            version,
            first_live,
            last_live,
            created,
            replicas,
            image,
        ] = *fields
        else {
            return None;
        };
        Some(ReplicaSet {
            name: name.to_owned(),
            revision: revision.parse().ok()?,
            by: by.to_owned(),
            version: version.parse().ok()?,
            first_live: first_live.to_owned(),
            last_live: last_live.to_owned(),
            created: created.to_owned(),
            replicas: replicas.parse().ok()?,
            image: image.to_owned(),
        })
    }

    pub fn was_live(&self) -> bool {
        !self.last_live.is_empty()
    }
}

impl Pod {
    fn take(&mut self, fields: &[&str]) -> Option<()> {
        match *fields {
            ["ready", status] => self.is_ready = status == "True",
            ["running"] => self.is_running = true,
            ["unscheduled", message] => self.unscheduled = Some(unquote(message)),
            ["restarts", count] => self.restarts = count.parse().ok()?,
            ["waiting", reason, message] => {
                self.waiting = Some((reason.to_owned(), unquote(message)));
            }
            ["exited", code, reason] => self.exited = Some(format!("exit code {code}, {reason}")),
            _ => return None,
        }
        Some(())
    }

    /// Whether there is a log.
    pub fn has_run(&self) -> bool {
        self.is_running || self.exited.is_some()
    }

    /// Whether its log goes on.
    pub fn is_up(&self) -> bool {
        self.is_running && !self.is_terminating
    }

    /// What waiting would hardly help.
    fn failure(&self) -> Option<String> {
        // Of a pod that serves, it tells of former times.
        if let Some(exited) = self.exited.as_ref().filter(|_| !self.is_ready) {
            return Some(format!("it exited: {exited}"));
        }
        let (reason, message) = self.waiting.as_ref()?;
        match reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                Some(format!("its image cannot be pulled: {message}"))
            }
            _ => None,
        }
    }

    /// What it waits for, which may pass: a node hears late of a new Secret, for example.
    fn obstacle(&self) -> Option<String> {
        if let Some(why) = &self.unscheduled {
            return Some(format!("no room for a pod: {why}"));
        }
        let (reason, message) = self.waiting.as_ref()?;
        Some(format!("its container does not start: {reason}: {message}"))
    }
}

/// Undoes Go's `%q`, as far as people read it.
fn unquote(text: &str) -> String {
    let inner = text.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    inner
        .unwrap_or(text)
        .replace("\\n", " ")
        .replace("\\t", " ")
        .replace("\\\"", "\"")
}
