//! The soak: deploys and rollbacks at random under load, each with one fault at a random
//! moment. After each fault exactly the live version runs within seconds, and no request is
//! lost unless the fault itself took it.
//!
//! `cargo xtask test` has a short one. A long one, and the same one again:
//! `CUTOVER_SOAK=200 CUTOVER_SEED=1 cargo test -p xtask --test it -- soak --nocapture`

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::process::CommandExt,
    process::{Child, Stdio},
    thread::sleep,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    app::{app, faulty_app},
    load::{Connections, Load, Report},
    place::wait_until,
    servers_healed::at_step,
    site::Site,
};

/// From a fault, or from the end of what goes on in spite of it.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// Longer than a client tries to connect again.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(180);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    ClientKilled,
    ScriptKilled,
    ScopeKilled,
    InstanceKilled,
    SshdKilled,
    Frozen,
    NetworkAway,
    PowerCut,
}
use Fault::*;

/// Each of them comes once in so many rounds.
const FAULTS: [Fault; 8] = [
    ClientKilled,
    ScriptKilled,
    ScopeKilled,
    InstanceKilled,
    SshdKilled,
    Frozen,
    NetworkAway,
    PowerCut,
];

#[test]
fn soak() {
    let number = |name: &str| env::var(name).ok().map(|it| it.parse::<u64>().unwrap());
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("CUTOVER_SEED").unwrap_or_else(|| clock().as_secs());
    let rounds = number("CUTOVER_SOAK").unwrap_or(FAULTS.len() as u64);
    println!("figure: seed {seed}");
    let mut soak = Soak::begin(Random(seed));
    let mut faults = Vec::new();
    for round in 1..=rounds {
        if faults.is_empty() {
            faults = FAULTS.to_vec();
        }
        let fault = faults.swap_remove(soak.random.below(faults.len() as u64) as usize);
        soak.round(round, fault);
    }
    soak.print_figures(rounds);
}

struct Soak {
    site: Site,
    random: Random,
    /// For each fault: the rounds, the longest time until rest, the lost requests.
    figures: BTreeMap<Fault, (usize, Duration, usize)>,
    answered: usize,
}

impl Soak {
    fn begin(random: Random) -> Soak {
        let site = Site::set_up("soak");
        site.root(
            "sed -i 's/settle=[0-9.]*/settle=0.5/; s/drain=[0-9]*/drain=1/' /srv/app/settings
             sed -i 's/DRAIN_SECONDS=.*/DRAIN_SECONDS=1/; s/TimeoutStopSec=.*/TimeoutStopSec=6/' \
                 /etc/systemd/system/app@.service
             systemctl daemon-reload",
        );
        for label in ["A", "B"] {
            site.deploy(&app(label)).succeeds();
        }
        wait_until("B to run alone", || At::look(&site).is_at_rest(true));
        Soak {
            site,
            random,
            figures: BTreeMap::new(),
            answered: 0,
        }
    }

    fn round(&mut self, round: u64, fault: Fault) {
        let before = At::look(&self.site);
        let load = [Connections::New, Connections::KeptAlive]
            .map(|kind| Load::start(self.site.address(), 2, kind));
        let mut client = self.client(round);
        let begun = self.strike(fault, &mut client);
        let (code, said) = end(client);
        let begun = match fault {
            // What they left alone ends in its own time.
            ClientKilled | InstanceKilled | SshdKilled | NetworkAway => self.verdict(),
            _ => begun,
        };
        let context = format!("round {round}, {fault:?}: {code:?} {said}");
        let (after, took) = self.rest(begun, fault, &context);
        let reports = load.map(Load::stop);
        check_verdict(&before, &after, fault, &context);
        if code == Some(0) {
            assert_eq!(said.lines().last(), Some(&*after.live), "{context}");
        }
        assert_eq!(self.site.served(), after.live, "{context}");
        let lost = self.count(fault, took, &reports);
        println!("{round}: {fault:?}, {code:?}, at rest after {took:?}, {lost} lost");
    }

