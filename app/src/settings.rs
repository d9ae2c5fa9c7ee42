//! What can be set from outside: two variables of the environment.

use std::net::SocketAddr;
use std::time::Duration;

pub struct Settings {
    pub listen: SocketAddr,
    pub drain: Duration,
}

impl Settings {
    pub fn from_env() -> Result<Settings, String> {
        let listen = variable("LISTEN", "127.0.0.1:3000");
        let drain = variable("DRAIN_SECONDS", "30");
        Ok(Settings {
            listen: listen.parse().map_err(|_| {
                format!("`LISTEN={listen}` is no address like `127.0.0.1:3000` or `[::]:80`")
            })?,
            drain: drain
                .parse()
                .map(Duration::from_secs)
                .map_err(|_| format!("`DRAIN_SECONDS={drain}` is no whole number of seconds"))?,
        })
    }
}

fn variable(name: &str, default: &str) -> String {
    match std::env::var_os(name) {
        Some(value) => value.to_string_lossy().into_owned(),
        None => default.to_string(),
    }
}
