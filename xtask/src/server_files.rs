//! The files that `setup` installs on a host, with the target's values filled in.

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    config::{DRAIN_SECS, KEEP_VERSIONS, READY_TIMEOUT_SECS},
    host::Host,
    placeholders,
    state::State,
    target::Address,
    version,
};

/// `bin/activate`: its core and its managers.
pub const ACTIVATE: &str = concat!(
    include_str!("../server/activate.sh"),
    include_str!("../server/systemd.sh"),
    include_str!("../server/nohup.sh"),
    "\nmain \"$@\"\n"
);

/// systemd kills an instance that still runs this long after its drain, in seconds.
const STOP_MARGIN_SECS: u32 = 5;

/// A unit: its name without the service's, its template, and the placeholders it needs.
type Unit = (&'static str, &'static str, &'static [&'static str]);

const PORT_SOCKET: Unit = (
    ".socket",
    include_str!("../../systemd/service.socket"),
    &["LISTEN"],
);

/// Takes its place behind Caddy.
const HTTPS_SOCKET: Unit = (
    ".socket",
    include_str!("../../systemd/https.socket"),
    &["LISTEN"],
);

const SERVICES: [Unit; 2] = [
    (
        ".service",
        include_str!("../../systemd/service.service"),
        &["DIRECTORY"],
    ),
    (
        "@.service",
        include_str!("../../systemd/service@.service"),
        &[
            "DIRECTORY",
            "DRAIN_SECS",
            "READY_TIMEOUT_SECS",
            "STOP_TIMEOUT_SECS",
        ],
    ),
];

/// Caddy's own files, as (path, content).
const CADDY: [(&str, &str); 2] = [
    ("/etc/caddy/Caddyfile", include_str!("../server/Caddyfile")),
    (
        "/etc/systemd/system/caddy.service.d/cutover.conf",
        include_str!("../server/caddy.conf"),
    ),
];

/// A host with a script of another version would not do what this client expects.
pub fn check_script(host: &Host, state: &State) -> Result<()> {
    if state.script != version::sha256(ACTIVATE.as_bytes()) {
        bail!(
            "bin/activate on {} is not the one of this repo\nhint: `cargo xtask setup {}`",
            host.name(),
            host.target.name
        );
    }
    Ok(())
}

/// The service's name: the target's, or for an ad-hoc target the directory's last part.
pub fn service(host: &Host) -> Result<String> {
    if let Some(service) = host.target.service {
        return Ok(service.to_owned());
    }
    let last = host.directory.file_name().context("`/` cannot be used")?;
    let last = last.to_string_lossy();
    if host.remote.is_some() {
        return Ok(last.into_owned());
    }
    // On this machine there are no units and no user to name, so any directory will do.
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let safe = last.to_ascii_lowercase().replace(|c| !known(c), "-");
    let safe = if safe.starts_with(|c: char| c.is_ascii_lowercase()) {
        safe
    } else {
        format!("app{safe}")
    };
    Ok(safe.chars().take(31).collect())
}

/// `settings`, which bin/activate reads. A shell reads it, so every value is checked.
pub fn settings(host: &Host, service: &str, address: &Address) -> String {
    let manager = match host.remote {
        Some(_) => "systemd",
        None => "nohup",
    };
    let listen = listen(service, address);
    let domain = match address {
        Address::Domain(domain) => format!(" domain={domain}"),
        Address::Port(_) => String::new(),
    };
    format!(
        "service={service} manager={manager} listen={listen}{domain} overlap={}\n\
         ready={READY_TIMEOUT_SECS} settle={} drain={DRAIN_SECS} keep={KEEP_VERSIONS}\n",
        host.target.overlap, host.target.settle_secs
    )
}

/// The units, and what Caddy needs, as (path, content).
pub fn units(host: &Host, service: &str, address: &Address) -> Result<Vec<(String, String)>> {
    let listen = listen(service, address);
    let values: &[(&str, &str)] = &[
        ("DIRECTORY", &host.directory.to_string_lossy()),
        ("LISTEN", &listen),
        ("READY_TIMEOUT_SECS", &READY_TIMEOUT_SECS.to_string()),
        ("DRAIN_SECS", &DRAIN_SECS.to_string()),
        (
            "STOP_TIMEOUT_SECS",
            &(DRAIN_SECS + STOP_MARGIN_SECS).to_string(),
        ),
    ];
    let socket = match address {
        Address::Port(_) => PORT_SOCKET,
        Address::Domain(_) => HTTPS_SOCKET,
    };
    let unit = |(kind, template, required): &Unit| {
        let path = format!("/etc/systemd/system/{service}{kind}");
        let file = format!("systemd/service{kind}");
        Ok((path, placeholders::fill(&file, template, values, required)?))
    };
    let units = [&socket].into_iter().chain(&SERVICES).map(unit);
    let mut files = units.collect::<Result<Vec<_>>>()?;
    if let Address::Domain(domain) = address {
        files.extend(CADDY.map(|(path, content)| (path.to_owned(), content.to_owned())));
        files.push(site(service, domain, &listen)?);
    }
    Ok(files)
}

/// The service's site, which Caddy's configuration imports.
fn site(service: &str, domain: &str, listen: &str) -> Result<(String, String)> {
    let template = include_str!("../../systemd/https.caddy");
    let values = [("DOMAIN", domain), ("LISTEN", listen)];
    let site = placeholders::fill(
        "systemd/https.caddy",
        template,
        &values,
        &["DOMAIN", "LISTEN"],
    )?;
    Ok((format!("/etc/caddy/sites/{service}.caddy"), site))
}

/// Where the app listens.
fn listen(service: &str, address: &Address) -> String {
    match address {
        Address::Port(port) => port.to_string(),
        Address::Domain(_) => format!("/run/{service}/http.sock"),
    }
}

/// The target's address, or the one that the host was set up with.
pub fn address(host: &Host) -> Result<Address> {
    if let Some(address) = host.target.address()? {
        return Ok(address);
    }
    let options = match host.remote {
        Some(_) => "`--domain www.example.com` or `--listen 0.0.0.0:80`",
        None => "`--listen 127.0.0.1:3001`",
    };
    let hint = format!(
        "\nhint: add {options} to the first command for {}",
        host.target.name
    );
    let state = host
        .state_if_set_up()
        .map_err(|error| anyhow!("{error:#}{hint}"))?
        .with_context(|| format!("the target has no address{hint}"))?;
    Ok(state.address)
}
