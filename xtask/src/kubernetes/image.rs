//! The image: a binary and nothing else, in the registry that the cluster pulls from.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
};

use anyhow::{Context, Result, bail};
use duct::{Expression, cmd};

use super::Cluster;
use crate::{config::ENGINE, state::Arch, terminal, upload::Artifact};

/// Where images are built, in the workspace.
pub(super) const FOLDER: &str = "target/image";

impl Cluster<'_> {
    /// Pushes the artifact's image, unless it is in the registry. Returns its name with the
    /// digest.
    pub(super) fn push_version(&self, artifact: &Artifact, arch: Arch) -> Result<String> {
        let tag = format!("{}:{}", self.kubernetes.image, artifact.version);
        if engine(cmd!(ENGINE, "pull", "--quiet", &tag)).is_ok() {
            let text = format!("{tag} is in the registry already");
            terminal::step("Found", &text);
            return self.digest(&tag);
        }
        let folder = self.sh.current_dir().join(FOLDER);
        self.sh.remove_path(&folder)?;
        self.sh.create_dir(&folder)?;
        // The app finds its version at the end of its name.
        let program = format!("{}-{}.1", self.service(), artifact.version);
        fs::copy(&artifact.binary, folder.join(&program))?;
        fs::set_permissions(folder.join(&program), Permissions::from_mode(0o755))?;
        let steps = format!("COPY {program} /\nENTRYPOINT [\"/{program}\"]\n");
        self.push(&tag, arch, &steps)
    }

    /// Makes an image of these steps and pushes it. Returns its name with the digest.
    pub(super) fn push(&self, tag: &str, arch: Arch, steps: &str) -> Result<String> {
        let folder = self.sh.current_dir().join(FOLDER);
        self.sh
            .write_file(folder.join("Dockerfile"), format!("FROM scratch\n{steps}"))?;
        let mut build = vec!["build".to_owned(), "--quiet".to_owned()];
        if arch != Arch::this_machine()? {
            build.push(format!("--platform=linux/{}", arch_name(arch)));
        }
        build.extend([format!("--tag={tag}"), folder.display().to_string()]);
        terminal::step("Pushing", tag);
        engine(cmd(ENGINE, build)).context("cannot make the image")?;
        engine(cmd!(ENGINE, "push", tag)).with_context(|| {
            format!(
                "cannot push to {}\nhint: `{ENGINE} login`, if the registry wants it",
                self.kubernetes.image
            )
        })?;
        self.digest(tag)
    }

    fn digest(&self, tag: &str) -> Result<String> {
        let format = "{{range .RepoDigests}}{{println .}}{{end}}";
        let digests = engine(cmd!(ENGINE, "image", "inspect", "--format", format, tag))?;
        let image = self.kubernetes.image;
        // An engine may leave out `docker.io/`, or add it.
        let is_ours = |name: &str| name.ends_with(image) || image.ends_with(name);
        let mut digests = digests.lines().filter_map(|it| it.split_once('@'));
        let digest = digests.find(|(name, _)| is_ours(name));
        let (_, digest) = digest.with_context(|| format!("{ENGINE} knows no digest of {tag}"))?;
        Ok(format!("{image}@{digest}"))
    }

    /// What the nodes are, if we may ask; else what most are.
    pub fn arch(&self) -> Arch {
        let path = "--output=jsonpath={.items[0].status.nodeInfo.architecture}";
        match self.read(&["get", "nodes", path]).as_deref() {
            Ok("arm64") => Arch::Aarch64,
            _ => Arch::X86_64,
        }
    }
}

/// As Go and so Kubernetes call it.
pub(super) fn arch_name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "amd64",
        Arch::Aarch64 => "arm64",
    }
}

/// Returns what the container engine prints.
fn engine(command: Expression) -> Result<String> {
    let output = command
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .with_context(|| format!("cannot run `{ENGINE}`"))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
