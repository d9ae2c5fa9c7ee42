//! A deploy to eight hosts, beside one to a single host.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

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
}

/// By turns, always of a version that none of the hosts has.
pub fn measure(apps: &Apps) -> Result<Walls> {
    let fleet = Fleet::set_up()?;
    let binary = fs::read(&apps.first)?;
    let mut walls = [vec![], vec![]];
    for round in 0..ROUNDS {
        for (target, walls) in ["one", "eight"].into_iter().zip(&mut walls) {
            let version = [&binary[..], format!("{target} {round}").as_bytes()].concat();
            walls.push(fleet.deploy(target, &version)?);
        }
    }
    let [one, eight] = walls.map(median);
    Ok(Walls { one, eight })
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
