//! The environment variables that set something.

use std::env;
use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

pub struct Settings {
    /// Where to listen, unless systemd passes a socket.
    pub listen: SocketAddr,
    /// How long open connections may take to end.
    pub drain: Duration,
    /// How long to go on as before after SIGTERM.
    pub linger: Duration,
}

/// Read once: what a process is told does not change while it runs.
pub fn settings() -> io::Result<&'static Settings> {
    static SETTINGS: LazyLock<Result<Settings, String>> = LazyLock::new(read);
    SETTINGS
        .as_ref()
        .map_err(|message| io::Error::other(message.as_str()))
}

fn read() -> Result<Settings, String> {
    Ok(Settings {
        listen: address("LISTEN", "127.0.0.1:3000")?,
        drain: seconds("DRAIN_SECONDS", "30")?,
        linger: seconds("LINGER_SECONDS", "0")?,
    })
}

fn address(name: &str, default: &str) -> Result<SocketAddr, String> {
    let value = variable(name, default);
    value
        .parse()
        .map_err(|_| format!("`{name}={value}` is no address like `127.0.0.1:3000` or `[::]:80`"))
}

fn seconds(name: &str, default: &str) -> Result<Duration, String> {
    let value = variable(name, default);
    value
        .parse()
        .map(Duration::from_secs)
        .map_err(|_| format!("`{name}={value}` is no whole number of seconds"))
}

fn variable(name: &str, default: &str) -> String {
    match env::var_os(name) {
        Some(value) => value.to_string_lossy().into_owned(),
        None => default.to_owned(),
    }
}
