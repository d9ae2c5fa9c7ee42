//! Clients that ask all the time and count what goes wrong.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant},
};

use crate::http::{Answer, Connection};

#[derive(Clone, Copy)]
pub enum Connections {
    /// One for each request. Paced: a kernel remembers each for minutes, and drops
    /// new ones once its table is full.
    New,
    /// As long as the server lets us.
    KeptAlive,
}

#[derive(Default)]
pub struct Report {
    /// How long each good answer took, sorted.
    pub answered: Vec<Duration>,
    /// What happened to those that got no good answer.
    pub lost: Vec<String>,
    /// How many answers each version gave.
    pub by_version: BTreeMap<String, usize>,
}

impl Report {
    /// What all but one in a thousand took at most.
    pub fn p999(&self) -> Duration {
        self.answered[self.answered.len() * 999 / 1000]
    }
}

pub struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Report>>,
}

impl Load {
    pub fn start(address: SocketAddr, clients: usize, connections: Connections) -> Load {
        let pause = Duration::from_millis(match connections {
            Connections::New => 10,
            Connections::KeptAlive => 2,
        });
        Load::start_with(address, clients, connections, pause)
    }

    pub fn start_with(
        address: SocketAddr,
        clients: usize,
        connections: Connections,
        pause: Duration,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients)
            .map(|_| {
                let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
                thread::spawn(move || client(address, connections, pause, &stop, &asked))
            })
            .collect();
        Load {
            stop,
            asked,
            clients,
        }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }

    pub fn stop(self) -> Report {
        self.stop.store(true, Relaxed);
        let mut all = Report::default();
        for client in self.clients {
            let report = client.join().unwrap();
            all.answered.extend(report.answered);
            all.lost.extend(report.lost);
            for (version, count) in report.by_version {
                *all.by_version.entry(version).or_default() += count;
            }
        }
        all.answered.sort();
        all
    }
}

fn client(
    address: SocketAddr,
    connections: Connections,
    pause: Duration,
    stop: &AtomicBool,
    asked: &AtomicUsize,
) -> Report {
    let mut report = Report::default();
    let mut kept: Option<Connection> = None;
    while !stop.load(Relaxed) {
        let mut ask = || -> std::io::Result<Answer> {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(address)?,
            };
            let answer = connection.get("/version")?;
            if matches!(connections, Connections::KeptAlive) && !answer.closes() {
                kept = Some(connection);
            }
            Ok(answer)
        };
        let start = Instant::now();
        let result = ask();
        asked.fetch_add(1, Relaxed);
        match result {
            Ok(answer) if answer.status == 200 => {
                report.answered.push(start.elapsed());
                let version = answer.version().unwrap_or_default().to_owned();
                *report.by_version.entry(version).or_default() += 1;
            }
            Ok(answer) => report.lost.push(format!("status {}", answer.status)),
            Err(error) => report.lost.push(error.to_string()),
        }
        if !pause.is_zero() {
            sleep(pause);
        }
    }
    report
}
