//! This project's own column.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use crate::{
    lab::Server,
    proxy::Proxy,
    site::Site,
    tool::{Task, Tool, run_on},
};

pub struct Cutover {
    site: Site,
    line: Proxy,
}

pub fn start() -> Result<Cutover> {
    let site = Site::set_up("cutover");
    let line = Proxy::start((site.server.ip(), 22).into())?;
    let config = site.workspace.place.path("ssh_config");
    fs::remove_file(&config)?;
    site.server.ssh_config_via(line.address(), &config)?;
    Ok(Cutover { site, line })
}

impl Cutover {
    /// How long a new version is watched before it is live, in seconds.
    pub fn settle(&self) -> Result<f64> {
        let settings = run_on(&self.site.server, "cat /srv/app/settings")?;
        let settle = settings.split_whitespace();
        let settle = settle.filter_map(|it| it.strip_prefix("settle=")).next();
        Ok(settle.context("no settle in the settings")?.parse()?)
    }
}

impl Tool for Cutover {
    fn name(&self) -> String {
        "cutover".to_owned()
    }

    fn server(&self) -> &Server {
        &self.site.server
    }

    fn line(&self) -> &Proxy {
        &self.line
    }

    fn command(&self, task: Task) -> Result<Option<Command>> {
        let target = self.site.target();
        Ok(Some(match task {
            Task::Deploy(binary) => {
                fs::copy(binary, self.site.workspace.root.join("binary"))?;
                self.site.command(&["deploy", &target, "--build", "host"])
            }
            Task::Rollback => self.site.command(&["rollback", &target]),
            Task::Status => self.site.command(&["status", &target]),
            Task::Login => {
                let mut ssh = Command::new(self.site.workspace.place.path("shims/ssh"));
                ssh.args([&*format!("deploy@{}", self.site.name), "true"]);
                ssh
            }
        }))
    }

    fn reset(&self) -> &str {
        "systemctl stop app.socket app.service 'app@*.service'; cd /srv/app
         rm -rf current history versions/* incoming/* run/* log/*; true >lock"
    }
}
