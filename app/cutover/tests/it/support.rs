//! Starting instances and talking to them. Also used by the app's own tests.

#![allow(dead_code)] // each of the two uses a part of it

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Versions' names, as `cargo xtask deploy` makes them.
pub const OLD: &str = "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c";
pub const NEW: &str = "20261122T204512Z-c0ffee123456-dirty-0a1b2c3d4e5f";

/// The first instance of the nth version.
pub fn nth(n: usize) -> String {
    format!("20261122T{n:06}Z-1a2b3c4d5e6f-9f86d081884c.1")
}

/// Far more than anything here takes: a hang is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address that no other test has, so that they can run at the same time:
/// all of 127.0.0.0/8 is this machine.
pub fn address() -> SocketAddr {
    static TAKEN: AtomicU8 = AtomicU8::new(1);
    let n = TAKEN.fetch_add(1, Ordering::Relaxed);
    let [.., high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, high, low, n), 3000).into()
}

/// The link that an instance is executed through.
pub fn link(binary: &Path, instance: &str) -> PathBuf {
    static RUN: Mutex<()> = Mutex::new(());
    let _one_at_a_time = RUN.lock();
    let name = binary.file_name().unwrap().to_str().unwrap();
    let run = Path::new(env!("CARGO_TARGET_TMPDIR")).join("run");
    let link = run.join(format!("{name}-{instance}"));
    fs::create_dir_all(&run).unwrap();
    // A rename, because another test may execute the link at this moment.
    let new = run.join("new");
    let _ = fs::remove_file(&new);
    symlink(binary, &new).unwrap();
    fs::rename(&new, &link).unwrap();
    link
}

pub fn command(binary: &Path, instance: &str, listen: SocketAddr) -> Command {
    let mut command = Command::new(link(binary, instance));
    clean(&mut command).env("LISTEN", listen.to_string());
    command
}

/// A command that takes its socket from systemd, or thinks so: the socket is descriptor 3,
/// and only the process itself knows `LISTEN_PID`.
pub fn command_with_socket(binary: &Path, instance: &str, socket: impl AsFd) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"LISTEN_PID=$$ exec "$0" 3<&0 </dev/null"#])
        .arg(link(binary, instance))
        .env("LISTEN", "192.0.2.1:1") // it must not be used
        .env("LISTEN_FDS", "1")
        .stdin(socket.as_fd().try_clone_to_owned().unwrap());
    clean(&mut command);
    command
}

/// Without what the tests' own environment may hold.
fn clean(command: &mut Command) -> &mut Command {
    ["NOTIFY_SOCKET", "JOURNAL_STREAM", "RUST_LOG"]
        .iter()
        .fold(command, |command, name| command.env_remove(name))
}

/// A process that does not outlive its test.
pub struct Instance {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Instance {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the log of process {}:\n{}", self.pid(), self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Instance {
    /// Returns when the process says that it is ready.
    #[track_caller]
    pub fn start(command: &mut Command) -> Instance {
        let mut instance = Instance::spawn(command);
        eventually(|| {
            assert!(instance.is_running(), "it exited: {}", instance.log());
            instance.log().contains("ready")
        });
        instance
    }

    pub fn spawn(command: &mut Command) -> Instance {
        let command = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let reader = thread::spawn({
            let log = log.clone();
            move || lines.for_each(|line| *log.lock().unwrap() += &(line.unwrap() + "\n"))
        });
        Instance {
            child,
            log,
            reader: Some(reader),
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `TERM`, `INT`, …
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end and the rest of its log. Returns how long that took.
    #[track_caller]
    pub fn ends(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        eventually(|| !self.is_running());
        let took = start.elapsed();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        (self.child.wait().unwrap(), took)
    }
}

#[track_caller]
pub fn eventually(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command that ends by itself. Returns its exit code and what it wrote to stderr.
pub fn outcome(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} is there twice");
        value
    }

    pub fn instance(&self) -> &str {
        self.header("cutover-instance").unwrap_or("none")
    }

    /// Whether the server closes the connection after this answer.
    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

/// A connection, which stays open from one request to the next.
pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: SocketAddr) -> Connection {
        Connection::try_open(address).unwrap()
    }

    pub fn try_open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection(BufReader::new(stream)))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.get_mut().write_all(bytes.as_ref())
    }

    pub fn read_bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub fn request(&mut self, method: &str, path: &str, headers: &str) -> io::Result<Answer> {
        self.send(format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n"
        ))?;
        self.read_answer(method)
    }

    pub fn post(&mut self, path: &str, body: &str) -> io::Result<Answer> {
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n{body}"
        ))?;
        self.read_answer("POST")
    }

    fn read_answer(&mut self, method: &str) -> io::Result<Answer> {
        let mut answer = self.read_head()?;
        let length = answer
            .header("content-length")
            .map_or(0, |n| n.parse().unwrap());
        if method != "HEAD" && answer.status != 304 {
            let mut body = vec![0; length];
            self.0.read_exact(&mut body)?;
            answer.body = String::from_utf8(body).unwrap();
        }
        Ok(answer)
    }

    pub fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "").unwrap()
    }

    pub fn read_head(&mut self) -> io::Result<Answer> {
        let status = self.read_line()?;
        let status = status.strip_prefix("HTTP/1.1 ").and_then(|s| s.get(..3));
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_lowercase(), value.trim().to_string()));
        }
        Ok(Answer {
            status: status.ok_or(io::ErrorKind::InvalidData)?.parse().unwrap(),
            headers,
            body: String::new(),
        })
    }

    /// Without its line end. A line that has none is an error.
    pub fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.trim_end().to_string()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits until the server closes the connection. Returns how long that took.
    pub fn is_closed(&mut self) -> Duration {
        let start = Instant::now();
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
        start.elapsed()
    }
}

/// One request on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    Connection::open(address).get(path)
}

pub fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let mut connection = Connection::open(address);
    connection.request(method, path, headers).unwrap()
}
