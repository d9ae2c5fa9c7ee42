//! A process, here or on a host, that is driven line by line.

use std::{
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write},
    process::ExitStatus,
    sync::Mutex,
    thread,
};

use anyhow::{Context, Result, ensure};
use duct::{Expression, ReaderHandle};

/// A host cannot fill this machine's memory with one endless line.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// The same for all that it answers to one command.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;

/// A host cannot keep this machine busy with endless lines.
const MAX_LINES: usize = 100_000;

pub struct Session {
    /// `None` once it is closed.
    input: Option<PipeWriter>,
    output: BufReader<ReaderHandle>,
    lines_left: usize,
}

impl Session {
    pub fn open(command: Expression) -> Result<Session> {
        let command = command.stderr_to_stdout().unchecked();
        let (input, output) = start_with_input(|input| command.stdin_file(input).reader())?;
        Ok(Session {
            input: Some(input),
            output: BufReader::new(output),
            lines_left: MAX_LINES,
        })
    }

    /// For output that a person watches until they end it.
    pub fn without_limit(mut self) -> Session {
        self.lines_left = usize::MAX;
        self
    }

    /// Best effort: if nobody reads the line, the output shows why.
    pub fn send_line(&mut self, line: &str) {
        let _ = self.send(format!("{line}\n").as_bytes());
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.input {
            Some(input) => input.write_all(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// The process reads the end of its input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// The next line, or `None` at the end of the output. An unfinished line is dropped.
    pub fn read_line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let mut output = self.output.by_ref().take(MAX_LINE_BYTES);
        let Ok(_) = output.read_until(b'\n', &mut line) else {
            return Ok(None);
        };
        self.lines_left = self.lines_left.saturating_sub(1);
        ensure!(
            output.limit() > 0 && self.lines_left > 0,
            "the host sends more output than expected"
        );
        let whole = line.pop() == Some(b'\n');
        Ok(whole.then(|| String::from_utf8_lossy(&line).into_owned()))
    }

    pub fn is_open(&self) -> bool {
        matches!(self.output.get_ref().try_wait(), Ok(None))
    }

    /// The exit code, once the whole output has been read. `None` if a signal ended the
    /// process or it still runs.
    pub fn exit_code(&self) -> Option<i32> {
        self.output.get_ref().try_wait().ok()??.status.code()
    }
}

/// What a command has said, and how it ended.
pub struct Answer<T> {
    pub stdout: T,
    pub stderr: String,
    pub status: ExitStatus,
}

/// Runs a command. One that says too much is killed.
pub fn run<T>(
    command: &Expression,
    read_stdout: impl FnOnce(&ReaderHandle) -> Result<T>,
) -> Result<Answer<T>> {
    let (stderr, errors) = io::pipe()?;
    let output = command.stderr_file(errors).unchecked().reader()?;
    let kill = |_: &_| drop(output.kill());
    let (stdout, stderr) = thread::scope(|threads| {
        let stderr = threads.spawn(|| read_all(stderr).inspect_err(kill));
        let stdout = read_stdout(&output).inspect_err(kill);
        (stdout, stderr.join().expect("it does not panic"))
    });
    let (stdout, stderr) = (stdout?, stderr?);
    let ended = output.try_wait()?.context("the command still runs")?;
    Ok(Answer {
        stdout,
        stderr,
        status: ended.status,
    })
}

pub fn read_all(output: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    output.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes)?;
    ensure!(
        (bytes.len() as u64) < MAX_ANSWER_BYTES,
        "the host sends more output than expected"
    );
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Starts a process with an open pipe as its input. One at a time: on systems other than
/// Linux another process that starts at the same moment would inherit the new pipe.
pub fn start_with_input<T>(
    start: impl FnOnce(PipeReader) -> io::Result<T>,
) -> Result<(PipeWriter, T)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().expect("not poisoned");
    let (output, input) = io::pipe()?;
    Ok((input, start(output)?))
}
