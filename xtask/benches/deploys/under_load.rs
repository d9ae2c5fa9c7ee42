//! What clients notice: they ask all the time, beside the line that is used to deploy.

use std::{thread::sleep, time::Duration};

use anyhow::Result;

use crate::{
    apps::Apps,
    load::{Connections, Load, Report},
    run,
    tool::{Task, Tool},
};

pub struct UnderLoad {
    /// Of new and of kept connections each, without deploys and with.
    pub calm: [Report; 2],
    pub deploys: [Report; 2],
}

pub const DEPLOYS: usize = 5;

pub fn measure_all(tools: &[Box<dyn Tool>], apps: &Apps) -> Result<Vec<UnderLoad>> {
    let each = tools.iter().map(|tool| {
        eprintln!("{} under load", tool.name());
        measure(&**tool, apps)
    });
    each.collect()
}

fn measure(tool: &dyn Tool, apps: &Apps) -> Result<UnderLoad> {
    run(tool, Task::Deploy(&apps.first))?;
    let calm = start(tool);
    sleep(Duration::from_secs(4));
    let calm = calm.map(Load::stop);

    let loads = start(tool);
    for binary in [&apps.changed, &apps.first]
        .into_iter()
        .cycle()
        .take(DEPLOYS)
    {
        run(tool, Task::Deploy(binary))?;
        sleep(Duration::from_secs(1));
    }
    let deploys = loads.map(Load::stop);
    Ok(UnderLoad { calm, deploys })
}

/// Paced: a kernel remembers each new connection for minutes, and only so many of them.
fn start(tool: &dyn Tool) -> [Load; 2] {
    [
        Load::start(tool.address(), 4, Connections::New),
        Load::start(tool.address(), 4, Connections::KeptAlive),
    ]
}
