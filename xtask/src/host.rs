//! A host: where the app runs, and the only place that spells `ssh` or `rsync`.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Read, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use duct::{Expression, ReaderHandle, cmd};
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
    /// One that told its state, and waits for what shall be done.
    session: Mutex<Option<Session>>,
}

/// A command on a host that is told, and tells, line by line.
pub struct Session {
    pub input: PipeWriter,
    pub output: BufReader<ReaderHandle>,
}

impl Session {
    pub fn begin(command: Expression) -> Result<Session> {
        let command = command.stderr_to_stdout().unchecked();
        let (input, output) = with_input(|it| command.stdin_file(it).reader())?;
        let output = BufReader::new(output);
        Ok(Session { input, output })
    }

    fn is_open(&self) -> bool {
        matches!(self.output.get_ref().try_wait(), Ok(None))
    }

    /// What it ended with, once all of its output was read.
    pub fn code(&self) -> Option<i32> {
        self.output.get_ref().try_wait().ok()??.status.code()
    }
}

/// Starts a process, to which the input is open that is returned. Elsewhere than on Linux
/// a new pipe is, for a moment, also that of whatever else is started: so one by one.
fn with_input<T>(start: impl FnOnce(PipeReader) -> io::Result<T>) -> Result<(PipeWriter, T)> {
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());
    let _one = ONE_BY_ONE.lock().expect("nobody panics with it");
    let (output, input) = io::pipe()?;
    Ok((input, start(output)?))
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
pub const LINE_LOST: i32 = 255;

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
            session: Mutex::default(),
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
            session: Mutex::default(),
        }
    }

    /// `bin/activate` on this host; through sudo where one may not do it oneself.
    fn script(&self, args: &[&str]) -> Result<Expression> {
        let script = quote(&self.directory.join("bin/activate").to_string_lossy());
        let args: String = args.iter().map(|it| format!(" {}", quote(it))).collect();
        let sudo = match self.remote {
            Some(_) => format!("[ \"$(id -u)\" = 0 ] || exec sudo -n {script}{args}; "),
            None => String::new(),
        };
        self.shell(&format!(
            "[ -x {script} ] || exit {NOT_SET_UP}; {sudo}exec {script}{args}"
        ))
    }

    /// `bin/activate` with these arguments, for people to read what it says.
    pub fn show(&self, args: &[&str]) -> Result<()> {
        let shown = self.script(args)?.stdin_null().unchecked().run()?;
        match shown.status.code() {
            Some(0) => Ok(()),
            Some(NOT_SET_UP) => bail!(self.is_not_set_up()),
            _ => bail!("no {} of {}; why not is above", args[0], self.name),
        }
    }

    /// `bin/activate` with these arguments, each a single word, to talk with.
    pub fn talk(&self, args: &[&str]) -> Result<Session> {
        let begun = self.session.lock().expect("nobody panics with it").take();
        let mut session = match begun.filter(Session::is_open) {
            Some(session) => session,
            None => {
                let begun = self.begin_to_talk()?;
                begun.with_context(|| self.is_not_set_up())?.1
            }
        };
        // That nobody reads it shows in what it says.
        let _ = writeln!(session.input, "{}", args.join(" "));
        Ok(session)
    }

    /// A session takes two round trips until it says anything. So the one that
    /// tells the host's state waits for what shall be done then.
    fn begin_to_talk(&self) -> Result<Option<(State, Session)>> {
        let mut session = Session::begin(self.script(&["talk"])?)?;
        let mut said = Vec::new();
        while session.output.read_until(b'\n', &mut said)? > 1 {}
        let said = String::from_utf8_lossy(&said);
        if let Some(state) = said.strip_suffix("\n\n") {
            return Ok(Some((State::parse(state)?, session)));
        }
        let name = &self.name;
        match session.code() {
            Some(NOT_SET_UP) => Ok(None),
            None | Some(LINE_LOST) => bail!("{name} does not tell its state: the line was lost"),
            _ => bail!(
                "{name} does not tell its state: {}\n\
                 hint: `cargo xtask setup {}` makes it as this repo has it",
                said.trim(),
                self.target
            ),
        }
    }

    /// A command for the host's shell.
    pub fn shell(&self, command: &str) -> Result<Expression> {
        let Some(remote) = &self.remote else {
            return Ok(cmd!("sh", "-c", command));
        };
        let mut args = self.connection(remote)?.session();
        args.extend(["--", remote, command].map(str::to_owned));
        Ok(cmd("ssh", args))
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
        let Some((state, session)) = self.begin_to_talk()? else {
            return Ok(None);
        };
        *self.session.lock().expect("nobody panics with it") = Some(session);
        Ok(Some(state))
    }

    /// As [`Host::state`], for commands that are nothing to a host that was never set up.
    pub fn known_state(&self) -> Result<State> {
        self.state()?.with_context(|| self.is_not_set_up())
    }

    fn is_not_set_up(&self) -> String {
        let directory = self.directory.display();
        match &self.remote {
            Some(name) => format!(
                "{name} is not set up for {directory}\nhint: `cargo xtask setup {} --as root`",
                self.target
            ),
            None => format!(
                "nothing was ever deployed to {directory}\nhint: `cargo xtask deploy {}`",
                self.target
            ),
        }
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
            let basis = quote(&self.installed(basis).to_string_lossy());
            let copy = format!("[ -s {0} ] || cp {basis} {0}", quote(&to));
            self.shell(&copy)?.unchecked().run()?;
        }
        let shell = format!("ssh {}", self.connection(remote)?.session().join(" "));
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
        let mut output = rsync
            .reader()
            .context("cannot run rsync\nhint: install it; on the server `setup` does")?;
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

    /// Where something happens, for people who wait for several hosts.
    pub fn place(&self, many: bool) -> String {
        if many {
            format!(" on {}", self.name)
        } else {
            String::new()
        }
    }

    /// Where a version is there, once it was verified.
    pub fn installed(&self, version: &Version) -> PathBuf {
        self.directory.join(format!("versions/{NAME}-{version}"))
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
    /// Its other end closes with this process, however that ends.
    _alive: PipeWriter,
}

/// `ssh` that ends when the input does that it never reads.
const MASTER: &str = r#"exec 3<&0
{ trap '' INT; cat <&3; kill $$; } >/dev/null 2>&1 &
exec ssh "$@" </dev/null 3<&-"#;

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
            &["-c", MASTER, "sh", "-M", "-N", "-T", "-S", &*socket][..],
            &OPTIONS,
            &["--", remote],
        ]
        .concat();
        let master = cmd("sh", args).stdout_null().unchecked();
        let (_alive, master) = with_input(|it| master.stdin_file(it).start())?;
        // It makes the socket once it is let in.
        let connection = Connection {
            control,
            master,
            _alive,
        };
        while !connection.control.exists() {
            if !connection.is_open()? {
                bail!("cannot connect to {remote}; what ssh said is above");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(connection)
    }

    /// What `ssh` is told to go through it.
    fn session(&self) -> Vec<String> {
        let control = self.control.to_string_lossy();
        let ours = ["-S", &*control, "-o", "ControlMaster=no", "-T"];
        ours.into_iter().chain(OPTIONS).map(str::to_owned).collect()
    }

    fn is_open(&self) -> Result<bool> {
        Ok(self.master.try_wait()?.is_none())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
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
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
