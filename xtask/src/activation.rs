//! One attempt to make a version live, as seen by who asked for it. It runs on its
//! host by itself; here it is only followed.

use std::{
    env,
    io::{BufRead, BufReader},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use signal_hook::{consts::SIGINT, flag};
use xshell::{Shell, cmd};

use crate::{host::Host, state::State, ui, version::Version};

/// Asks the host to make the version live and waits for its verdict.
pub fn activate(sh: &Shell, host: &Host, version: &Version, sha256: &str) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    flag::register(SIGINT, Arc::clone(&interrupted))?;

    let before = host.known_state()?.activations.len();
    let mut activation = None;
    let by = who(sh)?;
    let mut end = follow(
        host,
        &["activate", &version.to_string(), sha256, &by],
        &mut activation,
    )?;
    let deadline = Instant::now() + RECONNECTING;
    while end == End::LineLost
        && host.remote.is_some()
        && !interrupted.load(Relaxed)
        && Instant::now() < deadline
    {
        let Some(activation) = activation.clone() else {
            break;
        };
        ui::step(
            "Connecting",
            &format!("to {} again: the line was lost", host.name),
        );
        host.hang_up();
        sleep(Duration::from_secs(1));
        end = follow(host, &["follow", &activation], &mut None).unwrap_or(End::LineLost);
    }
    let verdict = match end {
        End::Verdict(verdict) => Some(verdict),
        End::Silence | End::LineLost => recorded(host, version, before),
    };
    match verdict {
        Some(verdict) => conclude(host, version, &verdict),
        None => {
            let ask = format!(
                "hint: `cargo xtask status {}` tells its verdict",
                host.target
            );
            if interrupted.load(Relaxed) {
                bail!("no longer following; the activation of {version} goes on by itself\n{ask}");
            }
            bail!(
                "the activation of {version} was begun, but its verdict is not known here\n{ask}"
            );
        }
    }
}

/// How the following of an activation ends.
#[derive(PartialEq)]
enum End {
    Verdict(String),
    /// It ended without one, as in a power cut.
    Silence,
    LineLost,
}

/// Shows what the activation says.
fn follow(host: &Host, args: &[&str], activation: &mut Option<String>) -> Result<End> {
    let output = host.script(args)?.stderr_to_stdout().unchecked().reader()?;
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    // A line without an end is one that was cut.
    while output.read_until(b'\n', &mut line)? > 0 && line.pop() == Some(b'\n') {
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        let (word, rest) = text.split_once(' ').unwrap_or((&text, ""));
        match word {
            "verdict" => return Ok(End::Verdict(rest.to_owned())),
            "activation" => *activation = Some(rest.to_owned()),
            "worker" => {}
            "Installing" | "Starting" | "Watching" | "Waiting" | "Stopping" => ui::step(word, rest),
            "Warning" => ui::warning(rest),
            "|" => ui::quote(rest),
            _ => ui::quote(&text),
        }
    }
    // These two are the script's own.
    let status = output.get_ref().try_wait()?.map(|it| it.status.code());
    Ok(match status {
        Some(Some(0 | 1)) => End::Silence,
        _ => End::LineLost,
    })
}

/// How long a lost line is tried again.
const RECONNECTING: Duration = Duration::from_secs(120);

fn conclude(host: &Host, version: &Version, verdict: &str) -> Result<()> {
    if verdict == "live" {
        return Ok(());
    }
    let reason = verdict.strip_prefix("failed ").unwrap_or(verdict);
    let rest = match host.known_state() {
        Ok(State {
            live: Some(live),
            healthy: true,
            ..
        }) => format!("{live} still serves"),
        Ok(State {
            live: Some(live), ..
        }) => format!("{live} is still the live version, but does not serve"),
        Ok(_) => "nothing is live there".to_owned(),
        Err(error) => format!("what is live there is not known: {error:#}"),
    };
    bail!(
        "{version} did not become live on {}: {reason}\n{rest}",
        host.name
    );
}

/// For an activation whose words did not arrive, as from a host with a full disk.
fn recorded(host: &Host, version: &Version, before: usize) -> Option<String> {
    let state = host.state().ok()??;
    let last = state
        .activations
        .get(before..)?
        .iter()
        .rfind(|it| it.version == *version)?;
    Some(match last.verdict() {
        "live" => "live".to_owned(),
        _ => format!(
            "failed for a reason that did not arrive\nhint: `cargo xtask logs {}`",
            host.target
        ),
    })
}

/// USER@MACHINE, in letters that the host accepts.
fn who(sh: &Shell) -> Result<String> {
    let user = env::var("USER").or_else(|_| cmd!(sh, "id -un").quiet().read())?;
    let machine = cmd!(sh, "uname -n").quiet().read()?;
    let known = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let part = |text: &str| text.chars().map(known).take(40).collect::<String>();
    Ok(format!("{}@{}", part(&user), part(&machine)))
}
