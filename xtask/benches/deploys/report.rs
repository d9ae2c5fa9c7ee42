//! The table, and what has to be said about it.

use std::{fs, thread::available_parallelism, time::Duration};

use crate::{
    FAR, LOGIN, NEAR, ROUNDS, Sample, Samples, VERY_FAR,
    cold_builds::ColdBuilds,
    edits::Edits,
    fleet,
    table::{self, against_the_first, bytes, each, median, milliseconds, seconds},
    tool::version_of,
    under_load::{DEPLOYS, UnderLoad},
};

pub struct Run {
    /// Of the tools, ours first.
    pub names: Vec<String>,
    /// The size of what is deployed.
    pub binary: u64,
    /// How long we watch a new version, in seconds.
    pub settle: f64,
    pub edits: Option<Edits>,
    pub samples: Samples,
    pub loads: Vec<UnderLoad>,
    pub hosts: Option<fleet::Walls>,
    pub builds: Option<ColdBuilds>,
    pub notes: Vec<String>,
}

pub fn print(run: &Run) {
    let rows = rows(run);
    println!();
    table::print(&[&[String::new()], &run.names[..]].concat(), &rows);
    println!();
    let notes = [about(run), who_is_ahead(run, &rows), run.notes.clone()].concat();
    notes.iter().for_each(|note| println!("- {note}"));
    println!();
    goals(run).iter().for_each(|goal| println!("{goal}"));
}

/// A line of the table.
pub struct Row {
    pub name: String,
    pub cells: Vec<String>,
    /// Of each tool, less being better; empty where nobody is compared.
    values: Vec<Option<f64>>,
    /// Why somebody may be ahead of us.
    why: &'static str,
}

const WATCHES: &str = "cutover watches a new version for a while before it goes live, and none of the others looks at it again once systemd has said that it is ready";
const VERIFIES: &str = "beside watching, cutover first asks what is live, and its server takes a lock, verifies the upload's sha256 before it may run, flushes what it writes to the disk, and records what became of it; the others copy, switch a link and restart";
const LOOKS: &str = "cutover asks the server what is live before, and follows the activation to its verdict; by hand one must know where to go back to";
const SAYS: &str = "cutover's server tells its state, which parts of the binary it has, and what it does; the others hear little more than how a command ended";

fn rows(run: &Run) -> Vec<Row> {
    let tasks = ["first deploy", "one-line change", "no change", "rollback"];
    let mut rows: Vec<Row> = run
        .edits
        .iter()
        .flat_map(|it| rows_of_edits(run, it))
        .collect();
    if !run.samples.is_empty() {
        rows.extend(tasks.iter().flat_map(|task| rows_of(run, task)));
    }
    rows.extend(rows_of_load(run));
    rows.extend(run.hosts.iter().flat_map(|walls| {
        let name = "**eight hosts** in one deploy, × a single one";
        let apart =
            "… less the work of seven hosts, which share these cores (an estimate, at best)";
        [
            row_of_ours(run, name, walls.eight, walls.one),
            row_of_ours(run, apart, walls.eight_apart, walls.one),
        ]
    }));
    rows.extend(run.builds.as_ref().map(|builds| {
        let name = "**cold build** of the xtask, × a crate with five of its libraries";
        row_of_ours(run, name, builds.xtask, builds.bare)
    }));
    rows
}

fn rows_of_edits(run: &Run, edits: &Edits) -> Vec<Row> {
    let name = "**edit to live** on a server, with the build";
    let walls = edits.server.iter().map(|it| Some(it.as_secs_f64()));
    let local = [
        (
            "**edit to live** on this machine, a handler",
            edits.local.handler,
        ),
        ("… a page", edits.local.page),
        ("**clone to live** on this machine", edits.local.clone),
    ];
    let server = ratios(name.to_owned(), walls.collect(), seconds, WATCHES);
    let local = local.map(|(name, wall)| Row {
        name: name.to_owned(),
        cells: only_ours(run, seconds(wall.as_secs_f64())),
        values: vec![],
        why: "",
    });
    [server].into_iter().chain(local).collect()
}

fn rows_of(run: &Run, task: &str) -> Vec<Row> {
    let switches = task != "no change";
    let mut rows = vec![];
    for line in [NEAR, FAR] {
        let name = format!("**{task}**, {} ms", line.as_millis());
        let walls = of_each(run, |tool| wall(run, tool, task, line));
        let unwatched = less(&walls, run.settle);
        rows.push(ratios(name, walls, seconds, WATCHES));
        if switches {
            let name = format!("… {} s of watching left out", run.settle);
            rows.push(ratios(name, unwatched, seconds, VERIFIES));
        }
    }
    let trips = of_each(run, |tool| round_trips(run, tool, task));
    rows.push(Row {
        name: "… in round trips".to_owned(),
        cells: each(&trips, |it| format!("{it:.1}")),
        values: trips,
        why: LOOKS,
    });
    let sent = of_each(run, |tool| sent(run, tool, task));
    rows.push(ratios("… sent".to_owned(), sent, bytes, LOOKS));
    let received = of_each(run, |tool| received(run, tool, task));
    rows.push(ratios("… received".to_owned(), received, bytes, SAYS));
    rows.push(row_of_handshakes(run, task));
    rows
}