    /// A client that deploys, at times a version that fails, or rolls back.
    fn client(&mut self, round: u64) -> Child {
        let can_go_back = "/srv/app/bin/activate status | grep -c ^rollback";
        let can_go_back = self.site.root(can_go_back).trim() != "1";
        let target = self.site.target();
        let label = format!("round {round}");
        let binary = match self.random.below(6) {
            0 | 1 if can_go_back => None,
            2 => Some(faulty_app(&label, "exits")),
            _ => Some(app(&label)),
        };
        let args: &[&str] = match &binary {
            None => &["rollback", &target],
            Some(_) => &["deploy", &target, "--build", "host"],
        };
        if let Some(binary) = binary {
            fs::write(self.site.workspace.root.join("binary"), binary).unwrap();
        }
        let mut command = self.site.command(args);
        let command = command.process_group(0).stderr(Stdio::null());
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Returns when the fault was over.
    fn strike(&mut self, fault: Fault, client: &mut Child) -> Instant {
        let moment = Duration::from_millis(self.random.below(2500));
        let other_way = self.random.below(2) == 1;
        let lasts = Duration::from_millis(500 + self.random.below(3000));
        let unit = "app-activation-$A.service";
        // While an activation runs, so at a moment of its.
        let in_script = |command: &str| {
            let moment = moment.as_secs_f32() / 2.0;
            at_step(&self.site, "worker", &format!("sleep {moment}; {command}"));
        };
        match (fault, other_way) {
            (ScriptKilled, _) => in_script("kill -KILL $P"),
            (ScopeKilled, false) => in_script(&format!("systemctl kill --signal KILL {unit}")),
            (ScopeKilled, true) => in_script("echo 1 >$C/cgroup.kill"),
            (Frozen, false) => in_script(&format!(
                "kill -STOP $P; sleep {}; kill -CONT $P",
                lasts.as_secs_f32()
            )),
            (Frozen, true) => in_script(&format!(
                "echo 1 >$C/cgroup.freeze; sleep {}; echo 0 >$C/cgroup.freeze",
                lasts.as_secs_f32()
            )),
            _ => {
                sleep(moment);
                self.strike_from_outside(fault, other_way, lasts, client);
            }
        }
        Instant::now()
    }

    fn strike_from_outside(&self, fault: Fault, newest: bool, lasts: Duration, client: &mut Child) {
        let site = &self.site;
        match fault {
            ClientKilled => client.kill().unwrap(),
            SshdKilled => drop(site.root("pkill -KILL sshd")),
            InstanceKilled => {
                let newest = if newest { "--newest" } else { "--oldest" };
                site.root(&format!("pkill -KILL {newest} -u app -f ^/srv/app/run/"));
            }
            NetworkAway => {
                site.server.disconnect().unwrap();
                sleep(lasts);
                site.server.connect().unwrap();
            }
            PowerCut => {
                site.server.kill().unwrap();
                sleep(lasts / 4);
                site.server.boot().unwrap();
            }
            ScriptKilled | ScopeKilled | Frozen => unreachable!(),
        }
    }

    /// Waits until no activation is without a verdict.
    fn verdict(&self) -> Instant {
        wait_until("the verdict", || At::look(&self.site).unfinished == 0);
        Instant::now()
    }

    /// Nobody gives a command.
    fn rest(&self, begun: Instant, fault: Fault, context: &str) -> (At, Duration) {
        loop {
            let now = At::look(&self.site);
            let took = begun.elapsed();
            if now.is_at_rest(fault != PowerCut) {
                return (now, took);
            }
            assert!(took < REST_TIMEOUT, "not at rest: {context}\n{now:?}");
        }
    }

    fn count(&mut self, fault: Fault, took: Duration, reports: &[Report]) -> usize {
        let lost: Vec<&String> = reports.iter().flat_map(|it| &it.lost).collect();
        if !matches!(fault, InstanceKilled | NetworkAway | PowerCut) {
            assert!(lost.is_empty(), "{fault:?}: {lost:?}");
        }
        let answered: usize = reports.iter().map(|it| it.answered.len()).sum();
        assert!(answered > 0, "{fault:?}: no answer at all");
        self.answered += answered;
        let (rounds, longest, all_lost) = self.figures.entry(fault).or_default();
        *rounds += 1;
        *longest = took.max(*longest);
        *all_lost += lost.len();
        lost.len()
    }

    fn print_figures(&self, rounds: u64) {
        for (fault, (times, longest, lost)) in &self.figures {
            println!(
                "{fault:?}: {times} times, at rest within {longest:.1?}, {lost} requests lost"
            );
        }
        let longest = self.figures.values().map(|(_, it, _)| *it).max().unwrap();
        let lost: usize = self.figures.values().map(|(_, _, it)| it).sum();
        println!(
            "figure: {rounds} faults, each at rest within {longest:.1?}; {lost} of {} requests lost, \
             all by power, network or a killed instance",
            self.answered + lost
        );
    }
}

/// Returns its exit code and what it told programs.
fn end(mut client: Child) -> (Option<i32>, String) {
    let begun = Instant::now();
    while client.try_wait().unwrap().is_none() {
        if begun.elapsed() > CLIENT_TIMEOUT {
            client.kill().unwrap();
            panic!("the client does not end");
        }
        sleep(Duration::from_millis(20));
    }
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    (output.status.code(), said)
}

/// An activation that began has one verdict, and that is what is live.
fn check_verdict(before: &At, after: &At, fault: Fault, context: &str) {
    let records = &after.history[before.history.len()..];
    let begun = after.activations.saturating_sub(before.activations);
    let context = format!("{context}\n{records:?}\n{after:?}");
    assert_eq!(after.history[..before.history.len()], before.history);
    match fault {
        // The power may fail before anything is written.
        PowerCut => assert!(records.len() <= 1, "{context}"),
        _ => assert_eq!(records.len(), begun, "{context}"),
    }
    let live = match records.last().map(|it| it.split('\t').collect::<Vec<_>>()) {
        Some(fields) if fields[1] == "live" => fields[2].to_owned(),
        _ => before.live.clone(),
    };
    assert_eq!(after.live, live, "{context}");
}

/// What is on the server at a moment.
#[derive(Debug)]
struct At {
    live: String,
    /// The units of instances that are not inactive.
    units: Vec<String>,
    lock_is_free: bool,
    is_intact: bool,
    /// How many activations there were since the directory was made.
    activations: usize,
    unfinished: usize,
    history: Vec<String>,
}

impl At {
    fn look(site: &Site) -> At {
        let text = site.root(
            "cd /srv/app; live=$(readlink current); echo ${live#versions/app-}
             sha256sum <current
             flock --nonblock lock test ! -s lock && echo free || echo locked
             # Old logs are deleted, so each is counted once.
             for it in log/2*; do
                 grep -qsxF $it /root/counted || echo $it >>/root/counted
                 grep -qs '^verdict' $it || echo unfinished
             done | wc -l
             wc -l </root/counted
             echo; systemctl list-units --plain --no-legend 'app@*' | grep -v ' inactive '
             echo; cat history",
        );
        let mut parts = text
            .splitn(3, "\n\n")
            .map(|it| it.lines().map(str::to_owned));
        let head: Vec<String> = parts.next().unwrap().collect();
        At {
            live: head[0].clone(),
            is_intact: head[0].ends_with(&head[1][..12]),
            lock_is_free: head[2] == "free",
            unfinished: head[3].parse().unwrap(),
            activations: head[4].parse().unwrap(),
            units: parts.next().unwrap().collect(),
            history: parts.next().unwrap().collect(),
        }
    }

    /// The power may fail before an activation has written what it is.
    fn is_at_rest(&self, with_verdict: bool) -> bool {
        assert!(self.is_intact, "{self:?}");
        let is_live = |it: &String| {
            it.starts_with(&format!("app@{}.", self.live)) && it.contains(" running ")
        };
        self.lock_is_free
            && self.units.len() == 1
            && self.units.iter().all(is_live)
            && (self.unfinished == 0 || !with_verdict)
    }
}

/// Splitmix64: the same numbers again from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}
