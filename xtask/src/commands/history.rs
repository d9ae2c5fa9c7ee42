//! `history`: what can be rolled back to, and every activation with its verdict.

use anyhow::{Result, ensure};
use xshell::Shell;

use crate::{
    cli::Args,
    commands::status::{JsonArgs, print_all},
    host::Host,
    json,
    kubernetes::Cluster,
    state::{Record, State},
};

pub const HELP: &str = "\
Show what can be rolled back to, and every activation with its verdict

Usage: cargo xtask history [TARGET] [OPTIONS]

Options:
      --json    Print JSON
  -h, --help    Show this help
";

pub fn run(sh: &Shell, args: Args) -> Result<()> {
    let options = JsonArgs::parse(args)?;
    let target = options.target.find()?;
    if let Some(cluster) = Cluster::of(sh, target) {
        return cluster.history(options.json);
    }
    let hosts = Host::all(sh, target);
    print_all(&hosts, options.json, read, to_json, to_text)
}

type History = (State, Vec<Record>);

fn read(host: &Host) -> Result<History> {
    let state = host.state()?;
    let mut session = host.request(&["history"])?;
    let mut records = Vec::new();
    while let Some(line) = session.read_line()? {
        // A damaged line must not hide the others.
        records.extend(Record::parse(&line));
    }
    ensure!(
        session.exit_code() == Some(0),
        "cannot read the history of {}",
        host.name()
    );
    Ok((state, records))
}

fn to_json((state, records): &History) -> Vec<(&'static str, String)> {
    let rollback = state.rollback.iter();
    vec![
        (
            "rollback",
            json::array(rollback.map(|known| json::string(&known.version.to_string()))),
        ),
        (
            "activations",
            json::array(records.iter().map(record_to_json)),
        ),
    ]
}

pub fn record_to_json(record: &Record) -> String {
    json::object([
        ("at", json::string(&record.at)),
        ("verdict", json::string(record.verdict())),
        ("version", json::string(&record.version.to_string())),
        ("sha256", json::string(&record.sha256)),
        ("by", json::string(&record.by)),
    ])
}

fn to_text(_: &Host, (state, records): &History) -> String {
    let mut text = String::new();
    for (back, known) in state.rollback.iter().enumerate() {
        let use_it = match back {
            0 => "live".to_owned(),
            _ => format!("rollback --to {back}"),
        };
        text += &format!("  {}  {use_it}\n", known.version);
    }
    text += "\n";
    for record in records.iter().rev() {
        text += &format!(
            "  {}  {:6}  {}  {}\n",
            record.at,
            record.verdict(),
            record.version,
            record.by
        );
    }
    text
}
