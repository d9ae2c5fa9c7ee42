//! One line an event, to stderr; none a request.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

pub fn info(message: &str) {
    line(6, message);
}

pub fn warning(message: &str) {
    line(4, message);
}

pub fn error(message: &str) {
    line(3, message);
}

/// The journal knows the time and wants the priority (sd-daemon(3)); a file or
/// a terminal wants the time.
fn line(priority: u8, message: &str) {
    static TO_JOURNAL: LazyLock<bool> = LazyLock::new(|| stderr_is_the_journal().unwrap_or(false));

    let line = if *TO_JOURNAL {
        format!("<{priority}>{message}\n")
    } else {
        format!("{} {message}\n", rfc3339(SystemTime::now()))
    };
    // In one piece, since two instances may share a file. That nobody listens
    // any more is no reason to stop serving.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// That JOURNAL_STREAM is set is not enough: a terminal that systemd started
/// hands it down to everything in it (systemd.exec(5)).
fn stderr_is_the_journal() -> Option<bool> {
    let stream = std::env::var("JOURNAL_STREAM").ok()?;
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
    let stderr = stderr.metadata().ok()?;
    Some(stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

fn rfc3339(time: SystemTime) -> String {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days since 1970-01-01 to a date of the Gregorian calendar, as in Howard
/// Hinnant's `civil_from_days`: years begin in March, so that the leap day is
/// a year's last, and repeat every 146,097 days.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc3339() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_798_761_600, "2027-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }
}
