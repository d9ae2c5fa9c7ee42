//! What people read: one line a step, on stderr, as cargo writes them.

use std::{
    env,
    io::{self, IsTerminal, Write},
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

fn bold(colour: &str, text: &str) -> String {
    let plain =
        !io::stderr().is_terminal() || env::var_os("NO_COLOR").is_some_and(|it| !it.is_empty());
    if plain {
        text.to_owned()
    } else {
        format!("\x1b[1;{colour}m{text}\x1b[0m")
    }
}

/// In one go, so that lines of several programs do not mix. That nobody reads them
/// any more is no reason to stop.
fn write_line(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
