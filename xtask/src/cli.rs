//! The command line: which commands there are, and what their arguments have in common.

use std::{ffi::OsString, fmt::Display, str::FromStr};

use anyhow::{Result, anyhow};
use lexopt::Arg;

use crate::target::{AddressArgs, Target, Usage};

/// The arguments of one command.
pub struct Args {
    parser: lexopt::Parser,
    help: &'static str,
}

impl Args {
    /// Those of this process.
    pub fn from_env(help: &'static str) -> Args {
        Args {
            parser: lexopt::Parser::from_env(),
            help,
        }
    }

    /// The rest of the line belongs to a command, which has a help text of its own.
    pub fn for_command(self, help: &'static str) -> Args {
        Args { help, ..self }
    }

    /// The next argument. Prints the help text and exits where it is `--help`.
    pub fn next(&mut self) -> Result<Option<Arg<'_>>> {
        match self.parser.next() {
            Ok(Some(Arg::Short('h') | Arg::Long("help"))) => {
                print!("{}", self.help);
                std::process::exit(0);
            }
            Ok(next) => Ok(next),
            Err(error) => Err(usage(error, self.help)),
        }
    }

    /// The value of the option that came last.
    pub fn value<T: FromStr<Err: Display>>(&mut self, option: &str) -> Result<T> {
        let help = self.help;
        let value = self.parser.value().map_err(|error| usage(error, help))?;
        let value = text(value, help)?;
        value
            .parse()
            .map_err(|error| usage(format!("`{option} {value}`: {error}"), help))
    }

    /// A command without options takes at most a target.
    pub fn only_target(mut self) -> Result<TargetArg> {
        let mut target = TargetArg::default();
        let help = self.help;
        while let Some(arg) = self.next()? {
            target.take(arg, help)?;
        }
        Ok(target)
    }

    /// `... -- ARGUMENT...`: our own arguments, and those for another program.
    pub fn split_at_dashes(mut self) -> Result<(Args, Vec<String>)> {
        let help = self.help;
        let raw = self.parser.raw_args().map_err(|error| usage(error, help))?;
        let raw: Vec<String> = raw.map(|arg| text(arg, help)).collect::<Result<_>>()?;
        let dashes = raw.iter().position(|arg| arg == "--");
        let (before, rest) = raw.split_at(dashes.unwrap_or(raw.len()));
        let parser = lexopt::Parser::from_args(before);
        let rest = rest.iter().skip(1).cloned().collect();
        Ok((Args { parser, help }, rest))
    }

    pub fn help(&self) -> &'static str {
        self.help
    }
}

/// `[TARGET]`: a name of `config.rs`, `USER@HOST:/DIR`, or `/DIR`.
#[derive(Default)]
pub struct TargetArg(Option<String>);

impl TargetArg {
    /// Takes an argument that is no known option: the target, if there is none yet.
    pub fn take(&mut self, arg: Arg, help: &'static str) -> Result<()> {
        match arg {
            Arg::Value(name) if self.0.is_none() => {
                self.0 = Some(text(name, help)?);
                Ok(())
            }
            other => Err(usage(other.unexpected(), help)),
        }
    }

    pub fn find(&self) -> Result<Target<'_>> {
        const KNOWN: &AddressArgs = &AddressArgs {
            listen: None,
            domain: None,
        };
        self.find_with(KNOWN)
    }

    /// The address is that of an ad-hoc target.
    pub fn find_with<'a>(&'a self, address: &'a AddressArgs) -> Result<Target<'a>> {
        Target::find(self.0.as_deref(), address)
    }
}

/// The error for a wrong command line.
pub fn usage(problem: impl Display, help: &str) -> anyhow::Error {
    let first = help.lines().find(|line| line.starts_with("Usage: "));
    let synopsis = first.unwrap_or_default();
    let command = synopsis
        .trim_start_matches("Usage: ")
        .split(" [")
        .next()
        .unwrap_or_default();
    anyhow!(Usage(format!(
        "{problem}\nhint: {}; `{command} --help` explains it",
        synopsis.replacen("Usage", "usage", 1)
    )))
}

fn text(argument: OsString, help: &str) -> Result<String> {
    argument
        .into_string()
        .map_err(|argument| usage(format!("not UTF-8: {argument:?}"), help))
}
