//! Everything that is yours to set. A mistake here is a compile error.

use std::{fmt, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};

/// The app's package and binary; on a server also its units and its user.
pub const NAME: &str = "app";

/// Where `cargo xtask deploy NAME` goes. Without a NAME it goes to the first one.
pub const TARGETS: &[Target] = &[
    Target {
        name: "local",
        directory: "target/local",
        listen: Some("127.0.0.1:3000"),
        ..DEFAULTS
    },
    // Target {
    //     name: "production",
    //     hosts: &["deploy@web1.example.com"],
    //     listen: Some("0.0.0.0:80"),
    //     ..DEFAULTS
    // },
];

const DEFAULTS: Target = Target {
    name: "",
    hosts: &[],
    directory: "/srv/app",
    listen: None,
    overlap: true,
};

/// What runs the builder: `docker`, or `podman`.
pub const ENGINE: &str = "docker";

/// An image with a Rust for static musl binaries. `{arch}` is the host's.
pub const BUILDER: &str = "ghcr.io/rust-cross/rust-musl-cross:{arch}-musl";

/// How long a new version may take until it says that it is ready, in seconds.
pub const READY: u32 = 10;

/// How long a new version, once ready, is watched before it is made live, in seconds.
pub const SETTLE: f32 = 1.0;

/// How long an old version may take to finish what it has begun, in seconds. It is
/// killed a little later.
pub const DRAIN: u32 = 30;

/// How many versions that were once live are kept for a rollback.
pub const KEEP: u32 = 5;

#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub name: &'a str,
    /// USER@HOST each, switched one after the other in this order. Without any it is
    /// this machine.
    pub hosts: &'a [&'a str],
    /// A relative one is within the workspace.
    pub directory: &'a str,
    /// IP:PORT. None is for an ad-hoc target: as it was set up.
    pub listen: Option<&'a str>,
    /// Whether two versions may run at once, for the moment of a switch. Not with an
    /// embedded database that locks its file: there the old one stops first.
    pub overlap: bool,
}

/// What was asked for cannot be meant: exit code 2.
#[derive(Debug)]
pub struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl<'a> Target<'a> {
    /// Where nobody but its developer is served.
    pub fn is_local(&self) -> bool {
        self.hosts.is_empty()
    }

    /// One of [`TARGETS`], or ad hoc: `/dir` for this machine.
    pub fn find(name: Option<&'a str>, listen: Option<&'a str>) -> Result<Target<'a>> {
        Target::parse(name, listen).map_err(|error| Usage(format!("{error:#}")).into())
    }

    fn parse(name: Option<&'a str>, listen: Option<&'a str>) -> Result<Target<'a>> {
        let name = name.unwrap_or(TARGETS[0].name);
        if let Some(target) = TARGETS.iter().find(|it| it.name == name) {
            ensure!(
                listen.is_none(),
                "`--listen` is for ad-hoc targets; `{name}` is set in xtask/src/config.rs"
            );
            target.check_hosts()?;
            return Ok(*target);
        }
        let (hosts, directory) = match name.split_once(":/") {
            Some((host, _)) => (vec![host].leak() as &[&str], &name[host.len() + 1..]),
            None => (&[] as &[&str], name),
        };
        if !directory.starts_with('/') {
            let known: Vec<&str> = TARGETS.iter().map(|it| it.name).collect();
            bail!(
                "no target `{name}`; there is {}, and ad hoc `USER@HOST:/DIR`, or `/DIR` on this machine",
                known.join(", ")
            );
        }
        ensure!(
            !name.contains(char::is_control),
            "the directory {name:?} has a control character in its name"
        );
        if let Some(listen) = listen {
            let parsed = listen.parse::<SocketAddr>();
            parsed.with_context(|| format!("`--listen {listen}` is not IP:PORT"))?;
        }
        let target = Target {
            name,
            hosts,
            directory,
            listen,
            ..DEFAULTS
        };
        target.check_hosts()?;
        Ok(target)
    }

    fn check_hosts(&self) -> Result<()> {
        self.hosts.iter().try_for_each(|host| check_host(host))?;
        let known = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        ensure!(
            self.hosts.is_empty() || self.directory.chars().all(known),
            "the directory {:?} may have letters, digits and `._-/` on a server",
            self.directory
        );
        Ok(())
    }
}

/// ssh takes a host that begins with `-` for an option, and hands the rest to a shell.
pub fn check_host(host: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let part = |it: &str| !it.is_empty() && !it.starts_with('-') && it.chars().all(known);
    ensure!(
        host.split('@').count() <= 2 && host.split('@').all(part),
        "not a host: {host:?}\nhint: USER@HOST, or a `Host` of your ~/.ssh/config"
    );
    Ok(())
}
