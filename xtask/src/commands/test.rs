//! `test`: all checks and tests of the project, on a machine that has only Rust.

mod requirements;

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::{
    builder::{cargo, check_engine},
    cli::{self, Args},
    terminal,
};

pub const HELP: &str = "\
Check format, Rust code and shell scripts, then run all tests

Usage: cargo xtask test

The checks are rustfmt, clippy and shellcheck. The tests use real servers in containers and
a real browser. Missing programs are named before anything runs; for root on Debian they
are installed by apt. Without a container engine the tests with servers are left out; with
CI=true in the environment that is an error. The tests with a cluster run only with CI=true.
";

/// The tests of these modules start containers.
const CONTAINER_TESTS: &[&str] = &[
    "actions",
    "arm64",
    "builder",
    "first_server",
    "fleet",
    "https",
    "releases",
    "run_command",
    "servers",
    "state",
    "without_systemd",
];

/// The modules whose tests start a cluster have names that begin so. The first time, the
/// programs of Kubernetes are compiled.
const CLUSTER_TESTS: &str = "cluster";

/// The tests of these modules need root.
const ROOT_TESTS: &[&str] = &["disk_full"];

/// Tests wait more than they compute.
const TEST_THREADS: &str = "--test-threads=4";

/// A test prints what it measured on lines that begin so.
const FIGURE: &str = "figure: ";

/// A reason may quote all that a server said.
const MAX_REASON_LINES: usize = 12;
const MAX_REASON_CHARS: usize = 400; // in a line

pub fn run(sh: &Shell, mut args: Args) -> Result<()> {
    let help = args.help();
    if let Some(arg) = args.next()? {
        return Err(cli::usage(arg.unexpected(), help));
    }
    // A project that copied the tool without its tests needs nothing for them.
    let with_own_tests = sh.path_exists("xtask/tests");
    let mut left_out = Vec::new();
    if with_own_tests {
        left_out = tests_to_leave_out(sh)?;
        requirements::install_missing(sh)?;
        check_shell(sh)?;
    }
    check_format(sh)?;
    check_rust(sh)?;
    run_tests(sh, &left_out)
}

/// A test that cannot run here must not pass. It is left out, and in CI nothing runs then.
fn tests_to_leave_out(sh: &Shell) -> Result<Vec<&'static str>> {
    let mut left_out = Vec::new();
    let problem = match check_engine() {
        Err(error) => Some((error, "start a container engine that you may use")),
        Ok(()) => requirements::raise_inotify_limit(sh)
            .err()
            .map(|error| (error, requirements::RAISE_INOTIFY_LIMIT)),
    };
    if let Some((error, hint)) = problem {
        let error = format!("{error:#}");
        let reason = error.lines().next().unwrap_or_default();
        leave_out(CONTAINER_TESTS, reason, hint)?;
        left_out.extend(CONTAINER_TESTS);
        left_out.push(CLUSTER_TESTS);
    } else if !is_ci() && env::var_os("CLUSTER_KUBECONFIG").is_none() {
        let reason = "they build a cluster and break it, which takes long";
        let hint = "`CI=true cargo xtask test` runs them, too; xtask/tests/it/kit/cluster.rs tells how to give them a cluster";
        leave_out(&[CLUSTER_TESTS], reason, hint)?;
        left_out.push(CLUSTER_TESTS);
    }
    if !requirements::is_root(sh) {
        leave_out(ROOT_TESTS, "they mount small disks", "run it as root")?;
        left_out.extend(ROOT_TESTS);
    }
    Ok(left_out)
}

fn leave_out(tests: &[&str], reason: &str, hint: &str) -> Result<()> {
    let tests = tests.join("`, `");
    let text = format!("the tests `{tests}` cannot run here: {reason}\nhint: {hint}");
    ensure!(!is_ci(), text);
    terminal::warning(&format!("left out: {text}"));
    Ok(())
}

fn is_ci() -> bool {
    env::var("CI").is_ok_and(|it| it == "true")
}

