//! Coming up: the name, the socket, the word that it is ready.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{
    BINARY, Instance, NEW, address, command, command_with_socket, eventually, get, outcome,
};

#[test]
fn without_a_link_it_is_a_development_build() {
    let address = address();
    let _app = Instance::start(Command::new(BINARY).env("LISTEN", address.to_string()));

    assert_eq!(get(address, "/").header("x-version"), Some("dev"));
    assert_eq!(get(address, "/healthz").body, "ok dev\n");
}

#[test]
fn the_socket_that_systemd_passes_is_taken() {
    let socket = TcpListener::bind(address()).unwrap();
    let address = socket.local_addr().unwrap();
    let app = Instance::start(&mut command_with_socket(&format!("{NEW}.1"), &socket));

    assert_eq!(get(address, "/healthz").body, format!("ok {NEW}.1\n"));
    assert!(app.log().contains(&format!("listening on {address}")));
}

#[test]
fn a_socket_for_another_process_is_not_taken() {
    let address = address();
    let _app = Instance::start(
        command(&format!("{NEW}.1"), address)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_PID", "1"),
    );
    assert_eq!(get(address, "/healthz").status, 200);
}

#[test]
fn under_systemd_it_does_not_hide_at_the_default_address() {
    let mut command = command(&format!("{NEW}.1"), address());
    let (code, message) = outcome(
        command
            .env_remove("LISTEN")
            .env("NOTIFY_SOCKET", "/nowhere"),
    );
    assert_eq!(code, Some(1));
    assert!(message.contains("systemd passes no socket"), "{message}");
}

#[test]
fn ipv6_is_an_address_too() {
    let free = TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap();
    let _app = Instance::start(&mut command(&format!("{NEW}.1"), free));
    assert_eq!(get(free, "/healthz").status, 200);
}

#[test]
fn an_address_in_use_is_a_clear_error() {
    let address = address();
    let _somebody_else = TcpListener::bind(address).unwrap();

    let (code, message) = outcome(&mut command(&format!("{NEW}.1"), address));
    assert_eq!(code, Some(1));
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains(&address.to_string()), "{message}");
    assert!(message.contains("LISTEN"), "{message}");
}

#[test]
fn wrong_settings_are_named() {
    for (name, value) in [
        ("LISTEN", "localhost"),
        ("LISTEN", ""),
        ("DRAIN_SECONDS", "soon"),
        ("DRAIN_SECONDS", "-1"),
    ] {
        let (code, message) = outcome(Command::new(BINARY).env(name, value));
        assert_eq!(code, Some(1));
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(&format!("{name}={value}")), "{message}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let (code, message) = outcome(Command::new(BINARY).arg("healtcheck"));
    assert_eq!(code, Some(2));
    assert!(message.starts_with("usage:"), "{message}");
}

#[test]
fn systemd_hears_when_it_is_ready_alive_and_stopping() {
    let address = address();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("n{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let systemd = UnixDatagram::bind(&path).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let app = Instance::spawn(
        command(&format!("{NEW}.1"), address)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000"),
    );

    let ready = heard(&systemd);
    assert!(ready.contains("READY=1\n"), "{ready}");
    assert!(ready.contains(&format!("STATUS=serving {NEW}")), "{ready}");
    // Not a moment too early:
    assert_eq!(get(address, "/healthz").status, 200);

    for _ in 0..3 {
        assert_eq!(heard(&systemd), "WATCHDOG=1\n");
    }
    app.signal("TERM");
    eventually(|| heard(&systemd).contains("STOPPING=1\n"));
    std::fs::remove_file(path).unwrap();
}

fn heard(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn the_journal_gets_priorities_and_a_file_gets_times() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("j{}", std::process::id()));
    let first_word = |listen: SocketAddr, stream: &dyn Fn(&File) -> String| {
        let file = File::create(&path).unwrap();
        let mut child = command(&format!("{NEW}.1"), listen)
            .env("JOURNAL_STREAM", stream(&file))
            .env("DRAIN_SECONDS", "none")
            .stderr(file)
            .spawn()
            .unwrap();
        child.wait().unwrap();
        std::fs::read_to_string(&path).unwrap()
    };

    let inode = |file: &File| {
        let file = file.metadata().unwrap();
        format!("{}:{}", file.dev(), file.ino())
    };
    let journal = first_word(address(), &inode);
    assert!(journal.starts_with("<3>`DRAIN_SECONDS"), "{journal}");

    let file = first_word(address(), &|_| "1:1".to_string());
    let (time, message) = file.split_once(' ').unwrap();
    assert!(message.starts_with("`DRAIN_SECONDS"), "{file}");
    assert_eq!(time.len(), "2026-11-22T18:30:12Z".len(), "{time}");
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    std::fs::remove_file(path).unwrap();
}
