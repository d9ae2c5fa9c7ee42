//! `setup`: checks what a cluster needs before the first deploy, and applies the Service.

use anyhow::{Result, bail, ensure};

use super::{Cluster, Kubernetes, image::arch_name};
use crate::{
    builder::check_engine, parallel::parallel_map, rollout::user_at_machine, target::Target,
    terminal,
};

/// What the commands do in the namespace: `auth can-i` words.
const RIGHTS: &[&str] = &[
    "get services",
    "list services",
    "create services",
    "patch services",
    "list deployments.apps",
    "get deployments.apps",
    "create deployments.apps",
    "patch deployments.apps",
    "delete deployments.apps",
    "list replicasets.apps",
    "get replicasets.apps",
    "patch replicasets.apps",
    "delete replicasets.apps",
    "list pods",
    "get pods",
    "watch pods",
    "get pods --subresource=log",
    "get poddisruptionbudgets.policy",
    "create poddisruptionbudgets.policy",
    "patch poddisruptionbudgets.policy",
    "get secrets",
    "create secrets",
    "patch secrets",
];

impl Kubernetes<'_> {
    pub fn check(&self, target: &Target) -> Result<()> {
        let name = target.name;
        ensure!(
            target.hosts.is_empty()
                && target.directory.is_none()
                && target.listen.is_none()
                && target.domain.is_none()
                && target.batch.is_none()
                && target.overlap,
            "`{name}` is on Kubernetes, so it has no hosts, directory, address or batch, and its \
             versions overlap"
        );
        let is_option = |value: &str| value.is_empty() || value.starts_with('-');
        ensure!(
            !is_option(self.context) && !is_option(self.namespace) && !is_option(self.image),
            "`{name}` needs a context, a namespace and an image"
        );
        let last = self.image.rsplit('/').next().unwrap_or_default();
        ensure!(
            !last.contains([':', '@']),
            "the image {:?} has a tag\nhint: leave it out; each version is a tag",
            self.image
        );
        ensure!(self.replicas > 0, "`{name}` has no replicas");
        let service = target.service.unwrap_or(name);
        ensure!(
            !service.contains('_'),
            "the service name {service:?} has a `_`, which Kubernetes does not allow"
        );
        Ok(())
    }
}

impl Cluster<'_> {
    pub fn setup(&self) -> Result<()> {
        let policy = self.check_cluster()?;
        let problems: Vec<String> = [self.missing_rights(), self.engine_problem()]
            .into_iter()
            .flatten()
            .collect();
        ensure!(
            problems.is_empty(),
            "{} is not set up; nothing was changed there\n{}",
            self.name(),
            problems.join("\n")
        );
        let applied = self.apply(&self.service_manifest(&policy)?, "name")?;
        for name in applied.lines() {
            terminal::step("Applied", &format!("{name} in {}", self.name()));
        }
        self.replace_edited()
    }

    /// Returns the API of disruption budgets, whose name depends on the cluster's age.
    fn check_cluster(&self) -> Result<String> {
        let versions = self.read(&["api-versions"])?;
        let namespace = self.read(&["get", "namespace", self.kubernetes.namespace]);
        if let Err(error) = namespace
            && !error.to_string().contains("(Forbidden)")
        {
            bail!(error);
        }
        let policy = ["policy/v1", "policy/v1beta1"];
        let policy = policy
            .iter()
            .find(|it| versions.lines().any(|line| line == **it));
        Ok(policy.unwrap_or(&"policy/v1").to_string())
    }

    fn missing_rights(&self) -> Option<String> {
        let ask = |right: &&str| {
            let words = ["auth", "can-i", "--quiet"].into_iter();
            let words: Vec<&str> = words.chain(right.split(' ')).collect();
            self.kubectl(&words).unchecked()
        };
        let questions = RIGHTS.iter().map(ask);
        let may = parallel_map(questions, |it| it.run().is_ok_and(|it| it.status.success()));
        let missing = RIGHTS.iter().zip(may).filter(|(_, may)| !may);
        let missing: Vec<&str> = missing.map(|(right, _)| *right).collect();
        (!missing.is_empty()).then(|| {
            format!(
                "you may not: {}\nhint: let an administrator create a Role with these rights and a RoleBinding for you",
                missing.join(", ")
            )
        })
    }

    /// An empty image shows whether the registry takes one.
    fn engine_problem(&self) -> Option<String> {
        let push = || {
            check_engine()?;
            self.sh.create_dir(super::image::FOLDER)?;
            let tag = format!("{}:setup", self.kubernetes.image);
            self.push(&tag, self.arch(), "LABEL cutover=setup\n")
        };
        push().err().map(|error| format!("{error:#}"))
    }

    /// A Deployment that was edited by hand becomes what the manifest says again, with the
    /// version that we have made live. The pods outlive the edited one, and serve meanwhile.
    fn replace_edited(&self) -> Result<()> {
        let state = self.state()?;
        let is_edited = state
            .deployment
            .as_ref()
            .is_some_and(|it| it.editor.is_some());
        let Some(live) = state.noted().filter(|_| is_edited) else {
            return Ok(());
        };
        let (version, arch) = (live.version.to_string(), arch_name(self.arch()));
        let by = user_at_machine(self.sh)?;
        let manifest = self.deployment_manifest(&version, &live.image, arch, &by)?;
        self.read(&["delete", "--cascade=orphan", &self.deployment()])?;
        self.patiently(|| self.apply(&manifest, "name"))?;
        terminal::step(
            "Applied",
            &format!("{} in {}", self.deployment(), self.name()),
        );
        Ok(())
    }
}
