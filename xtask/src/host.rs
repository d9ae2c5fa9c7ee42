//! A host: this machine or one behind ssh, and what its `bin/activate` can be asked.

use std::{path::PathBuf, sync::Mutex};

use anyhow::{Context, Result, bail};
use duct::{Expression, cmd};
use xshell::Shell;

use crate::{
    session::Session,
    ssh::{self, Remote, quote},
    state::State,
    target::{Address, Target, check_host},
    version::Version,
};

/// Our command's exit code on a host that has no `bin/activate`.
pub const NOT_SET_UP: i32 = 96;

pub struct Host<'a> {
    pub target: Target<'a>,
    pub directory: PathBuf,
    /// `None`: this machine.
    pub remote: Option<Remote>,
    /// A session that has told the state and waits for a request.
    waiting: Mutex<Option<Session>>,
}

impl<'a> Host<'a> {
    /// All hosts of a target.
    pub fn all(sh: &Shell, target: Target<'a>) -> Vec<Host<'a>> {
        let directory = sh.current_dir().join(target.directory());
        let host = |remote: Option<&&str>| Host {
            target,
            directory: directory.clone(),
            remote: remote.map(|address| Remote::new((*address).to_owned())),
            waiting: Mutex::default(),
        };
        if target.is_local() {
            return vec![host(None)];
        }
        target.hosts.iter().map(|it| host(Some(it))).collect()
    }

    /// The same host, reached as a user who is root or may use sudo. `None`: as the target
    /// says.
    pub fn for_admin(&self, user: Option<&str>) -> Result<Host<'a>> {
        let remote = match (&self.remote, user) {
            (Some(remote), Some(user)) => {
                let address = &remote.address;
                let machine = address.rsplit('@').next().unwrap_or(address);
                let address = format!("{user}@{machine}");
                check_host(&address)?;
                Some(Remote::new(address))
            }
            (Some(remote), None) => Some(Remote::new(remote.address.clone())),
            (None, _) => None,
        };
        Ok(Host {
            target: self.target,
            directory: self.directory.clone(),
            remote,
            waiting: Mutex::default(),
        })
    }

    pub fn name(&self) -> &str {
        self.remote
            .as_ref()
            .map_or("this machine", |remote| &remote.address)
    }

    /// The host's state.
    pub fn state(&self) -> Result<State> {
        self.state_if_set_up()?
            .with_context(|| self.not_set_up_message("deploy"))
    }

    /// The host's state, or `None` if it was never set up.
    pub fn state_if_set_up(&self) -> Result<Option<State>> {
        let Some((state, session)) = self.open_session()? else {
            return Ok(None);
        };
        *self.waiting.lock().expect("not poisoned") = Some(session);
        Ok(Some(state))
    }

    /// Sends a request, whose arguments are single words. The answer is read from the
    /// session. The session that has told the state is used, if it is still open.
    pub fn request(&self, words: &[&str]) -> Result<Session> {
        let waiting = self.waiting.lock().expect("not poisoned").take();
        let mut session = match waiting.filter(Session::is_open) {
            Some(session) => session,
            None => {
                let opened = self.open_session()?;
                opened.with_context(|| self.not_set_up_message("deploy"))?.1
            }
        };
        session.send_line(&words.join(" "));
        Ok(session)
    }

    /// A command for the host's shell.
    pub fn shell(&self, command: &str) -> Result<Expression> {
        match &self.remote {
            Some(remote) => remote.shell(command),
            None => Ok(cmd!("sh", "-c", command)),
        }
    }

    /// Lets the next command open a new connection.
    pub fn drop_connection(&self) {
        if let Some(remote) = &self.remote {
            remote.drop_connection();
        }
    }

    /// An installed file of the service.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The file of a version, in `incoming/` or `versions/`.
    pub fn version_file(&self, folder: &str, state: &State, version: &Version) -> PathBuf {
        self.path(folder)
            .join(format!("{}-{version}", state.service))
    }

    /// The URL of the app, whose address the host was set up with.
    pub fn url(&self, address: &Address) -> String {
        let port = match address {
            Address::Domain(domain) => return format!("https://{domain}"),
            Address::Port(port) => port.to_string(),
        };
        let host = self.remote.as_ref().map(|remote| {
            let address = &remote.address;
            address.rsplit('@').next().unwrap_or(address)
        });
        let address = port
            .replace("0.0.0.0", host.unwrap_or("127.0.0.1"))
            .replace("[::]", host.unwrap_or("[::1]"));
        format!("http://{address}")
    }

    /// Opening a session takes two round trips until it says anything. So the session
    /// that tells the state then waits for a request.
    fn open_session(&self) -> Result<Option<(State, Session)>> {
        let mut session = Session::open(self.script("session")?)?;
        let mut said = Vec::new();
        while let Some(line) = session.read_line()? {
            if line.is_empty() {
                return Ok(Some((self.accept(State::parse(&said)?)?, session)));
            }
            said.push(line);
        }
        match session.exit_code() {
            Some(NOT_SET_UP) => Ok(None),
            None | Some(ssh::DISCONNECTED) => {
                bail!("cannot read the state of {}: connection lost", self.name())
            }
            _ => bail!(
                "cannot read the state of {}: {}\n\
                 hint: `cargo xtask setup {}` installs the script of this repo",
                self.name(),
                said.join("\n"),
                self.target.name
            ),
        }
    }

    /// `bin/activate` with these words, through sudo for anybody but root.
    pub fn script(&self, words: &str) -> Result<Expression> {
        let script = quote(&self.path("bin/activate").to_string_lossy());
        let sudo = match self.remote {
            Some(_) => format!("[ \"$(id -u)\" = 0 ] || exec sudo -n {script} {words}; "),
            None => String::new(),
        };
        self.shell(&format!(
            "[ -x {script} ] || exit {NOT_SET_UP}; {sudo}exec {script} {words}"
        ))
    }

    /// A directory that another target was set up in is not touched.
    fn accept(&self, state: State) -> Result<State> {
        match self.target.service {
            Some(service) if service != state.service => bail!(
                "{} on {} belongs to the service `{}`, and the target `{}` is the service `{service}`\n\
                 hint: give the target another `directory` in xtask/src/config.rs",
                self.directory.display(),
                self.name(),
                state.service,
                self.target.name
            ),
            _ => Ok(state),
        }
    }

    /// `here` is the command that sets up this machine.
    pub fn not_set_up_message(&self, here: &str) -> String {
        let directory = self.directory.display();
        let target = self.target.name;
        match &self.remote {
            Some(remote) => format!(
                "{directory} on {} is not set up\nhint: `cargo xtask setup {target} --as root`",
                remote.address
            ),
            None => format!(
                "nothing was ever deployed to {directory}\nhint: `cargo xtask {here} {target}`"
            ),
        }
    }
}
