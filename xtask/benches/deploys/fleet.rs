//! A deploy to eight hosts, beside one to a single host.

use std::{
    fs,
    path::PathBuf,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    apps::Apps,
    configured::{by, xtask_with},
    lab::Server,
    site::Site,
    table::median,
    workspace::said,
};

const HOSTS: [&str; 8] = ["h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8"];

const ROUNDS: usize = 3;

pub struct Walls {
    pub one: Duration,
    pub eight: Duration,
    /// Eight, if each host were a machine of its own: an estimate, and at best.
    pub eight_apart: Duration,
}

/// By turns, always of a version that none of the hosts has.
pub fn measure(apps: &Apps) -> Result<Walls> {
    let fleet = Fleet::set_up()?;
    let binary = fs::read(&apps.first)?;
    let mut walls = [vec![], vec![]];
    let mut work = [vec![], vec![]];
    for round in 0..ROUNDS {
        for (n, target) in ["one", "eight"].into_iter().enumerate() {
            let version = [&binary[..], format!("{target} {round}").as_bytes()].concat();
            let before = work_of_others()?;
            walls[n].push(fleet.deploy(target, &version)?);
            work[n].push(work_of_others()?.saturating_sub(before));
        }
    }
    let ([one, eight], [work_of_one, work_of_eight]) = (walls.map(median), work.map(median));
    let cores = available_parallelism()?.get() as u32;
    Ok(Walls {
        one,
        eight,
        eight_apart: eight.saturating_sub(work_of_eight.saturating_sub(work_of_one) / cores),
    })
}

/// The time that the cores have worked, without what our commands have taken: on a machine that
/// does nothing else, the hosts' work and that of the ssh connections to them.
fn work_of_others() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().context("/proc/stat is empty")?;
    let fields = numbers(fields);
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else {
        bail!("/proc/stat has no times");
    };
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(") ").map(|(_, fields)| numbers(fields));
    // utime, stime, cutime, cstime: proc(5)
    let ours: i64 = fields.context("/proc/self/stat is empty")?[10..14]
        .iter()
        .sum();
    let ticks = user + nice + system + irq + softirq - ours;
    Ok(Duration::from_millis(10 * ticks as u64))
}

fn numbers(fields: &str) -> Vec<i64> {
    fields
        .split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect()
}

struct Fleet {
    site: Site,
    _others: Vec<Server>,
    xtask: PathBuf,
}

impl Fleet {
    fn set_up() -> Result<Fleet> {
        let target = "Target {\n        name: \"local\",";
        let named = |name: &str, hosts: &[&str]| {
            let hosts: String = hosts.iter().map(|it| format!("\"deploy@{it}\",")).collect();
            format!(
                "Target {{ name: \"{name}\", listen: Some(\"0.0.0.0:80\"), hosts: &[{hosts}], ..DEFAULTS }},"
            )
        };
        let targets = named("one", &HOSTS[..1]) + &named("eight", &HOSTS);
        let xtask = xtask_with("of-a-fleet", &[(target, &format!("{targets}{target}"))]);
        let site = Site::bare(HOSTS[0]);
        let config = site.workspace.place.path("ssh_config");
        fs::remove_file(&config)?;
        site.server.ssh_config(&config)?;
        let others = HOSTS[1..]
            .iter()
            .map(|name| {
                let server = Server::start_with(name, &[])?;
                server.ssh_config(&config)?;
                Ok(server)
            })
            .collect::<Result<_>>()?;
        let fleet = Fleet {
            site,
            _others: others,
            xtask,
        };
        fleet.run(&["setup", "eight", "--as", "root"])?;
        Ok(fleet)
    }

    fn deploy(&self, target: &str, binary: &[u8]) -> Result<Duration> {
        fs::write(self.site.workspace.root.join("binary"), binary)?;
        let start = Instant::now();
        self.run(&["deploy", target, "--build", "host"])?;
        Ok(start.elapsed())
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let said = said(&mut by(&self.xtask, &self.site.command(args)));
        ensure!(said.code == 0, "{args:?}: {}", said.people);
        Ok(())
    }
}
