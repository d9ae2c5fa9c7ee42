//! One authenticated ssh connection to a host, which all sessions and rsync share.

use std::{
    env, fs,
    io::{ErrorKind, PipeWriter},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use duct::{Expression, cmd};

use crate::{session::start_with_input, terminal};

/// ssh's exit code when ssh itself fails, for example because the connection was lost.
pub const DISCONNECTED: i32 = 255;

/// With these a dead host is an error after seconds instead of a hang.
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

pub struct Remote {
    /// USER@HOST
    pub address: String,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Remote {
    pub fn new(address: String) -> Remote {
        Remote {
            address,
            connection: Mutex::default(),
        }
    }

    /// A command for the host's shell.
    pub fn shell(&self, command: &str) -> Result<Expression> {
        let mut args = self.connection()?.arguments();
        args.extend(["--", &self.address, command].map(str::to_owned));
        Ok(cmd("ssh", args))
    }

    /// The command that rsync uses as its remote shell.
    pub fn rsync_shell(&self) -> Result<String> {
        Ok(format!("ssh {}", self.connection()?.arguments().join(" ")))
    }

    /// The next command opens a new connection.
    pub fn drop_connection(&self) {
        self.connection.lock().expect("not poisoned").take();
    }

    /// The one connection to this host, or a new one if that was lost.
    fn connection(&self) -> Result<Arc<Connection>> {
        let mut connection = self.connection.lock().expect("not poisoned");
        match &*connection {
            Some(connection) if connection.is_open()? => Ok(Arc::clone(connection)),
            _ => Ok(Arc::clone(
                connection.insert(Arc::new(Connection::open(&self.address)?)),
            )),
        }
    }
}

/// Runs ssh, and ends it when this process does.
const MASTER: &str = include_str!("ssh_master.sh");

/// Ends when this value is dropped.
struct Connection {
    control: PathBuf,
    master: duct::Handle,
    /// The other end closes when this process ends, in whatever way. So the connection does
    /// not outlive its client. (An ssh or rsync that finds it gone opens one of its own.)
    _input: PipeWriter,
}

impl Connection {
    fn open(address: &str) -> Result<Connection> {
        terminal::step("Connecting", &format!("to {address}"));
        let control = control_path()?;
        let socket = control.to_string_lossy();
        let args = [
            &["-c", MASTER, "ssh_master", "-M", "-N", "-T", "-S", &*socket][..],
            &OPTIONS,
            &["--", address],
        ]
        .concat();
        let master = cmd("sh", args).stdout_null().unchecked();
        let (_input, master) = start_with_input(|input| master.stdin_file(input).start())?;
        let connection = Connection {
            control,
            master,
            _input,
        };
        // ssh creates the socket once it is logged in.
        while !connection.control.exists() {
            if !connection.is_open()? {
                bail!("cannot connect to {address}; ssh's message is above");
            }
            sleep(Duration::from_millis(5));
        }
        Ok(connection)
    }

    /// Makes another `ssh` use this connection.
    fn arguments(&self) -> Vec<String> {
        let control = self.control.to_string_lossy();
        let shared = ["-S", &*control, "-o", "ControlMaster=no", "-T"];
        shared
            .into_iter()
            .chain(OPTIONS)
            .map(str::to_owned)
            .collect()
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

/// A socket's path may have at most about 100 bytes. The directory is new and this
/// user's alone; one that exists belongs to a killed client with the same pid, or to an
/// attacker, and is not used.
fn control_path() -> Result<PathBuf> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    loop {
        let count = COUNT.fetch_add(1, Relaxed);
        let dir = env::temp_dir().join(format!("cutover-{}-{count}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            result => {
                result.with_context(|| format!("cannot create {}", dir.display()))?;
                return Ok(dir.join("ssh"));
            }
        }
    }
}

/// Quotes an argument for the remote shell: ssh joins its arguments with spaces and hands
/// them to a shell.
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_argument_stays_one_word() {
        assert_eq!(quote("it's $(id); `id`"), r"'it'\''s $(id); `id`'");
    }
}
