//! A line to a server that takes its time: a proxy that delays, keeps the order, and
//! counts. It has no bandwidth limit and no slow start, so that what it costs to send
//! much is not in the time but in the bytes.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::Result;

pub struct Proxy {
    address: SocketAddr,
    line: Arc<Line>,
}

/// What one command put on the wire, without the headers of TCP and below.
#[derive(Clone, Copy)]
pub struct Traffic {
    pub sent: u64,
    pub received: u64,
    pub connections: u64,
}

struct Line {
    server: SocketAddr,
    round_trip: Mutex<Duration>,
    sent: AtomicU64,
    received: AtomicU64,
    connections: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// It ends with the process.
    pub fn start(server: SocketAddr) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let line = Arc::new(Line {
            server,
            round_trip: Mutex::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            open: Mutex::default(),
        });
        let same = Arc::clone(&line);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let line = Arc::clone(&same);
                thread::spawn(move || line.carry(client));
            }
        });
        Ok(Proxy { address, line })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn round_trip(&self) -> Duration {
        *self.line.round_trip.lock().unwrap()
    }

    /// For connections from here on.
    pub fn set_round_trip(&self, round_trip: Duration) {
        *self.line.round_trip.lock().unwrap() = round_trip;
    }

    /// Ends all connections, so that no command can use one of the command before, and
    /// says what was carried since the last time.
    pub fn drop_connections(&self) -> Traffic {
        sleep(self.round_trip() + SLACK);
        for client in self.line.open.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
        }
        Traffic {
            sent: self.line.sent.swap(0, Relaxed),
            received: self.line.received.swap(0, Relaxed),
            connections: self.line.connections.swap(0, Relaxed),
        }
    }
}

/// For a last message to be read and counted.
const SLACK: Duration = Duration::from_millis(50);

/// Bytes, and when they are there. No bytes are the end of them.
type Chunk = (Instant, Vec<u8>);

impl Line {
    /// TCP's own handshake takes a round trip until the client may speak, and half of one
    /// more until the server may.
    fn carry(&self, client: TcpStream) {
        let round_trip = *self.round_trip.lock().unwrap();
        let one_way = round_trip / 2;
        let connected = Instant::now() + round_trip;
        self.connections.fetch_add(1, Relaxed);
        self.open.lock().unwrap().extend(client.try_clone());
        let (up, to_server) = channel();
        let (down, to_client) = channel();
        thread::scope(|scope| {
            scope.spawn(|| read(&client, up, &self.sent, connected, one_way));
            sleep_until(connected + one_way);
            if let Ok(server) = self.reach_server() {
                let [same, server] = server;
                scope.spawn(move || write(&same, &to_server));
                scope.spawn(move || read(&server, down, &self.received, connected, one_way));
                write(&client, &to_client);
            }
            let _ = client.shutdown(Shutdown::Both);
        });
    }

    fn reach_server(&self) -> io::Result<[TcpStream; 2]> {
        let server = TcpStream::connect(self.server)?;
        Ok([server.try_clone()?, server])
    }
}

fn read(
    mut from: &TcpStream,
    to: Sender<Chunk>,
    count: &AtomicU64,
    connected: Instant,
    delay: Duration,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = from.read(&mut buffer).unwrap_or(0);
        let arrival = Instant::now().max(connected) + delay;
        count.fetch_add(length as u64, Relaxed);
        let sent = to.send((arrival, buffer[..length].to_vec()));
        if length == 0 || sent.is_err() {
            return;
        }
    }
}

fn write(mut to: &TcpStream, from: &Receiver<Chunk>) {
    let _ = to.set_nodelay(true);
    for (arrival, bytes) in from {
        sleep_until(arrival);
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn sleep_until(then: Instant) {
    sleep(then.saturating_duration_since(Instant::now()));
}
