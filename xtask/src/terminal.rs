//! Lines for people: one line a step, on stderr, in cargo's style.

use std::{
    env,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";

const CLEAR_LINE: &str = "\r\x1b[K";

/// A transfer that takes longer shows its progress.
const PROGRESS_DELAY: Duration = Duration::from_secs(1);

pub fn step(verb: &str, text: &str) {
    write_line(&bold(GREEN, &format!("{verb:>12}")), &format!(" {text}"));
}

pub fn warning(text: &str) {
    write_line(&bold(YELLOW, "warning"), &format!(": {text}"));
}

pub fn error(error: &anyhow::Error) {
    write_line(&bold(RED, "error"), &format!(": {error:#}"));
}

/// A line of another program's output, such as the app's log.
pub fn quote(line: &str) {
    write_line(&format!("{:>12}", "|"), &format!(" {line}"));
}

/// Prints text from a host on stdout.
pub fn print(text: &str) {
    let _ = io::stdout().write_all(printable(text).as_bytes());
}

/// Replaces control characters, because a terminal obeys them: text from a host or an app
/// could clear the screen or write to the clipboard.
pub fn printable(text: &str) -> String {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    text.chars()
        .map(|c| if harmless(c) { c } else { '\u{fffd}' })
        .collect()
}

/// The progress of a transfer: one line, only on a terminal. It disappears when this value
/// is dropped.
pub struct Progress {
    text: String,
    started: Instant,
    shown_percent: Option<usize>,
}

impl Progress {
    pub fn new(text: String) -> Progress {
        Progress {
            text,
            started: Instant::now(),
            shown_percent: None,
        }
    }

    pub fn update(&mut self, percent: usize) {
        let is_new = self.shown_percent != Some(percent);
        if is_new && self.started.elapsed() > PROGRESS_DELAY && io::stderr().is_terminal() {
            self.shown_percent = Some(percent);
            let percent = bold(GREEN, &format!("{percent:>11}%"));
            write(&format!("{CLEAR_LINE}{percent} {}", printable(&self.text)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown_percent.is_some() {
            write(CLEAR_LINE);
        }
    }
}

fn bold(colour: &str, text: &str) -> String {
    let no_color = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if no_color || !io::stderr().is_terminal() {
        text.to_owned()
    } else {
        format!("\x1b[1;{colour}m{text}\x1b[0m")
    }
}

/// Replaces the progress of a transfer, if one is shown.
fn write_line(label: &str, text: &str) {
    let clear = if io::stderr().is_terminal() {
        CLEAR_LINE
    } else {
        ""
    };
    write(&format!("{clear}{label}{}\n", printable(text)));
}

/// Written at once, so that the lines of several threads do not mix. An error is ignored:
/// a deploy goes on if nobody reads about it.
fn write(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let attack = "a\x1b]52;c;aGk=\x07b\u{9b}2Jc\rd\te\n";
        assert_eq!(
            printable(attack),
            "a\u{fffd}]52;c;aGk=\u{fffd}b\u{fffd}2Jc\u{fffd}d\te\n"
        );
    }
}
