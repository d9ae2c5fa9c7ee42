//! One file for each command.

mod build;
mod deploy;
mod env;
mod history;
mod logs;
mod restart;
mod rollback;
mod run;
mod setup;
mod start;
mod status;
mod stop;
mod test;

use anyhow::Result;
use xshell::Shell;

use crate::cli::{self, Args};

pub use setup::prepare_this_machine;

pub fn run(sh: &Shell, command: &str, args: Args) -> Result<()> {
    match command {
        "deploy" => deploy::run(sh, args.for_command(deploy::HELP)),
        "rollback" => rollback::run(sh, args.for_command(rollback::HELP)),
        "status" => status::run(sh, args.for_command(status::HELP)),
        "history" => history::run(sh, args.for_command(history::HELP)),
        "logs" => logs::run(sh, args.for_command(logs::HELP)),
        "env" => env::run(sh, args.for_command(env::HELP)),
        "run" => run::run(sh, args.for_command(run::HELP)),
        "setup" => setup::run(sh, args.for_command(setup::HELP)),
        "build" => build::run(sh, args.for_command(build::HELP)),
        "start" => start::run(sh, args.for_command(start::HELP)),
        "stop" => stop::run(sh, args.for_command(stop::HELP)),
        "restart" => restart::run(sh, args.for_command(restart::HELP)),
        "test" => test::run(sh, args.for_command(test::HELP)),
        unknown => Err(cli::usage(
            format!("no command `{}`", unknown.escape_debug()),
            args.help(),
        )),
    }
}
