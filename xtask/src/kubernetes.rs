//! A target on Kubernetes: the commands mean the same as on hosts, and are carried out by
//! `kubectl`, with the user's own kubeconfig.
//!
//! The cluster does what `bin/activate` does on a host. A Deployment replaces the pods one
//! by one, its ReplicaSets are the history, and the API server lets one of two clients win.

mod commands;
mod image;
mod manifest;
mod rollout;
mod setup;
mod state;

use std::{
    io,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use duct::{Expression, cmd};
use xshell::Shell;

use crate::{target::Target, terminal};

use state::State;

/// What the cluster calls us, where it notes who has set a field.
const MANAGER: &str = "cutover";

/// A client may lose the API server for this long in the middle of a command.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// How kubectl says that the API server does not answer.
const DISCONNECTED: &[&str] = &[
    "Unable to connect to the server",
    "The connection to the server",
    "connection refused",
    "connection reset by peer",
    "i/o timeout",
    "TLS handshake timeout",
    "no route to host",
    "unexpected EOF",
    "the server is currently unable to handle the request",
    "apiserver not ready",
    "etcdserver:",
];

/// What an API server says that was away and does not know its roles and kinds yet.
const STARTING: &[&str] = &["(Forbidden)", "the server doesn't have a resource type"];

/// The part of a target that names its cluster.
#[derive(Clone, Copy)]
pub struct Kubernetes<'a> {
    /// A context of your kubeconfig.
    pub context: &'a str,
    pub namespace: &'a str,
    /// The image's name without a tag, as in `registry.example.com/team/app`. The cluster
    /// pulls it, and you may push to it.
    pub image: &'a str,
    /// How many pods serve.
    pub replicas: u32,
}

pub struct Cluster<'a> {
    target: Target<'a>,
    kubernetes: Kubernetes<'a>,
    sh: &'a Shell,
}

impl<'a> Cluster<'a> {
    /// `None` for a target on hosts.
    pub fn of(sh: &'a Shell, target: Target<'a>) -> Option<Cluster<'a>> {
        target.kubernetes.map(|kubernetes| Cluster {
            target,
            kubernetes,
            sh,
        })
    }

    fn service(&self) -> &str {
        self.target.service.unwrap_or(self.target.name)
    }

    fn deployment(&self) -> String {
        format!("deployment/{}", self.service())
    }

    fn name(&self) -> String {
        let Kubernetes {
            context, namespace, ..
        } = self.kubernetes;
        format!("{context}/{namespace}")
    }

    fn selector(&self) -> String {
        format!("--selector=app.kubernetes.io/name={}", self.service())
    }

    fn kubectl(&self, args: &[&str]) -> Expression {
        let Kubernetes {
            context, namespace, ..
        } = self.kubernetes;
        let base = ["--context", context, "--namespace", namespace];
        cmd("kubectl", [&base, args].concat())
    }

    /// kubectl's output.
    fn read(&self, args: &[&str]) -> Result<String> {
        self.run(self.kubectl(args))
    }

    /// The same with the text as its input, which is a file or a patch.
    fn send(&self, args: &[&str], input: &str) -> Result<String> {
        self.run(self.kubectl(args).stdin_bytes(input))
    }

    fn run(&self, kubectl: Expression) -> Result<String> {
        let kubectl = kubectl.stdout_capture().stderr_capture().unchecked();
        let output = kubectl.run().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => anyhow!("`kubectl` is not installed"),
            _ => anyhow!("cannot run `kubectl`: {error}"),
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines = said.lines().filter(|it| !it.starts_with("Warning: "));
        let mut lines: Vec<&str> = lines.collect();
        lines.dedup();
        bail!(self.explain(&lines.join("\n")))
    }

    fn explain(&self, problem: &str) -> String {
        let Kubernetes {
            context, namespace, ..
        } = self.kubernetes;
        let target = self.target.name;
        let hint = match problem {
            _ if problem.contains("context") && problem.contains("does not exist") => {
                "`context` in xtask/src/config.rs names it; `kubectl config get-contexts` lists yours".to_owned()
            }
            _ if contains_any(problem, DISCONNECTED) => format!("`kubectl --context {context} version` has to work"),
            _ if problem.contains("(Forbidden)") || problem.contains("Unauthorized") => {
                format!("`cargo xtask setup {target}` lists the rights that are missing")
            }
            _ if problem.contains("namespaces \"") && problem.contains("not found") => {
                format!("`kubectl --context {context} create namespace {namespace}`")
            }
            _ => return problem.to_owned(),
        };
        format!("{problem}\nhint: {hint}")
    }

    /// For commands in the middle of a rollout: waits for an API server that is away.
    fn patiently<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + RECONNECT_TIMEOUT;
        let mut was_away = false;
        loop {
            let error = match attempt() {
                Err(error) if Instant::now() < deadline => error,
                result => return result,
            };
            if is_disconnected(&error) {
                if !was_away {
                    let text = format!(
                        "no answer from {}; the cluster continues by itself",
                        self.name()
                    );
                    terminal::warning(&text);
                }
                was_away = true;
            } else if !(was_away && contains_any(&format!("{error:#}"), STARTING)) {
                return Err(error);
            }
            sleep(Duration::from_secs(1));
        }
    }

    fn state(&self) -> Result<State> {
        let kinds = "service,deployment,replicaset,pod";
        let template = format!("--output=go-template={}", state::TEMPLATE);
        let text = self
            .read(&["get", kinds, &self.selector(), &template])
            .with_context(|| format!("cannot read the state of {}", self.name()))?;
        State::parse(&text)
    }

    /// The state of a target that was set up.
    fn state_if_set_up(&self) -> Result<State> {
        let state = self.state()?;
        ensure!(
            state.is_set_up,
            "{} in {} is not set up\nhint: `cargo xtask setup {}`",
            self.service(),
            self.name(),
            self.target.name
        );
        Ok(state)
    }
}

fn is_disconnected(error: &anyhow::Error) -> bool {
    contains_any(&format!("{error:#}"), DISCONNECTED)
}

fn contains_any(problem: &str, words: &[&str]) -> bool {
    words.iter().any(|it| problem.contains(it))
}
