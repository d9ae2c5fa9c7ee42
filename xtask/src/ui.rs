//! What people read: one line a step, on stderr, as cargo writes them.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";

pub fn step(verb: &str, text: &str) {
    write_line(&format!("{} {text}", bold(GREEN, &format!("{verb:>12}"))));
}

pub fn warning(text: &str) {
    write_line(&format!("{}: {text}", bold(YELLOW, "warning")));
}

pub fn error(error: &anyhow::Error) {
    write_line(&format!("{}: {error:#}", bold(RED, "error")));
}

/// A line of somebody else's, such as the app's log.
pub fn quote(line: &str) {
    write_line(&format!("{:>12} {line}", "|"));
}

/// How far a transfer is: one line, on a terminal, once it has taken a while. It is gone
/// when this value is.
pub struct Progress {
    text: String,
    begun: Instant,
    shown: Option<usize>,
}

const A_WHILE: Duration = Duration::from_secs(1);

impl Progress {
    pub fn new(text: String) -> Progress {
        let begun = Instant::now();
        Progress {
            text,
            begun,
            shown: None,
        }
    }

    pub fn at(&mut self, percent: usize) {
        let is_new = self.shown != Some(percent);
        if is_new && self.begun.elapsed() > A_WHILE && io::stderr().is_terminal() {
            self.shown = Some(percent);
            let verb = bold(GREEN, &format!("{:>11}%", percent));
            write(&format!("{FRESH_LINE}{verb} {}", self.text));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            write(FRESH_LINE);
        }
    }
}

const FRESH_LINE: &str = "\r\x1b[K";

fn bold(colour: &str, text: &str) -> String {
    let plain =
        !io::stderr().is_terminal() || env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
    if plain {
        text.to_owned()
    } else {
        format!("\x1b[1;{colour}m{text}\x1b[0m")
    }
}

/// Over what a transfer has shown of itself.
fn write_line(line: &str) {
    let fresh = if io::stderr().is_terminal() {
        FRESH_LINE
    } else {
        ""
    };
    write(&format!("{fresh}{line}\n"));
}

/// In one go, so that lines of several programs do not mix. That nobody reads them
/// any more is no reason to stop.
fn write(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
