//! Just enough of an HTTP client to be sure of what it does: it never retries.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    thread::sleep,
    time::Duration,
};

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    /// The version that answered: its instance without the number.
    pub fn version(&self) -> Option<&str> {
        let (version, _number) = self.header("cutover-instance")?.rsplit_once('.')?;
        Some(version)
    }

    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }
}

pub struct Connection(BufReader<TcpStream>);

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        Ok(Connection(BufReader::new(stream)))
    }

    pub fn send(&mut self, text: &str) -> io::Result<()> {
        self.0.get_mut().write_all(text.as_bytes())
    }

    pub fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))?;
        self.read_answer()
    }

    pub fn read_answer(&mut self) -> io::Result<Answer> {
        read_answer(&mut self.0)
    }

    /// The next line of a stream, such as /events is.
    pub fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line),
        }
    }
}

pub fn read_answer(stream: &mut impl BufRead) -> io::Result<Answer> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let status = head.get(9..12).and_then(|it| it.parse().ok());
    let mut answer = Answer {
        status: status.ok_or(io::ErrorKind::InvalidData)?,
        head,
        body: String::new(),
    };
    let length: usize = answer
        .header("content-length")
        .map_or(0, |it| it.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    answer.body = String::from_utf8_lossy(&body).into_owned();
    Ok(answer)
}

/// The version that serves, once it is always the same: an instance that was told to stop
/// may take another connection or two.
pub fn served(address: SocketAddr) -> Option<String> {
    let ask = || get(address, "/version").ok()?.version().map(str::to_owned);
    let mut same = 0;
    let mut last = ask()?;
    while same < 5 {
        sleep(Duration::from_millis(20));
        let next = ask()?;
        same = if next == last { same + 1 } else { 0 };
        last = next;
    }
    Some(last)
}

pub fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    Connection::open(address)?.get(path)
}
