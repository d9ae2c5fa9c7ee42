//! A directory with the script in it, as `setup` makes it, and an address of its own.

use std::{
    fs,
    io::{ErrorKind, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::http;

/// As `setup` installs it.
pub const SCRIPT: &str = concat!(
    include_str!("../../../server/activate.sh"),
    include_str!("../../../server/systemd.sh"),
    include_str!("../../../server/nohup.sh"),
    "main \"$@\"\n"
);

/// A binary that was uploaded, or could be.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub name: String,
    pub sha256: String,
}

pub struct Place {
    pub dir: PathBuf,
    pub address: SocketAddr,
}

impl Place {
    pub fn new(name: &str) -> Place {
        let number = number();
        let dir = std::env::temp_dir().join(format!("cutover-{}-{number}-{name}", process::id()));
        Place::in_dir(&dir)
    }

    pub fn in_dir(dir: &Path) -> Place {
        let place = Place {
            dir: dir.to_owned(),
            address: address(number()),
        };
        for dir in ["bin", "incoming", "versions", "run", "log"] {
            fs::create_dir_all(place.path(dir)).unwrap();
        }
        place.install_script(SCRIPT);
        place.set("ready=5 settle=0.5 drain=5 keep=5 overlap=true");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// By a rename, as `setup` does. A script that is being started cannot be written, and
    /// what heals may be starting the old one.
    pub fn install_script(&self, text: &str) {
        let new = self.path("bin/.activate.new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.path("bin/activate")).unwrap();
    }

    /// The settings from here on, beside those that never change.
    pub fn set(&self, settings: &str) {
        let fixed = format!("service=app manager=nohup listen={}", self.address);
        fs::write(self.path("settings"), format!("{fixed}\n{settings}\n")).unwrap();
    }

    /// A version with these bytes, ready to be activated.
    pub fn upload(&self, bytes: &[u8]) -> Version {
        let version = version_of(bytes);
        let incoming = self.path("incoming").join(format!("app-{}", version.name));
        let mut file = fs::File::create(incoming).unwrap();
        file.write_all(bytes).unwrap();
        version
    }

    pub fn script(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/activate"));
        command.args(args);
        command
    }

    /// Everything that the activation said.
    pub fn activate(&self, version: &Version) -> String {
        output(self.script(&["activate", &version.name, &version.sha256, "tester@test"]))
    }

    /// For where it is only a step on the way.
    pub fn make_live(&self, bytes: &[u8]) -> Version {
        let version = self.upload(bytes);
        self.make_live_again(&version);
        version
    }

    pub fn make_live_again(&self, version: &Version) {
        let said = self.activate(version);
        assert!(said.contains("\nverdict live\n"), "{said}");
    }

    /// The values of one kind in `status`; of `rollback` only the versions.
    pub fn status(&self, kind: &str) -> Vec<String> {
        let status = output(self.script(&["status"]));
        let lines = status.lines().filter_map(|line| line.split_once('\t'));
        lines
            .filter(|(it, _)| *it == kind)
            .map(|(_, value)| match kind {
                "rollback" => value.split('\t').next().unwrap().to_owned(),
                _ => value.to_owned(),
            })
            .collect()
    }

    pub fn live(&self) -> Option<String> {
        let link = fs::read_link(self.path("current")).ok()?;
        Some(link.to_str()?.strip_prefix("versions/app-")?.to_owned())
    }

    /// Which version answers.
    pub fn served(&self) -> Option<String> {
        http::served(self.address)
    }

    pub fn history(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("history")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn files(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(dir))
            .unwrap()
            .map(|it| it.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// How many activations have said this.
    pub fn logs_with(&self, words: &str) -> usize {
        let logs = self.files("log").into_iter();
        let said = logs.map(|it| fs::read_to_string(self.path("log").join(it)).unwrap_or_default());
        said.filter(|it| it.contains(words)).count()
    }

    /// The processes that run an instance, as PID and instance.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let dir = self.dir.to_str().unwrap();
        let pids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|it| it.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid: u32| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let instance = command
                .split('\0')
                .next()?
                .strip_prefix(dir)?
                .split_once("/run/app-")?
                .1
                .to_owned();
            Some((pid, instance))
        })
        .collect()
    }

    pub fn wait_for_processes(&self, count: usize) {
        wait_until(&format!("{count} processes"), || {
            self.processes().len() == count
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The links first, so that nothing can be started meanwhile.
        let _ = fs::remove_dir_all(self.path("run"));
        for (pid, _) in self.processes() {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .status();
        }
        // Whatever watched a drain may still be writing.
        for _ in 0..50 {
            if fs::remove_dir_all(&self.dir).is_ok() {
                return;
            }
            sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left", self.dir.display());
    }
}

fn number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// All of 127.0.0.0/8 is this machine. Each place has an address of its own, because
/// SO_REUSEPORT would let two of them share a port, also those of two test processes.
fn address(number: usize) -> SocketAddr {
    let [_, _, c, d] = (number as u32 + 1).to_be_bytes();
    let pid = process::id();
    let port = 8000 + (pid / 255 % 20_000) as u16;
    SocketAddr::from(([127, (pid % 255) as u8 + 1, c, d], port))
}

pub fn version_of(bytes: &[u8]) -> Version {
    let sha256: String = Sha256::digest(bytes)
        .iter()
        .map(|it| format!("{it:02x}"))
        .collect();
    Version {
        name: format!("20261122T183012Z-1a2b3c4d5e6f-{}", &sha256[..12]),
        sha256,
    }
}

pub fn output(mut command: Command) -> String {
    let output = loop {
        match command.output() {
            // A child that another test has just started still has the script open for writing.
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                sleep(Duration::from_millis(10));
            }
            output => break output.unwrap(),
        }
    };
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited in vain for {what}"
        );
        sleep(Duration::from_millis(50));
    }
}

pub fn is_intact(file: &Path) -> bool {
    let Ok(bytes) = fs::read(file) else {
        return false;
    };
    file.file_name()
        .unwrap()
        .to_string_lossy()
        .ends_with(&version_of(&bytes).name[28..])
}
