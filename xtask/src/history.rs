//! `history`, and what it is for: `rollback`.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use xshell::Shell;

use crate::{
    JustTarget,
    activation::{self, Wanted},
    host::{Host, all, at_once},
    json,
    state::{Activation, State},
    status, ui,
    version::Version,
};

#[derive(Args)]
pub struct RollbackFlags {
    #[command(flatten)]
    at: JustTarget,
    /// How many versions back (see `history`), or a version, or a part of one
    #[arg(long, value_name = "N|VERSION", default_value = "1")]
    to: String,
    /// Show what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn rollback(sh: &Shell, flags: &RollbackFlags) -> Result<()> {
    let hosts = flags.at.hosts(sh)?;
    let states = all(at_once(&hosts, Host::known_state))?;
    let found = hosts
        .iter()
        .zip(&states)
        .map(|(host, state)| {
            find(host, state, &flags.to)
                .and_then(|version| Wanted::again(host, state, version))
                .with_context(|| format!("cannot roll back {}; nothing was changed", host.name))
        })
        .collect::<Result<Vec<_>>>()?;
    let version = only_one(&found)?;
    let (there, wanted): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|it| it.state.live.as_ref() == Some(version));
    ensure!(
        !wanted.is_empty(),
        "{version} is live\nhint: `cargo xtask restart {}`",
        hosts[0].target
    );
    for Wanted { host, .. } in there {
        ui::step("Live", &format!("{version} on {} already", host.name));
    }
    if flags.dry_run {
        for Wanted { host, state, .. } in wanted {
            let live = state
                .live
                .as_ref()
                .map_or("nothing".into(), Version::to_string);
            let what = format!("activate {version} on {}, where {live} is live", host.name);
            ui::step("Would", &what);
        }
        return Ok(());
    }
    activation::activate(sh, &wanted)?;
    println!("{version}");
    Ok(())
}

/// Where a switch of several hosts stopped half-way, one back is not the same for all.
fn only_one<'a>(found: &[Wanted<'a>]) -> Result<&'a Version> {
    let version = found[0].version;
    let line = |it: &Wanted| format!("\n  {}: {}", it.host.name, it.version);
    ensure!(
        found.iter().all(|it| it.version == version),
        "the hosts would not go back to the same version; nothing was changed:{}\n\
         hint: `--to VERSION` takes all of them to one",
        found.iter().map(line).collect::<String>()
    );
    Ok(version)
}

/// `to` is a number of versions back, or at least a part of a version's name.
fn find<'a>(host: &Host, state: &'a State, to: &str) -> Result<&'a Version> {
    let target = &host.target;
    match to.parse::<usize>() {
        Ok(0) => bail!("0 is the live version itself\nhint: `cargo xtask restart {target}`"),
        Ok(back) if to.len() <= 3 => match state.rollback.get(back) {
            Some(version) => Ok(version),
            None => bail!(
                "versions before the live one: {}\nhint: `cargo xtask history {target}`",
                state.rollback.len().saturating_sub(1)
            ),
        },
        _ => find_by_part(target, state, to),
    }
}

/// The live one, too: it may be that on some of several hosts.
fn find_by_part<'a>(target: &str, state: &'a State, part: &str) -> Result<&'a Version> {
    let mut found: Vec<&Version> = Vec::new();
    for it in state.activations.iter().filter(|it| it.is_live) {
        if it.version.to_string().contains(part) && !found.contains(&&it.version) {
            found.push(&it.version);
        }
    }
    match found[..] {
        [] => {
            bail!(
                "no version that was ever live is called {part:?}\nhint: `cargo xtask history {target}`"
            )
        }
        [version] if state.versions.contains(version) => Ok(version),
        [version] => bail!("{version} was live once, but is not kept any more"),
        _ => {
            let names: Vec<String> = found.iter().map(|it| format!("\n  {it}")).collect();
            bail!("{part:?} is a part of several versions:{}", names.concat())
        }
    }
}

pub fn history(hosts: &[Host], json: bool) -> Result<()> {
    let states = at_once(hosts, Host::known_state);
    let both = status::answered(hosts, &states);
    if json {
        println!(
            "{}",
            status::per_target(hosts, both.map(|(host, state)| to_json(host, state)))
        );
    } else {
        both.for_each(|(host, state)| print!("{}", to_text(host, state)));
    }
    all(states).map(drop)
}

fn to_json(host: &Host, state: &State) -> String {
    json::object([
        ("host", json::string(&host.name)),
        (
            "rollback",
            json::array(
                state
                    .rollback
                    .iter()
                    .map(|it| json::string(&it.to_string())),
            ),
        ),
        (
            "activations",
            json::array(state.activations.iter().map(activation_to_json)),
        ),
    ])
}

fn activation_to_json(it: &Activation) -> String {
    json::object([
        ("at", json::string(&it.at)),
        ("verdict", json::string(it.verdict())),
        ("version", json::string(&it.version.to_string())),
        ("sha256", json::string(&it.sha256)),
        ("by", json::string(&it.by)),
    ])
}

fn to_text(host: &Host, state: &State) -> String {
    let mut text = format!("{}\n", host.name);
    for (back, version) in state.rollback.iter().enumerate() {
        let what = if back == 0 {
            "live".to_owned()
        } else {
            format!("rollback --to {back}")
        };
        text += &format!("  {version}  {what}\n");
    }
    text += "\n";
    for it in state.activations.iter().rev() {
        text += &format!(
            "  {}  {:6}  {}  {}\n",
            it.at,
            it.verdict(),
            it.version,
            it.by
        );
    }
    text
}
