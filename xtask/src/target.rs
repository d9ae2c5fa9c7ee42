//! Targets: the names and places that a command can be given.

use std::{fmt, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    config::{DEFAULTS, NAME, TARGETS},
    kubernetes::Kubernetes,
};

#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub name: &'a str,
    /// USER@HOST each, in the order in which they switch. Empty: this machine.
    pub hosts: &'a [&'a str],
    /// The name of the units, the system user and the files on the hosts. Two targets on
    /// one host need two names. `None`, only for targets from the command line: the last part
    /// of the directory.
    pub service: Option<&'a str>,
    /// The directory on the hosts. On this machine it may be relative to the workspace.
    /// `None`: `/srv/SERVICE`.
    pub directory: Option<&'a str>,
    /// IP:PORT. A target on hosts in `TARGETS` needs this or `domain`. One from the command
    /// line may have neither: it keeps the address that its directory was set up with.
    pub listen: Option<&'a str>,
    /// Instead of `listen`: the domain to serve by https. `setup` has Caddy do that.
    pub domain: Option<&'a str>,
    /// The Cargo profile that the app is built with: see the workspace's `Cargo.toml`.
    pub profile: &'a str,
    /// Whether the old and the new version may run at the same time during a switch. Set
    /// it to `false` if two cannot run at once, for example because a database locks its
    /// file: then the old version stops before the new one starts.
    pub overlap: bool,
    /// A new version is watched for this time after it is ready, in seconds, before it
    /// becomes live.
    pub settle_secs: f32,
    /// `None`: all hosts get the new version ready before the first one switches. `Some(5)`,
    /// for large fleets: the first host switches alone and is watched for `CANARY_SECS`;
    /// then groups of five get ready and switch, one group after the other.
    pub batch: Option<usize>,
    /// Instead of `hosts`: the cluster that runs the app.
    pub kubernetes: Option<Kubernetes<'a>>,
}

/// Where a service is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    Port(SocketAddr),
    /// By https, through Caddy.
    Domain(String),
}

impl Address {
    pub fn port(listen: &str) -> Result<Address> {
        let parsed = listen.parse();
        let port =
            parsed.with_context(|| format!("the listen address {listen:?} is not IP:PORT"))?;
        Ok(Address::Port(port))
    }

    pub fn domain(name: &str) -> Result<Address> {
        let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.chars().all(known) && !label.starts_with('-')
        };
        let ends_as_name = name.ends_with(|c: char| c.is_ascii_lowercase());
        ensure!(
            name.len() <= 253
                && name.contains('.')
                && ends_as_name
                && name.split('.').all(is_label),
            "not a domain: {name:?}\nhint: write it like `www.example.com`, in lower case"
        );
        Ok(Address::Domain(name.to_owned()))
    }
}

/// The options `--listen` and `--domain`, which an ad-hoc target needs once.
#[derive(Default)]
pub struct AddressArgs {
    pub listen: Option<String>,
    pub domain: Option<String>,
}

/// A wrong use of the command line: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl<'a> Target<'a> {
    /// One of [`TARGETS`], or an ad-hoc one: `USER@HOST:/DIR`, or `/DIR` on this machine.
    pub fn find(name: Option<&'a str>, address: &'a AddressArgs) -> Result<Target<'a>> {
        let name = name.unwrap_or(TARGETS[0].name);
        match TARGETS.iter().find(|target| target.name == name) {
            Some(target) => configured(*target, address),
            None => ad_hoc(name, address),
        }
        .map_err(|error| Usage(format!("{error:#}")).into())
    }

    /// Whether the target is the developer's own machine.
    pub fn is_local(&self) -> bool {
        self.hosts.is_empty() && self.kubernetes.is_none()
    }

    pub fn directory(&self) -> String {
        match self.directory {
            Some(directory) => directory.to_owned(),
            None => format!("/srv/{}", self.service.unwrap_or(NAME)),
        }
    }

    fn check(self) -> Result<Self> {
        self.hosts.iter().try_for_each(|host| check_host(host))?;
        check_directory(&self)?;
        self.service.map_or(Ok(()), check_service)?;
        self.kubernetes.map_or(Ok(()), |it| it.check(&self))?;
        self.address()?;
        Ok(self)
    }

    /// `None` for an ad-hoc target that was set up before.
    pub fn address(&self) -> Result<Option<Address>> {
        match (self.listen, self.domain) {
            (None, None) => Ok(None),
            (Some(listen), None) => Address::port(listen).map(Some),
            (None, Some(_)) if self.is_local() => {
                bail!(
                    "a domain is for servers; `{}` is on this machine",
                    self.name
                )
            }
            (None, Some(domain)) => Address::domain(domain).map(Some),
            (Some(_), Some(_)) => bail!(
                "`{}` has both a listen address and a domain\nhint: behind a domain, the app needs no port",
                self.name
            ),
        }
    }
}

fn configured<'a>(target: Target<'a>, address: &AddressArgs) -> Result<Target<'a>> {
    ensure!(
        address.listen.is_none() && address.domain.is_none(),
        "`--listen` and `--domain` are for targets from the command line; the address of `{}` is set in xtask/src/config.rs",
        target.name
    );
    target.check()
}

fn ad_hoc<'a>(name: &'a str, address: &'a AddressArgs) -> Result<Target<'a>> {
    let (hosts, directory) = match name.split_once(":/") {
        Some((host, _)) => (vec![host].leak() as &[&str], &name[host.len() + 1..]),
        None => (&[] as &[&str], name),
    };
    if !directory.starts_with('/') {
        let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        bail!(
            "no target `{}`\n\
             hint: the targets in xtask/src/config.rs are: {}; or write `USER@HOST:/DIR`, or `/DIR` on this machine",
            name.escape_debug(),
            known.join(", ")
        );
    }
    Target {
        name,
        hosts,
        service: None,
        directory: Some(directory),
        listen: address.listen.as_deref(),
        domain: address.domain.as_deref(),
        ..DEFAULTS
    }
    .check()
}

/// ssh takes a host that begins with `-` for an option, and hands the rest to a shell.
pub fn check_host(host: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let valid = |part: &str| !part.is_empty() && !part.starts_with('-') && part.chars().all(known);
    ensure!(
        host.split('@').count() <= 2 && host.split('@').all(valid),
        "not a host: {host:?}\nhint: write USER@HOST, or a `Host` of your ~/.ssh/config"
    );
    Ok(())
}

/// A remote shell reads the directory, so only characters that no shell interprets.
fn check_directory(target: &Target) -> Result<()> {
    let directory = target.directory();
    ensure!(
        !directory.contains(char::is_control),
        "the directory {directory:?} contains a control character"
    );
    let known = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    ensure!(
        target.is_local() || directory.chars().all(known),
        "the directory {directory:?} on a server may only contain letters, digits and `._-/`"
    );
    ensure!(
        target.is_local() || directory.starts_with('/'),
        "the directory {directory:?} on a server does not begin with `/`"
    );
    Ok(())
}

/// A service name is a system user, a unit and a part of file names.
pub fn check_service(service: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    ensure!(
        service.starts_with(|c: char| c.is_ascii_lowercase())
            && service.chars().all(known)
            && service.len() <= 31,
        "the service name {service:?} must begin with a lower-case letter and consist of at most \
         31 lower-case letters, digits, `_` and `-`"
    );
    Ok(())
}
