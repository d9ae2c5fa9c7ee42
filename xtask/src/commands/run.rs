//! `run`: the live version once more, with other arguments.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, PipeWriter, Read, Write},
    os::fd::AsFd,
    process,
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::{Long, Short};
use xshell::Shell;

use crate::{
    cli::{self, Args, TargetArg},
    host::{Host, NOT_SET_UP},
    server_files,
    session::start_with_input,
    state::State,
    terminal::printable,
};

pub const HELP: &str = "\
Run the live version once with other arguments, for example to migrate a database

Usage: cargo xtask run [TARGET] [OPTIONS] -- ARGUMENT...

It runs on the target's first host, as the app's user, in its sandbox, with its environment
and its state. This command prints its output and exits with its exit code. Ctrl-C ends it,
as does a lost connection.

Options:
  -i, --stdin    Read standard input to its end and pass it on; else the input is empty
  -h, --help     Show this help
";

/// Three of them may get lost; the host waits for `CLIENT_TIMEOUT_SECS`.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

#[derive(Default)]
struct Options {
    target: TargetArg,
    stdin: bool,
    arguments: Vec<String>,
}

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = parse(args)?;
    let target = options.target.find()?;
    ensure!(
        target.kubernetes.is_none(),
        "`run` is for hosts\nhint: on a cluster, `kubectl create job` runs the image with other arguments"
    );
    let input = read_input(options.stdin)?;
    let hosts = Host::all(sh, target);
    let host = hosts.first().context("a target has a host")?;
    let code = run_on(host, &options.arguments, &input)?;
    drop(hosts); // `exit` would leave their connections and folders
    process::exit(code)
}

fn parse(args: Args) -> Result<Options> {
    let help = args.help();
    let (mut before, arguments) = args.split_at_dashes()?;
    let mut options = Options {
        arguments,
        ..Options::default()
    };
    while let Some(arg) = before.next()? {
        match arg {
            Short('i') | Long("stdin") => options.stdin = true,
            other => options.target.take(other, help)?,
        }
    }
    let arguments = &options.arguments;
    if arguments.is_empty() {
        return Err(cli::usage("no arguments after `--`", help));
    }
    if arguments
        .iter()
        .any(|argument| argument.contains(['\n', '\0']))
    {
        return Err(cli::usage("an argument has more than one line", help));
    }
    Ok(options)
}

fn read_input(stdin: bool) -> Result<Vec<u8>> {
    let mut input = Vec::new();
    let file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    if stdin {
        io::stdin().read_to_end(&mut input)?;
    } else if file.metadata()?.is_file() && file.metadata()?.len() > 0 {
        bail!("standard input is a file, and would not be read\nhint: add `--stdin` to pass it on");
    }
    Ok(input)
}

/// The host ends the program when the session's input ends, so that stays open until then.
fn run_on(host: &Host, arguments: &[String], program_input: &[u8]) -> Result<i32> {
    let (stderr, errors) = io::pipe()?;
    let command = host.script("session")?.stderr_file(errors).unchecked();
    let (input, output) = start_with_input(|input| command.stdin_file(input).reader())?;
    drop(command);
    let stderr = thread::spawn(move || copy(stderr, io::stderr(), io::stderr().is_terminal()));
    let mut stdout = BufReader::new(&output);
    let is_set_up = check_state(host, &mut stdout)?;
    let (count, bytes) = (arguments.len(), program_input.len());
    let request = format!("run {count} {bytes}\n{}\n", arguments.join("\n"));
    let request = [request.as_bytes(), program_input].concat();
    thread::spawn(move || send(input, &request));
    copy(stdout, io::stdout(), io::stdout().is_terminal());
    let _ = stderr.join();
    let status = output.try_wait()?.context("it has not exited")?.status;
    match status.code() {
        Some(NOT_SET_UP) if !is_set_up => bail!("{}", host.not_set_up_message("deploy")),
        Some(code) => Ok(code),
        None => bail!("connection to {} lost", host.name()),
    }
}

/// Then goes on with signs of life until this process ends. If nobody reads them, the
/// output shows why.
fn send(mut input: PipeWriter, request: &[u8]) {
    let mut sent = input.write_all(request);
    while sent.is_ok() {
        sleep(SIGN_OF_LIFE);
        sent = input.write_all(b".");
    }
}

/// The session tells the state first, up to an empty line. Returns whether it did.
fn check_state(host: &Host, output: &mut impl BufRead) -> Result<bool> {
    let mut state = Vec::new();
    for line in output.lines() {
        let line = line?;
        if line.is_empty() {
            server_files::check_script(host, &State::parse(&state)?)?;
            return Ok(true);
        }
        state.push(line);
    }
    Ok(false)
}

/// A terminal would obey control characters; a file or a pipe gets the bytes as they are.
fn copy(mut from: impl Read, mut to: impl Write, is_terminal: bool) {
    let mut part = [0; 8192];
    while let Ok(1..) = from.read(&mut part).map(|read| {
        let written = match is_terminal {
            true => to.write_all(printable(&String::from_utf8_lossy(&part[..read])).as_bytes()),
            false => to.write_all(&part[..read]),
        };
        written.and_then(|()| to.flush()).map_or(0, |()| read)
    }) {}
}
