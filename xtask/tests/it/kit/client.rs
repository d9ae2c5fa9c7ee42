//! A command that a test follows while it runs, and may stop.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    configured::like,
    place::wait_until,
    workspace::{Said, Workspace},
};

/// A deploy to three hosts gets everywhere within this time.
const STAGE_TIMEOUT: Duration = Duration::from_secs(120);

/// In a process group of its own, as in a terminal. If the test fails, the group is killed.
pub struct Client {
    process: Child,
    people: PathBuf,
    programs: PathBuf,
}

impl Client {
    /// What it says is written to files in the workspace's place.
    pub fn start(workspace: &Workspace, command: &Command) -> Client {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let people = workspace.place.path(&format!("people-{number}"));
        let programs = workspace.place.path(&format!("programs-{number}"));
        let process = with_default_sigint(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(File::create(&people).unwrap())
            .stdout(File::create(&programs).unwrap())
            .spawn()
            .unwrap();
        Client {
            process,
            people,
            programs,
        }
    }

    pub fn group(&self) -> u32 {
        self.process.id()
    }

    /// What it has said so far.
    pub fn people(&self) -> String {
        fs::read_to_string(&self.people).unwrap()
    }

    pub fn programs(&self) -> String {
        fs::read_to_string(&self.programs).unwrap()
    }

    pub fn wait_for(&mut self, words: &str, times: usize) {
        self.wait_until(words, |it| it.people().matches(words).count() >= times);
    }

    pub fn wait_until(&mut self, what: &str, holds: impl Fn(&Client) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            let runs = self.process.try_wait().unwrap().is_none();
            assert!(
                runs && start.elapsed() < STAGE_TIMEOUT,
                "waited in vain for {what}: {}{}",
                self.people(),
                self.programs()
            );
            sleep(Duration::from_millis(50));
        }
    }

    /// To the whole group, as Ctrl-C does.
    pub fn signal(&self, signal: &str) {
        let group = format!("-{}", self.group());
        let kill = Command::new("kill").args([signal, "--", &group]).status();
        assert!(kill.unwrap().success());
    }

    /// Kills the client alone. What it has started is not told. It ends all the same, except
    /// a build and a kubectl that follows a log.
    pub fn kill(mut self) -> Said {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let group = self.group().to_string();
        wait_until("what the client has started to end", || {
            let left = Command::new("pgrep")
                .args(["--pgroup", &group, "^(ssh|rsync|sh|cat|docker|kubectl)$"])
                .output();
            left.unwrap().stdout.is_empty()
        });
        self.end()
    }

    pub fn end(mut self) -> Said {
        let status = self.process.wait().unwrap();
        let said = Said {
            code: status.code().unwrap_or_else(|| -status.signal().unwrap()),
            people: self.people(),
            programs: self.programs(),
        };
        println!("{}", said.people);
        said
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal("-KILL");
            let _ = self.process.wait();
        }
    }
}

/// A job in the background of a shell ignores SIGINT, and its children inherit that.
fn with_default_sigint(command: &Command) -> Command {
    let mut env = Command::new("env");
    env.arg("--default-signal=INT").arg(command.get_program());
    like(command, env)
}