fn of_each(run: &Run, figure: impl Fn(usize) -> Option<f64>) -> Vec<Option<f64>> {
    (0..run.names.len()).map(figure).collect()
}

fn ratios(
    name: String,
    values: Vec<Option<f64>>,
    unit: fn(f64) -> String,
    why: &'static str,
) -> Row {
    Row {
        name,
        cells: against_the_first(&values, unit),
        values,
        why,
    }
}

/// The first one's, which is ours.
fn less(walls: &[Option<f64>], settle: f64) -> Vec<Option<f64>> {
    let mut walls = walls.to_vec();
    if let Some(Some(ours)) = walls.first_mut() {
        *ours -= settle;
    }
    walls
}

fn row_of_handshakes(run: &Run, task: &str) -> Row {
    let cell = |tool| match (connections(run, tool, task), logins(run, tool, task)) {
        (Some(connections), Some(logins)) => format!("{connections}, {logins}"),
        _ => table::NONE.to_owned(),
    };
    Row {
        name: "… connections, logins".to_owned(),
        cells: (0..run.names.len()).map(cell).collect(),
        values: of_each(run, |tool| logins(run, tool, task)),
        why: "",
    }
}

fn rows_of_load(run: &Run) -> Vec<Row> {
    let kinds = ["new", "kept"].into_iter().enumerate();
    let kinds = kinds.filter(|_| !run.loads.is_empty());
    kinds
        .flat_map(|(kind, name)| [row_of_lost(run, kind, name), row_of_waits(run, kind)])
        .collect()
}

fn row_of_lost(run: &Run, kind: usize, name: &str) -> Row {
    let reports: Vec<_> = run.loads.iter().map(|it| &it.deploys[kind]).collect();
    let cell = |lost: usize, answered: usize| format!("{lost} of {}", lost + answered);
    Row {
        name: format!("**lost** in {DEPLOYS} deploys, {name} connections"),
        cells: reports
            .iter()
            .map(|it| cell(it.lost.len(), it.answered.len()))
            .collect(),
        values: reports
            .iter()
            .map(|it| Some(it.lost.len() as f64))
            .collect(),
        why: "",
    }
}

fn row_of_waits(run: &Run, kind: usize) -> Row {
    let p999 = |load: &UnderLoad| {
        let [calm, deploys] = [&load.calm, &load.deploys].map(|it| milliseconds(it[kind].p999()));
        format!("{calm} → {deploys}")
    };
    Row {
        name: "… p99.9 of the answered, calm → deploys, ms".to_owned(),
        cells: run.loads.iter().map(p999).collect(),
        values: run
            .loads
            .iter()
            .map(|it| Some(it.deploys[kind].p999().as_secs_f64()))
            .collect(),
        why: "what is lost waits for nothing, and two versions at once share the cores for a moment",
    }
}

/// What only we are measured by, and its ratio to something else.
fn row_of_ours(run: &Run, name: &str, ours: Duration, than: Duration) -> Row {
    let [ours, than] = [ours, than].map(|it| it.as_secs_f64());
    let cell = format!("{}: {:.1}×", seconds(ours), ours / than);
    Row {
        name: name.to_owned(),
        cells: only_ours(run, cell),
        values: vec![],
        why: "",
    }
}

fn only_ours(run: &Run, cell: String) -> Vec<String> {
    let mut cells = vec![table::NONE.to_owned(); run.names.len()];
    cells[0] = cell;
    cells
}

/// What it takes not to be called noise.
const AHEAD: f64 = 0.95;

fn who_is_ahead(run: &Run, rows: &[Row]) -> Vec<String> {
    let mut notes = vec![];
    let mut task = "";
    for row in rows {
        if !row.name.starts_with('…') {
            task = &row.name;
        }
        let Some(Some(ours)) = row.values.first() else {
            continue;
        };
        let is_ahead = |value: &Option<f64>| value.is_some_and(|it| it < ours * AHEAD);
        let ahead: Vec<&str> = (row.values.iter().zip(&run.names))
            .filter(|(value, _)| is_ahead(value))
            .map(|(_, name)| &**name)
            .collect();
        if !ahead.is_empty() {
            let why = if row.why.is_empty() {
                "not explained"
            } else {
                row.why
            };
            let name = row.name.trim_start_matches("… ");
            let of = if name == task {
                String::new()
            } else {
                format!(" ({name})")
            };
            let row = format!("{task}{of}").replace("**", "");
            notes.push((why, format!("{row}: {}", ahead.join(", "))));
        }
    }
    by_reason(&notes)
}

