//! What is compared: tools that deploy, each with a server of its own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{lab::Server, proxy::Proxy, workspace::Workspace};

pub trait Tool {
    /// With its version.
    fn name(&self) -> String;
    fn server(&self) -> &Server;
    /// The line that everything it does goes through.
    fn line(&self) -> &Proxy;
    /// Nothing, where it has no such thing.
    fn command(&self, task: Task) -> Result<Option<Command>>;
    /// A script that makes the server what it was before the first deploy.
    fn reset(&self) -> &str;

    fn address(&self) -> SocketAddr {
        (self.server().ip(), 80).into()
    }
}

#[derive(Clone, Copy)]
pub enum Task<'a> {
    Deploy(&'a Path),
    /// To what was there before.
    Rollback,
    Status,
    /// `ssh HOST true`: what every way to a server costs at least.
    Login,
}

/// A server as one would have it without cutover: the app is a unit that executes a link.
pub struct Plain {
    pub server: Server,
    pub line: Proxy,
    pub workspace: Workspace,
    pub ssh_config: PathBuf,
}

impl Plain {
    pub fn set_up(server: Server, name: &str, link: &str) -> Result<Plain> {
        let workspace = Workspace::new(name);
        let line = Proxy::start((server.ip(), 22).into())?;
        let ssh_config = workspace.place.path("ssh_config");
        server.ssh_config_via(line.address(), &ssh_config)?;
        let unit = format!(
            "[Unit]\nStartLimitIntervalSec=0\n\
             [Service]\nType=notify\nUser=app\nTimeoutStopSec=35\n\
             AmbientCapabilities=CAP_NET_BIND_SERVICE\n\
             Environment=LISTEN=0.0.0.0:80\nExecStart={link}\n"
        );
        let plain = Plain {
            server,
            line,
            workspace,
            ssh_config,
        };
        run_on(
            &plain.server,
            &format!(
                "useradd --system app; mkdir -p /srv/app
                 echo '{unit}' >/etc/systemd/system/app.service; systemctl daemon-reload"
            ),
        )?;
        Ok(plain)
    }

    /// A setting of the ssh configuration for the server.
    pub fn ssh_setting(&self, key: &str) -> Result<String> {
        let text = fs::read_to_string(&self.ssh_config)?;
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let value = line.with_context(|| format!("no {key} in {text}"))?;
        Ok(value.trim().trim_matches('"').to_owned())
    }

    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let file = self.workspace.root.join(file);
        fs::create_dir_all(file.parent().context("it has a folder")?)?;
        Ok(fs::write(file, text)?)
    }

    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.workspace.root);
        command
    }
}

pub const RESET_PLAIN: &str = "systemctl stop app.service; rm -rf /srv/app/* /srv/app/.[!.]*";

pub fn run_on(server: &Server, script: &str) -> Result<String> {
    let output = server.exec(&["sh", "-c", script])?;
    ensure!(
        output.status.success(),
        "`{script}`: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// One line of what a program says its version is.
pub fn version_of(program: impl AsRef<Path>, argument: &str) -> Result<String> {
    let program = program.as_ref();
    let output = Command::new(program).arg(argument).output();
    let output = output.with_context(|| format!("there is no `{}`", program.display()))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let number = |word: &&str| word.contains('.') && word.contains(|c: char| c.is_ascii_digit());
    let words = |c: char| c.is_whitespace() || "[](),".contains(c);
    let version = said.split(words).find(number).unwrap_or("?");
    Ok(version.trim_start_matches('v').to_owned())
}
