//! The commands, for a target on Kubernetes.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use duct::Expression;

use super::{
    Cluster, MANAGER,
    image::arch_name,
    manifest::{STOP_TIMEOUT_SECS, version_label},
    rollout::{Change, Edit, Rollout},
    state::{Deployment, Pod, ReplicaSet, State},
};
use crate::{
    builder::{self, Builder},
    json,
    rollout::user_at_machine,
    terminal,
    upload::Artifact,
    version::{Commit, Version},
};

/// A node may need this time, in seconds, to kill a pod and say so.
const KILL_MARGIN_SECS: u32 = 60;

/// A log that cannot be read now is asked for again after this time.
const CUT_STREAM_DELAY: Duration = Duration::from_secs(5);

/// The number of the change that kubectl has made.
const GENERATION: &str = "jsonpath={.metadata.generation}";

impl Cluster<'_> {
    pub fn deploy(&self, builder: Builder, commit: Commit, json: bool) -> Result<()> {
        let state = self.state_if_set_up().context("nothing was changed")?;
        self.refuse_edited(&state)?;
        let arch = self.arch();
        let binary = builder::build(self.sh, builder, arch, self.target.profile)?;
        builder::check_binary(&binary, arch)?;
        let artifact = Artifact::new(self.sh, binary, commit)?;
        let before = self.state_for_change()?;
        let same = before
            .live()
            .filter(|it| it.version.is_same_build(&artifact.version));
        let (version, image) = match same {
            Some(set) => (&set.version, set.image.clone()),
            None => (
                &artifact.version,
                self.push_version(&artifact, arch)
                    .context("nothing was changed")?,
            ),
        };
        let by = user_at_machine(self.sh)?;
        let manifest =
            self.deployment_manifest(&version.to_string(), &image, arch_name(arch), &by)?;
        let rollout = Rollout::new(self, &before, version, &by)?;
        let applied = self.patiently(|| self.apply(&manifest, GENERATION))?;
        let unchanged = before
            .deployment
            .as_ref()
            .is_some_and(|it| it.generation.to_string() == applied.trim());
        if unchanged && before.is_complete() {
            let text = format!("{version} on {} already: the same build", self.name());
            terminal::step("Live", &text);
        }
        self.scale_up(&before)?;
        rollout.conclude(json)
    }

    /// Shows what would be applied, for the version that is live.
    pub fn show_plan(&self) -> Result<()> {
        let state = self.state_if_set_up()?;
        let live = state.live();
        let version = version_label(live.map(|it| &it.version));
        let image = live.map_or(self.kubernetes.image, |it| &it.image);
        let by = state.deployment.as_ref().map_or("", |it| &it.by);
        let manifest = self.deployment_manifest(&version, image, arch_name(self.arch()), by)?;
        let steps = [
            format!("build {}", crate::config::NAME),
            format!("push it to {}, unless it is there", self.kubernetes.image),
            format!("replace the pods of {} in {}", self.service(), self.name()),
        ];
        steps.iter().for_each(|step| terminal::step("Would", step));
        terminal::print(&self.diff(&manifest)?);
        Ok(())
    }

    pub fn rollback(&self, to: &str, dry_run: bool, json: bool) -> Result<()> {
        let before = match dry_run {
            true => self.state_if_set_up()?,
            false => self.state_for_change()?,
        };
        let failed = || format!("cannot roll back {}; nothing was changed", self.name());
        let set = self.find(&before, to).with_context(failed)?;
        let live = version_label(before.live().map(|it| &it.version));
        if dry_run {
            let text = format!(
                "activate {} on {}, where {live} is live",
                set.version,
                self.name()
            );
            terminal::step("Would", &text);
            return Ok(());
        }
        self.change_to(&before, set, json)
    }

    fn change_to(&self, before: &State, set: &ReplicaSet, json: bool) -> Result<()> {
        let by = user_at_machine(self.sh)?;
        let rollout = Rollout::new(self, before, &set.version, &by)?;
        let deployment = self.deployed(before)?;
        self.switch_to(set, deployment.change(), None, &by)?;
        self.scale_up(before)?;
        rollout.conclude(json)
    }

    /// Starts what was stopped. Otherwise an autoscaler's number stays.
    fn scale_up(&self, before: &State) -> Result<()> {
        match before.is_stopped() {
            true => self.scale(self.kubernetes.replicas),
            false => Ok(()),
        }
    }

    fn deployed<'s>(&self, state: &'s State) -> Result<&'s Deployment> {
        let deployment = state.deployment.as_ref();
        deployment.with_context(|| format!("nothing was ever deployed to {}", self.name()))
    }

    /// `to` is a number of versions back, a version, or a part of one.
    fn find<'s>(&self, state: &'s State, to: &str) -> Result<&'s ReplicaSet> {
        let rollback = state.rollback();
        let target = self.target.name;
        let known = |it: &&ReplicaSet| it.version.to_string().contains(to);
        let set = match to.parse::<usize>() {
            Ok(back) if to.len() <= 3 => *rollback.get(back).with_context(|| {
                format!(
                    "versions before the live one: {}\nhint: `cargo xtask history {target}`",
                    rollback.len().saturating_sub(1)
                )
            })?,
            _ => match state.kept().into_iter().filter(known).collect::<Vec<_>>()[..] {
                [set] => set,
                [] => bail!(
                    "no version that is kept and was once live is called {to:?}\n\
                     hint: `cargo xtask history {target}`"
                ),
                [..] => bail!("{to:?} is a part of several versions"),
            },
        };
        ensure!(
            state.live() != Some(set) || !state.is_complete(),
            "{} is live already\nhint: `cargo xtask restart {target}`",
            set.version
        );
        Ok(set)
    }

    pub fn status(&self, json: bool) -> Result<()> {
        let state = self.state_if_set_up()?;
        let live = state.live().map(|it| &it.version);
        if json {
            println!(
                "{}",
                self.to_json(state.pods.iter().map(|pod| pod_to_json(&state, pod)))
            );
            return Ok(());
        }
        let mut text = format!(
            "{}\n  live     {}\n",
            self.name(),
            match live {
                Some(version) => version.to_string(),
                None => "nothing yet".to_owned(),
            }
        );
        for pod in &state.pods {
            text += &pod_line(pod, live);
        }
        if let (true, Some(deployment)) = (state.is_rolling(), &state.deployment) {
            text += &format!("  now      a rollout by {}\n", deployment.by);
        }
        terminal::print(&text);
        Ok(())
    }

    pub fn history(&self, json: bool) -> Result<()> {
        let state = self.state_if_set_up()?;
        let rollback = state.rollback();
        if json {
            let versions = rollback
                .iter()
                .map(|it| json::string(&it.version.to_string()));
            let records = state.replica_sets.iter().map(|set| record(&state, set));
            let entry = json::object([
                ("host", json::string(&self.name())),
                ("rollback", json::array(versions)),
                ("activations", json::array(records)),
            ]);
            println!("{}", self.to_json([entry].into_iter()));
            return Ok(());
        }
        let mut text = format!("{}\n", self.name());
        for (back, set) in rollback.iter().enumerate() {
            let use_it = match back {
                0 => "live".to_owned(),
                _ => format!("rollback --to {back}"),
            };
            text += &format!("  {}  {use_it}\n", set.version);
        }
        text += "\n";
        for set in state.replica_sets.iter().rev() {
            let (at, verdict) = (&set.created, verdict(&state, set));
            text += &format!("  {at}  {verdict:6}  {}  {}\n", set.version, set.by);
        }
        terminal::print(&text);
        Ok(())
    }

    pub fn logs(&self, lines: u32, follow: bool) -> Result<()> {
        if follow {
            return self.follow_logs(lines);
        }
        for pod in self
            .state_if_set_up()?
            .pods
            .iter()
            .filter(|it| it.has_run())
        {
            show_lines(self.logs_of(pod, &[&format!("--tail={lines}")]))
                .with_context(|| format!("cannot show the log of {}", pod.name))?;
        }
        Ok(())
    }

    /// Pods and runs of their containers that come later are followed, too. If a stream was
    /// cut, the lines of the last seconds may come twice.
    fn follow_logs(&self, lines: u32) -> Result<()> {
        let mut streams: HashMap<(String, u32), JoinHandle<Instant>> = HashMap::new();
        let mut tail = format!("--tail={lines}");
        loop {
            let pods = self.patiently(|| self.state_if_set_up())?.pods;
            for pod in pods.iter().filter(|it| it.has_run()) {
                let run = (pod.name.clone(), pod.restarts);
                let from = match streams.remove(&run) {
                    None => tail.clone(),
                    Some(stream) if stream.is_finished() && pod.is_up() => {
                        let ended = stream.join().expect("a stream's thread does not panic");
                        format!("--since={}s", ended.elapsed().as_secs() + 1)
                    }
                    Some(stream) => {
                        streams.insert(run, stream);
                        continue;
                    }
                };
                let kubectl = self.logs_of(pod, &[&from, "--follow"]);
                let stream = thread::spawn(|| {
                    let result = show_lines(kubectl);
                    let ended = Instant::now();
                    // kubectl's message is printed already, and would come again at once.
                    if result.is_err() {
                        sleep(CUT_STREAM_DELAY);
                    }
                    ended
                });
                streams.insert(run, stream);
            }
            if !streams.is_empty() {
                // The past of a pod that comes later is a part of what follows.
                tail = "--tail=-1".to_owned();
            }
            sleep(Duration::from_secs(1));
        }
    }

    fn logs_of(&self, pod: &Pod, args: &[&str]) -> Expression {
        self.kubectl(&[&["logs", &pod.name, "--prefix"], args].concat())
    }

    fn live<'s>(&self, state: &'s State) -> Result<&'s ReplicaSet> {
        let live = state.live();
        live.with_context(|| format!("nothing is live on {} yet", self.name()))
    }

    pub fn start(&self) -> Result<()> {
        let before = self.state_for_change()?;
        let live = self.live(&before)?;
        self.change_to(&before, live, false)
    }

    pub fn stop(&self) -> Result<()> {
        let before = self.state_for_change()?;
        self.deployed(&before)?;
        self.scale(0)?;
        terminal::step(
            "Stopping",
            &format!("{} in {}", self.service(), self.name()),
        );
        let selector = self.selector();
        let timeout = format!("--timeout={}s", STOP_TIMEOUT_SECS + KILL_MARGIN_SECS);
        match self.read(&["wait", "--for=delete", "pod", &selector, &timeout]) {
            Err(error) if !error.to_string().contains("no matching resources") => Err(error),
            _ => Ok(()),
        }
    }

    pub fn restart(&self) -> Result<()> {
        let before = self.state_for_change()?;
        let live = self.live(&before)?;
        // A killed client has left another version there.
        if before.current() != Some(live) {
            return self.change_to(&before, live, false);
        }
        let by = user_at_machine(self.sh)?;
        let rollout = Rollout::new(self, &before, &live.version, &by)?;
        let restarted = format!(
            r#"{{"spec": {{"template": {{"metadata": {{"annotations": {{"kubectl.kubernetes.io/restartedAt": {}}}}}}}}}}}"#,
            json::string(&crate::version::now())
        );
        let from = self.deployed(&before)?.change();
        let to = Change { by: &by, ..from };
        self.change(&Edit {
            from,
            to,
            replicas: None,
            kind: "merge",
            patch: &restarted,
        })?;
        rollout.finish()
    }

    pub fn list_env(&self) -> Result<()> {
        let secret = self.secret();
        let names = "--output=go-template={{range $name, $value := .data}}{{$name}}\n{{end}}";
        terminal::print(&self.read(&["get", &secret, names])?);
        Ok(())
    }

    /// `None` removes the variable.
    pub fn set_env(&self, name: &str, value: Option<&[u8]>) -> Result<()> {
        let (field, value) = match value {
            Some(value) => ("stringData", json::string(env_value(value)?)),
            None => ("data", "null".to_owned()),
        };
        let patch = json::object([(field, json::object([(name, value.clone())]))]);
        let (secret, manager) = (self.secret(), format!("--field-manager={MANAGER}"));
        // Not as an argument, which other users of this machine can read.
        let args = [
            "patch",
            &secret,
            "--type=merge",
            &manager,
            "--patch-file=/dev/stdin",
        ];
        self.send(&args, &patch)?;
        let done = if value == "null" { "Unset" } else { "Set" };
        terminal::step(done, &format!("{name} on {}", self.name()));
        let text = format!(
            "the running pods keep the old settings until `cargo xtask restart {}`",
            self.target.name
        );
        terminal::step("", &text);
        Ok(())
    }

    fn secret(&self) -> String {
        format!("secret/{}-env", self.service())
    }
}