fn by_reason(notes: &[(&'static str, String)]) -> Vec<String> {
    let mut reasons: Vec<&str> = notes.iter().map(|(why, _)| *why).collect();
    reasons.sort();
    reasons.dedup();
    let note = |why: &&str| {
        let rows = notes.iter().filter(|(reason, _)| reason == why);
        let rows: Vec<&str> = rows.map(|(_, row)| &**row).collect();
        format!("Ahead of cutover, since {why}: {}.", rows.join("; "))
    };
    reasons.iter().map(note).collect()
}

fn about(run: &Run) -> Vec<String> {
    let cores = available_parallelism().map_or(0, usize::from);
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release
        .lines()
        .find_map(|it| it.strip_prefix("PRETTY_NAME="));
    let version = |of, argument| version_of(of, argument).unwrap_or_else(|error| error.to_string());
    vec![
        format!(
            "{cores} cores, {}, {}, rsync {}; medians of {} rounds at 0 ms and {} at {} ms of round-trip time, in which all take turns; a binary of {}, built before.",
            system.unwrap_or("?").trim_matches('"'),
            version("ssh", "-V"),
            version("rsync", "--version"),
            ROUNDS[0].1,
            ROUNDS[1].1,
            FAR.as_millis(),
            bytes(run.binary as f64),
        ),
        "All come as root but cutover, whose user may run its one script by sudo. A ratio is to cutover's figure. Round trips are what the time at 100 ms exceeds that at 0 ms by. Bytes are TCP's payload, logins what the server's sshd counts.".to_owned(),
        "The line delays, but is as wide as wished and never starts slowly: that who sends all of the binary waits longer on a real one shows only in the bytes.".to_owned(),
        "Under load nothing is delayed: what clients notice is decided on the server. What serves is this template's app for all, and it drains when it is told to stop; without that the others would lose more.".to_owned(),
    ]
}

fn samples<'a>(run: &'a Run, tool: usize, task: &'a str, line: Duration) -> Option<&'a [Sample]> {
    run.samples.get(&(tool, task, line)).map(|it| &**it)
}

fn wall(run: &Run, tool: usize, task: &str, line: Duration) -> Option<f64> {
    let walls = samples(run, tool, task, line)?.iter().map(|it| it.wall);
    Some(median(walls.collect()).as_secs_f64())
}

fn round_trips(run: &Run, tool: usize, task: &str) -> Option<f64> {
    round_trips_by(run, tool, task, FAR)
}

/// What the time over this line exceeds that over none by.
fn round_trips_by(run: &Run, tool: usize, task: &str, line: Duration) -> Option<f64> {
    let longer = wall(run, tool, task, line)? - wall(run, tool, task, NEAR)?;
    Some(longer / line.as_secs_f64())
}

fn count(run: &Run, tool: usize, task: &str, of: fn(&Sample) -> u64) -> Option<f64> {
    let counts = samples(run, tool, task, NEAR)?.iter().map(of);
    Some(median(counts.collect()) as f64)
}

fn sent(run: &Run, tool: usize, task: &str) -> Option<f64> {
    count(run, tool, task, |it| it.traffic.sent)
}

fn received(run: &Run, tool: usize, task: &str) -> Option<f64> {
    count(run, tool, task, |it| it.traffic.received)
}

fn connections(run: &Run, tool: usize, task: &str) -> Option<f64> {
    count(run, tool, task, |it| it.traffic.connections)
}

fn logins(run: &Run, tool: usize, task: &str) -> Option<f64> {
    count(run, tool, task, |it| it.logins)
}

/// What a command in a connection takes: to open a channel, and to run it.
const COMMAND: f64 = 2.0;

/// The most round trips beyond the connection's set-up.
const GOALS: [(&str, f64); 5] = [
    ("status", 2.0),
    ("no change", 3.0),
    ("rollback", 4.0),
    ("one-line change", 6.0),
    ("first deploy", 6.0),
];

/// The most that a one-line change sends and receives: a part of the binary, and bytes.
const PATCH: (f64, f64) = (0.012, 8000.0);

/// What cutover wants of itself.
fn goals(run: &Run) -> Vec<String> {
    let round_trips = |run, tool, task| round_trips_by(run, tool, task, VERY_FAR);
    let Some(alone) = round_trips(run, 0, LOGIN) else {
        return vec![];
    };
    let set_up = alone - COMMAND;
    let mut lines = vec![format!(
        "cutover beyond the connection's set-up of {set_up:.1} round trips of {} ms \
         ({LOGIN}, {alone:.1}, without its {COMMAND} for a channel and a command):",
        VERY_FAR.as_millis()
    )];
    for (task, goal) in GOALS {
        let trips = round_trips(run, 0, task).unwrap_or(f64::NAN);
        let [connections, logins] =
            [connections, logins].map(|of| of(run, 0, task).unwrap_or(f64::NAN));
        lines.push(format!(
            "  {task}: {:.1} round trips (goal {goal}), {connections} connections, {logins} logins",
            trips - set_up
        ));
    }
    let both_ways = |task| {
        let total = Option::zip(sent(run, 0, task), received(run, 0, task));
        total.map_or("?".to_owned(), |(sent, received)| bytes(sent + received))
    };
    lines.push(format!(
        "  one-line change: {} both ways (goal {}); {LOGIN} alone {}, no change {}",
        both_ways("one-line change"),
        bytes(run.binary as f64 * PATCH.0 + PATCH.1),
        both_ways(LOGIN),
        both_ways("no change"),
    ));
    lines
}