fn check_format(sh: &Shell) -> Result<()> {
    terminal::step("Checking", "the format, by rustfmt");
    let check = cargo(sh).args(["fmt", "--all", "--check"]);
    check
        .run()
        .context("not formatted\nhint: `cargo fmt --all`")
}

fn check_rust(sh: &Shell) -> Result<()> {
    terminal::step("Checking", "the Rust code, by clippy");
    cargo(sh)
        .args(["clippy", "--locked", "--workspace", "--all-targets"])
        .args(["--", "--deny", "warnings"])
        .run()
        .context("clippy found something")
}

fn check_shell(sh: &Shell) -> Result<()> {
    terminal::step("Checking", "the shell scripts, by shellcheck");
    let mut scripts = sh.read_dir("xtask/server")?;
    scripts.retain(|file| file.extension().is_some_and(|extension| extension == "sh"));
    scripts.extend(["xtask/src/builder.sh", "xtask/src/ssh_master.sh", ".ci/run"].map(Into::into));
    let check = cmd!(sh, "shellcheck {scripts...}").quiet();
    check.run().context("shellcheck found something")
}

fn run_tests(sh: &Shell, left_out: &[&str]) -> Result<()> {
    let tests = cargo(sh)
        .args(["test", "--locked", "--no-fail-fast", "--workspace"])
        .args(["--", "--show-output", TEST_THREADS])
        .args(left_out.iter().flat_map(|it| ["--skip", it]))
        // A debug print of an error would have a backtrace, too.
        .envs([("RUST_BACKTRACE", "0"), ("RUST_LIB_BACKTRACE", "0")]);
    let mut run = Command::from(tests).stdout(Stdio::piped()).spawn()?;
    let output = run.stdout.take().context("no output")?;
    let mut summary = Summary::default();
    print_tests(BufReader::new(output), &mut summary)?;
    let passed = run.wait()?.success();
    let Summary { figures, reasons } = summary;
    figures.iter().for_each(|it| terminal::step("Measured", it));
    reasons.iter().for_each(|it| terminal::step("Failed", it));
    ensure!(passed, "tests failed; each says why above");
    Ok(())
}

/// What is shown when all tests are over. Each line begins with the name of its test.
#[derive(Default)]
struct Summary {
    figures: Vec<String>,
    reasons: Vec<String>,
}

impl Summary {
    fn add_to_reason(&mut self, separator: &str, line: &str) {
        if let Some(reason) = self.reasons.last_mut() {
            *reason += separator;
            reason.extend(line.chars().take(MAX_REASON_CHARS));
        }
    }
}

/// Prints all but the output of passed tests.
fn print_tests(output: impl BufRead, summary: &mut Summary) -> Result<()> {
    let (mut name, mut passed) = (String::new(), false);
    let mut reason_lines = 0; // how many more may belong to a reason
    for line in output.lines() {
        let line = line?;
        if line == "successes:" {
            passed = true;
        } else if line == "failures:" || line.starts_with("test result: ") {
            passed = false;
            reason_lines = 0;
        } else if let Some(heading) = line.strip_prefix("---- ") {
            name = heading.trim_end_matches(" stdout ----").to_owned();
            reason_lines = 0;
        } else if let Some(figure) = line.strip_prefix(FIGURE) {
            summary.figures.push(format!("{name}: {figure}"));
        } else if line.starts_with("thread '") && line.contains(" panicked at ") && !passed {
            summary.reasons.push(format!("{name}:"));
            reason_lines = MAX_REASON_LINES;
        } else if line.starts_with("note: run with `RUST_BACKTRACE") {
            reason_lines = 0;
        } else if reason_lines > 0 && !line.is_empty() {
            let is_first = reason_lines == MAX_REASON_LINES;
            summary.add_to_reason(if is_first { " " } else { "\n" }, &line);
            reason_lines -= 1;
        }
        if !passed {
            println!("{line}");
        }
    }
    Ok(())
}
