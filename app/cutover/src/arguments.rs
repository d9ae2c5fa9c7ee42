//! The arguments that every deployed server answers.

use std::env;
use std::process::ExitCode;

use crate::{healthcheck, identity};

const USAGE: &str = "\
usage: APP               serve
       APP healthcheck   exit with 0 if this instance serves
       APP --version     print the version

environment: LISTEN=127.0.0.1:3000   where to listen, unless systemd passes a socket
             DRAIN_SECONDS=30        how long open connections may take to end
             LINGER_SECONDS=0        how long to go on accepting after SIGTERM
             RUST_LOG=info           what to log";

/// Carries out `healthcheck`, `--version` and `--help`, and refuses any other argument.
/// Returns `None` if there is no argument: then serve.
///
/// [`serve`](crate::serve) calls this itself.
pub fn arguments() -> Option<ExitCode> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(|it| it.to_str()).collect();
    match arguments[..] {
        [] => return None,
        [Some("healthcheck")] => return Some(check_health()),
        [Some("--version")] => println!("{}", identity::version()),
        [Some("--help")] => println!("{USAGE}"),
        _ => {
            eprintln!("{USAGE}");
            return Some(ExitCode::from(2));
        }
    }
    Some(ExitCode::SUCCESS)
}

/// The reason goes to whoever asked, not to the log.
fn check_health() -> ExitCode {
    match healthcheck::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}
