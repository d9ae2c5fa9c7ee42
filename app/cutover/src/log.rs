//! The log: what `tracing` is told, on stderr. One line an event, none a request.

use std::env;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{self as lines, FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::{LookupSpan, Registry};

/// Does nothing if the user has a subscriber already.
pub fn install() {
    let lines = lines::layer()
        .event_format(Line {
            to_journal: stderr_is_the_journal().unwrap_or(false),
        })
        .with_ansi(false)
        .with_writer(io::stderr);
    let subscriber = Registry::default().with(filter()).with(lines);
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// `RUST_LOG`, such as `warn` or `info,app=debug`.
fn filter() -> Targets {
    let wanted = env::var("RUST_LOG").ok();
    wanted
        .and_then(|wanted| wanted.parse().ok())
        .unwrap_or(Targets::new().with_default(Level::INFO))
}

/// `JOURNAL_STREAM` alone does not tell: a terminal that systemd started hands it down to
/// everything that runs in it (systemd.exec(5)).
fn stderr_is_the_journal() -> Option<bool> {
    let stream = env::var("JOURNAL_STREAM").ok()?;
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    let stderr = stderr.metadata().ok()?;
    Some(stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// The journal knows the time and wants the priority (sd-daemon(3)). A file or a terminal
/// wants the time.
struct Line {
    to_journal: bool,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        if self.to_journal {
            write!(line, "<{}>", priority(level))?;
        } else {
            SystemTime.format_time(&mut line)?;
            write!(line, " {level} ")?;
        }
        context.format_fields(line.by_ref(), event)?;
        writeln!(line)
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
