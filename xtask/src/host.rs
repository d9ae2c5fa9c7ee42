//! A host: where the app runs, and the only place that spells `ssh` or `rsync`.

use std::{
    env, fs,
    io::{ErrorKind, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Output,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use duct::{Expression, cmd};
use xshell::Shell;

use crate::{
    config::{NAME, Target},
    state::State,
    ui::{self, Progress},
    version::Version,
};

pub struct Host {
    /// What people call it.
    pub name: String,
    /// What they called its target.
    pub target: String,
    pub directory: PathBuf,
    pub listen: Option<String>,
    pub overlap: bool,
    /// USER@HOST, or nothing for this machine.
    pub remote: Option<String>,
    connection: Mutex<Option<Arc<Connection>>>,
}

/// Does something with each host at once.
pub fn at_once<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    job: impl Fn(T) -> Result<R> + Sync,
) -> Vec<Result<R>> {
    thread::scope(|threads| {
        let job = &job;
        let begun: Vec<_> = items
            .into_iter()
            .map(|item| threads.spawn(move || job(item)))
            .collect();
        begun
            .into_iter()
            .map(|it| it.join().expect("a job does not panic"))
            .collect()
    })
}

/// With several reasons why not, people want to know all of them.
pub fn all<R>(results: Vec<Result<R>>) -> Result<Vec<R>> {
    let (done, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let mut failed = failed.into_iter().filter_map(Result::err);
    match failed.next() {
        None => done.into_iter().collect(),
        Some(first) => Err(failed.fold(first, |all, next| anyhow!("{all:#}\n{next:#}"))),
    }
}

/// What a command on the host ends with if there is no `bin/activate`.
const NOT_SET_UP: i32 = 96;

/// What ssh ends with for reasons of its own.
const LINE_LOST: i32 = 255;

impl Host {
    pub fn all(sh: &Shell, target: &Target) -> Vec<Host> {
        let host = |remote: Option<&str>| Host {
            name: remote.unwrap_or("this machine").to_owned(),
            target: target.name.to_owned(),
            directory: sh.current_dir().join(target.directory),
            listen: target.listen.map(str::to_owned),
            overlap: target.overlap,
            remote: remote.map(str::to_owned),
            connection: Mutex::default(),
        };
        if target.hosts.is_empty() {
            return vec![host(None)];
        }
        target.hosts.iter().map(|it| host(Some(it))).collect()
    }

    /// The same host, by another account.
    pub fn at(remote: String, other: &Host) -> Host {
        Host {
            name: other.name.clone(),
            target: other.target.clone(),
            directory: other.directory.clone(),
            listen: other.listen.clone(),
            overlap: other.overlap,
            remote: Some(remote),
            connection: Mutex::default(),
        }
    }

    /// `bin/activate` on this host; through sudo where one may not do it oneself.
    pub fn script(&self, args: &[&str]) -> Result<Expression> {
        let script = quote(&self.directory.join("bin/activate").to_string_lossy());
        let args: String = args.iter().map(|it| format!(" {}", quote(it))).collect();
        let sudo = match self.remote {
            Some(_) => format!("[ \"$(id -u)\" = 0 ] || exec sudo -n {script}{args}; "),
            None => String::new(),
        };
        let command = format!("[ -x {script} ] || exit {NOT_SET_UP}; {sudo}exec {script}{args}");
        Ok(self.shell(&command)?.stdin_null())
    }

    /// A command for the host's shell.
    pub fn shell(&self, command: &str) -> Result<Expression> {
        let Some(remote) = &self.remote else {
            return Ok(cmd!("sh", "-c", command));
        };
        let control = &self.connection(remote)?.control;
        let session = [
            "-S",
            &*control.to_string_lossy(),
            "-o",
            "ControlMaster=no",
            "-T",
        ];
        Ok(cmd(
            "ssh",
            [&session[..], &OPTIONS, &["--", remote, command]].concat(),
        ))
    }

    /// The one connection of this command to this host, or a new one where it was lost.
    fn connection(&self, remote: &str) -> Result<Arc<Connection>> {
        let mut connection = self.connection.lock().expect("nobody panics with it");
        match &*connection {
            Some(connection) if connection.is_open()? => Ok(Arc::clone(connection)),
            _ => Ok(Arc::clone(
                connection.insert(Arc::new(Connection::open(remote)?)),
            )),
        }
    }

    /// Gives up a line that was lost; the next command makes a new one.
    pub fn hang_up(&self) {
        self.connection
            .lock()
            .expect("nobody panics with it")
            .take();
    }

    /// What the host tells of itself; nothing if it was never set up.
    pub fn state(&self) -> Result<Option<State>> {
        let output = self
            .script(&["status"])?
            .stdout_capture()
            .stderr_capture()
            .unchecked()
            .run()?;
        match output.status.code() {
            Some(0) => State::parse(&String::from_utf8_lossy(&output.stdout)).map(Some),
            Some(NOT_SET_UP) => Ok(None),
            _ => bail!(
                "{} does not tell its state: {}",
                self.name,
                complaint(&output)
            ),
        }
    }

    /// As [`Host::state`], for commands that are nothing to a host that was never set up.
    pub fn known_state(&self) -> Result<State> {
        let directory = self.directory.display();
        self.state()?.with_context(|| match &self.remote {
            Some(name) => format!(
                "{name} is not set up for {directory}\nhint: `cargo xtask setup {} --as root`",
                self.target
            ),
            None => format!(
                "nothing was ever deployed to {directory}\nhint: `cargo xtask deploy {}`",
                self.target
            ),
        })
    }

    /// Only what differs from the live version goes over the wire, and after a cut
    /// only what had not arrived.
    pub fn rsync(
        &self,
        remote: &str,
        binary: &Path,
        to: &Path,
        basis: Option<&Version>,
    ) -> Result<()> {
        let to = to.to_string_lossy();
        if let Some(basis) = basis {
            let basis = self.directory.join(format!("versions/{NAME}-{basis}"));
            let basis = quote(&basis.to_string_lossy());
            let copy = format!("[ -e {0} ] || cp {basis} {0}", quote(&to));
            self.shell(&copy)?.unchecked().run()?;
        }
        let control = &self.connection(remote)?.control;
        let options = OPTIONS.join(" ");
        let shell = format!(
            "ssh -S {} -o ControlMaster=no -T {options}",
            control.display()
        );
        let rsync = cmd!(
            "rsync",
            "--compress",
            "--ignore-times", // the basis may have the new one's size and time
            "--inplace",
            "--partial",
            "--progress",
            "--rsh",
            shell,
            "--",
            binary,
            format!("{remote}:{to}")
        );
        let mut output = rsync.reader()?;
        let mut progress = Progress::new(format!("of it sent to {}", self.name));
        let mut said = [0; 1024];
        loop {
            let len = output.read(&mut said).with_context(|| {
                format!(
                    "the upload to {} failed; nothing was changed there",
                    self.name
                )
            })?;
            if len == 0 {
                return Ok(());
            }
            if let Some(percent) = last_percentage(&String::from_utf8_lossy(&said[..len])) {
                progress.at(percent);
            }
        }
    }

    /// Where to look at the app, `listen` being what the host was set up with.
    pub fn url(&self, listen: &str) -> String {
        let host = self
            .remote
            .as_deref()
            .map(|it| it.rsplit('@').next().unwrap_or(it));
        let address = listen
            .replace("0.0.0.0", host.unwrap_or("127.0.0.1"))
            .replace("[::]", host.unwrap_or("[::1]"));
        format!("http://{address}")
    }
}

/// One authenticated connection that ssh and rsync share. It ends with this value.
struct Connection {
    control: PathBuf,
    master: duct::Handle,
}

/// A dead host is an error in seconds, not a hang.
const OPTIONS: [&str; 8] = [
    "-o",
    "ControlPersist=no",
    "-o",
    "ConnectTimeout=10",
    "-o",
    "ServerAliveInterval=5",
    "-o",
    "ServerAliveCountMax=3",
];

impl Connection {
    fn open(remote: &str) -> Result<Connection> {
        ui::step("Connecting", &format!("to {remote}"));
        let control = control_path()?;
        let socket = control.to_string_lossy();
        let args = [
            &["-M", "-N", "-T", "-S", &*socket][..],
            &OPTIONS,
            &["--", remote],
        ]
        .concat();
        let master = cmd("ssh", args)
            .stdin_null()
            .stdout_null()
            .unchecked()
            .start();
        let master = master.context("cannot run `ssh`")?;
        // It makes the socket once it is let in.
        let connection = Connection { control, master };
        while !connection.control.exists() {
            if !connection.is_open()? {
                bail!("cannot connect to {remote}; what ssh said is above");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(connection)
    }

    fn is_open(&self) -> Result<bool> {
        Ok(self.master.try_wait()?.is_none())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.master.kill();
        if let Some(dir) = self.control.parent() {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// Short, since a socket's path is at most about 100 bytes long, and nobody else's: one
/// that is there is of a killed client that had the same pid.
fn control_path() -> Result<PathBuf> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let count = COUNT.fetch_add(1, Relaxed);
        let dir = env::temp_dir().join(format!("cutover-{}-{count}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => {
                made.with_context(|| format!("cannot make {}", dir.display()))?;
                return Ok(dir.join("ssh"));
            }
        }
    }
}

/// Of rsync's words, ` 1,234,567  12%  1.20MB/s  0:00:07`.
fn last_percentage(text: &str) -> Option<usize> {
    let (before, _) = text.rsplit_once('%')?;
    before.rsplit(' ').next()?.parse().ok()
}

/// ssh hands its arguments to a shell, joined by spaces: here is one that stays one.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn complaint(output: &Output) -> String {
    match output.status.code() {
        Some(LINE_LOST) => "the line was lost".to_owned(),
        _ => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    }
}
