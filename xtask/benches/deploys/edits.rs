//! What a developer waits for: from the edit, and from the clone, to the live version, with
//! the build.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

use crate::{
    WORKSPACE,
    apps::{self, Profile},
    cold_builds::without_ours,
    http, run,
    table::median,
    tool::{Task, Tool},
};

const ROUNDS: usize = 5;

pub struct Edits {
    /// To a server, by tool; all are 0 ms away.
    pub server: Vec<Duration>,
    pub local: Local,
}

/// To this machine.
pub struct Local {
    pub clone: Duration,
    pub handler: Duration,
    pub page: Duration,
}

pub fn measure(tools: &[Box<dyn Tool>]) -> Result<Edits> {
    Ok(Edits {
        server: to_a_server(tools)?,
        local: to_this_machine()?,
    })
}

/// We build with the profile `release` of this workspace, and the others with cargo's own. The build
/// and the deploy are two commands here for all; `cargo xtask deploy` is one.
fn to_a_server(tools: &[Box<dyn Tool>]) -> Result<Vec<Duration>> {
    let mut walls = vec![vec![]; tools.len()];
    // The first round compiles the dependencies.
    for round in 0..=ROUNDS {
        eprintln!("edit to live, round {round} of {ROUNDS}");
        for (number, tool) in tools.iter().enumerate() {
            let profile = if number == 0 {
                Profile::Ours
            } else {
                Profile::Cargos
            };
            let text = format!("edited by {number} in round {round}");
            let start = Instant::now();
            let binary = apps::build_one(&text, profile, "edited")?;
            run(&**tool, Task::Deploy(&binary))?;
            let wall = start.elapsed();
            let answer = http::get(tool.address(), "/no-such-page")?;
            ensure!(answer.body.contains(&text), "{} is not live", tool.name());
            if round > 0 {
                walls[number].push(wall);
            }
        }
    }
    Ok(walls.into_iter().map(median).collect())
}

fn to_this_machine() -> Result<Local> {
    let sh = Shell::new()?;
    let dir = sh.create_temp_dir()?;
    sh.change_dir(dir.path());
    cmd!(sh, "git clone --quiet {WORKSPACE} .").quiet().run()?;
    // Every crate is downloaded already, as for somebody who works with Rust.
    without_ours(cmd!(sh, "cargo fetch --quiet --locked")).run()?;
    eprintln!("clone to live, and edit to live on this machine");
    let local = Local {
        clone: deploy_here(&sh)?,
        handler: edit_to_live(&sh, apps::LINE_IN, apps::BEFORE)?,
        page: edit_to_live(&sh, "app/pages/index.html", "<h1")?,
    };
    without_ours(cmd!(sh, "cargo xtask stop"))
        .ignore_stderr()
        .run()?;
    Ok(local)
}

fn edit_to_live(sh: &Shell, file: &str, before: &str) -> Result<Duration> {
    let original = sh.read_file(file)?;
    let edit = |round| {
        let after = format!("edit {round} {before}");
        sh.write_file(file, original.replace(before, &after))?;
        deploy_here(sh)
    };
    Ok(median((0..ROUNDS).map(edit).collect::<Result<_>>()?))
}

fn deploy_here(sh: &Shell) -> Result<Duration> {
    let start = Instant::now();
    let deploy = without_ours(cmd!(sh, "cargo xtask deploy"));
    deploy.ignore_stderr().read()?;
    Ok(start.elapsed())
}