fn show_lines(kubectl: Expression) -> Result<()> {
    let output = kubectl.stderr_to_stdout().unchecked().reader()?;
    let mut last = String::new();
    for line in BufReader::new(&output).split(b'\n') {
        last = String::from_utf8_lossy(&line?).into_owned();
        terminal::print(&format!("{last}\n"));
    }
    let status = output.try_wait()?.map(|it| it.status.success());
    ensure!(status == Some(true), "kubectl failed: {last}");
    Ok(())
}

/// As on hosts, a line end at the end is not part of it.
fn env_value(bytes: &[u8]) -> Result<&str> {
    let value = std::str::from_utf8(bytes).ok();
    let value = value.map(|it| it.strip_suffix('\n').unwrap_or(it));
    let allowed = |c: char| !c.is_control() || c == '\n' || c == '\t';
    value
        .filter(|it| it.chars().all(allowed))
        .context("the value has control characters or is not UTF-8")
}

fn pod_line(pod: &Pod, live: Option<&Version>) -> String {
    let health = match (pod.is_terminating, pod.is_ready) {
        (true, _) => "stopping",
        (_, true) => "healthy",
        _ => "not serving",
    };
    let note = match pod.version.as_ref() == live {
        true => "",
        false => " (not live)",
    };
    let version = version_label(pod.version.as_ref());
    format!(
        "  running  {version}{note}: {health}, restarted {} times, {}\n",
        pod.restarts, pod.name
    )
}

fn pod_to_json(state: &State, pod: &Pod) -> String {
    let text = |version: Option<&Version>| {
        version.map_or("null".to_owned(), |it| json::string(&it.to_string()))
    };
    let current = state.current();
    json::object([
        ("host", json::string(&pod.name)),
        ("live", text(state.live().map(|it| &it.version))),
        (
            "running",
            json::array(pod.version.as_ref().map(|it| text(Some(it)))),
        ),
        ("healthy", (pod.is_ready && !pod.is_terminating).to_string()),
        ("restarts", pod.restarts.to_string()),
        (
            "last",
            current.map_or("null".to_owned(), |set| record(state, set)),
        ),
    ])
}

fn verdict(state: &State, set: &ReplicaSet) -> &'static str {
    match set.was_live() || state.live() == Some(set) {
        true => "live",
        false if state.is_rolling() && state.current() == Some(set) => "now",
        false => "failed",
    }
}

/// What a host has as a line of its history.
fn record(state: &State, set: &ReplicaSet) -> String {
    json::object([
        ("at", json::string(&set.created)),
        ("verdict", json::string(verdict(state, set))),
        ("version", json::string(&set.version.to_string())),
        ("image", json::string(&set.image)),
        ("by", json::string(&set.by)),
    ])
}
