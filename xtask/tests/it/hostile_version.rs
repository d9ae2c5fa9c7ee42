//! A version that means harm; a program of its own, compiled by `servers_trial.rs`. What it
//! does stands at the end of its binary.

use std::{
    env,
    ffi::{c_char, c_int, c_void},
    fs,
    io::{Read, Write},
    net::ToSocketAddrs,
    os::{fd::FromRawFd, unix::net::UnixDatagram},
    ptr,
    thread::sleep,
    time::Duration,
};

const SOCKET: c_int = 3;
const SIGTERM: c_int = 15;
const SIG_IGN: usize = 1;
const SHUT_RDWR: c_int = 2;

unsafe extern "C" {
    fn accept(socket: c_int, address: *mut c_void, length: *mut c_void) -> c_int;
    fn shutdown(socket: c_int, how: c_int) -> c_int;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn shmget(key: c_int, size: usize, flags: c_int) -> c_int;
    fn mq_open(name: *const c_char, flags: c_int, ...) -> c_int;
    fn sendmsg(socket: c_int, message: *const c_void, flags: c_int) -> isize;
}

fn main() {
    let this = fs::read("/proc/self/exe").unwrap();
    let tail = String::from_utf8_lossy(&this[this.len() - 40..]).into_owned();
    let does = |it: &str| tail.ends_with(&format!(" does:{it}\n"));
    if does("extend-start") {
        extend_for_ever();
    }
    if does("closes-the-port") {
        notify("READY=1");
        sleep(Duration::from_millis(100));
        unsafe { shutdown(SOCKET, SHUT_RDWR) };
        sleep(Duration::from_millis(50));
    }
    if does("serves") {
        std::thread::spawn(answer_for_ever);
    }
    if does("never-accepts") || does("serves") {
        loop {
            notify("READY=1");
            sleep(Duration::from_millis(200));
        }
    }
    if does("extend-stop") {
        unsafe { signal(SIGTERM, SIG_IGN) };
        notify("READY=1");
        std::thread::spawn(answer_for_ever);
        extend_for_ever();
    }
    if does("sends-the-socket") {
        notify("READY=1");
        // Refused before it reads its arguments.
        unsafe { sendmsg(SOCKET, ptr::null(), 0) };
        eprintln!("sendmsg was allowed");
    }
    if does("leaves-memory") {
        let made = unsafe { shmget(0x1234, 1 << 20, 0o1666) };
        eprintln!("shmget was allowed: {made}");
    }
    if does("leaves-a-queue") {
        let made = unsafe { mq_open(c"/litter".as_ptr(), 0o102, 0o666, ptr::null::<c_void>()) };
        eprintln!("mq_open was allowed: {made}");
    }
    if does("reads-memory") {
        for pid in (1..std::process::id() + 100).filter(|it| *it != std::process::id()) {
            for file in ["environ", "mem", "maps"] {
                if fs::File::open(format!("/proc/{pid}/{file}")).is_ok() {
                    eprintln!("opening {file} of {pid} was allowed");
                }
            }
        }
    }
    if does("eats-memory") {
        let eaten: Vec<Vec<u8>> = (0..256).map(|_| vec![1; 1 << 20]).collect();
        eprintln!("{} MB were allowed", eaten.len());
    }
    if does("starts-many") {
        let mut started = 0;
        let start = || std::thread::Builder::new().stack_size(1 << 14).spawn(|| sleep(Duration::from_secs(9)));
        while started < 1000 && start().is_ok() {
            started += 1;
        }
        eprintln!("{started} threads were started");
    }
    if does("looks-up") {
        let _ = ("example.invalid", 80).to_socket_addrs();
        eprintln!("looked up");
    }
    if does("litters") {
        for file in ["/dev/shm/litter", "/dev/mqueue/litter", "/tmp/litter", "/var/tmp/litter", "/run/litter"] {
            let _ = fs::write(file, "litter");
        }
    }
    if does("escapes") {
        eprintln!("\x1b]52;c;cHduZWQ=\x07\x1b[2J{}", "endless".repeat(10_000));
    }
    std::process::exit(1);
}

fn extend_for_ever() -> ! {
    loop {
        notify("EXTEND_TIMEOUT_USEC=3600000000");
        sleep(Duration::from_millis(200));
    }
}

/// As a good version does, but for a look at whether the socket still listens.
fn answer_for_ever() -> ! {
    let program = env::args().next().unwrap();
    let (_, instance) = program.rsplit_once("/app-").unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncutover-instance: {instance}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    loop {
        // The socket does not block.
        let client = unsafe { accept(SOCKET, ptr::null_mut(), ptr::null_mut()) };
        if client >= 0 {
            let mut client = unsafe { fs::File::from_raw_fd(client) };
            let _ = client.read(&mut [0; 1024]).and_then(|_| client.write_all(answer.as_bytes()));
        }
        sleep(Duration::from_millis(10));
    }
}

fn notify(message: &str) {
    let socket = UnixDatagram::unbound().unwrap();
    let to = env::var("NOTIFY_SOCKET").unwrap();
    socket.send_to(format!("{message}\nWATCHDOG=1").as_bytes(), to).unwrap();
}
