//! Arguments, settings, the socket, and readiness.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::examples::{AXUM, command, command_with_socket};
use crate::support::{Instance, NEW, address, eventually, get, outcome};

#[test]
fn every_answer_names_the_instance() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.7"), address));
    for path in ["/", "/healthz", "/no-such-page"] {
        assert_eq!(get(address, path).instance(), format!("{NEW}.7"));
    }
}

#[test]
fn without_a_link_an_answer_names_no_instance() {
    let address = address();
    let _app = Instance::start(Command::new(&*AXUM).env("LISTEN", address.to_string()));
    assert_eq!(get(address, "/").header("cutover-instance"), None);
}

#[test]
fn the_socket_that_systemd_passes_is_taken() {
    let socket = TcpListener::bind(address()).unwrap();
    let address = socket.local_addr().unwrap();
    let app = Instance::start(&mut command_with_socket(&format!("{NEW}.1"), &socket));

    assert_eq!(get(address, "/healthz").instance(), format!("{NEW}.1"));
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
fn it_listens_on_ipv6() {
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
    assert!(
        message.contains(&format!("cannot listen on {address}")),
        "{message}"
    );
    assert!(message.contains("hint: set `LISTEN`"), "{message}");
}

#[test]
fn wrong_settings_are_named() {
    for (name, value) in [
        ("LISTEN", "localhost"),
        ("LISTEN", ""),
        ("DRAIN_SECONDS", "soon"),
        ("DRAIN_SECONDS", "-1"),
        ("LINGER_SECONDS", "soon"),
    ] {
        let (code, message) = outcome(Command::new(&*AXUM).env(name, value));
        assert_eq!(code, Some(1));
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.contains(&format!("{name}={value}")), "{message}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&["healtcheck"][..], &["healthcheck", "now"]] {
        let (code, message) = outcome(Command::new(&*AXUM).args(arguments));
        assert_eq!(code, Some(2));
        assert!(message.starts_with("usage:"), "{message}");
    }
}

#[test]
fn the_app_can_have_commands_of_its_own() {
    let mut command = command(&format!("{NEW}.1"), address());
    let output = command.arg("greet").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("hello from {NEW}\n")
    );
}

#[test]
fn it_prints_its_version() {
    let mut command = command(&format!("{NEW}.1"), address());
    let output = command.arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{NEW}\n")
    );
}

#[test]
fn an_app_that_cannot_be_built_never_listens() {
    let address = address();
    let mut command = command(&format!("{NEW}.1"), address);
    let (code, message) = outcome(command.env("NO_DATABASE", "1"));
    assert_eq!(code, Some(1));
    assert!(message.ends_with("cannot open the database\n"), "{message}");
    assert!(!message.contains("listening"), "{message}");
}

#[test]
fn systemd_is_told_when_it_is_ready_alive_and_stopping() {
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

    let ready = message(&systemd);
    assert!(ready.contains("READY=1\n"), "{ready}");
    assert!(ready.contains(&format!("STATUS=serving {NEW}")), "{ready}");
    // It is ready when it says so:
    assert_eq!(get(address, "/healthz").status, 200);

    for _ in 0..3 {
        assert_eq!(message(&systemd), "WATCHDOG=1\n");
    }
    app.signal("TERM");
    eventually(|| message(&systemd).contains("STOPPING=1\n"));
    std::fs::remove_file(path).unwrap();
}

fn message(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn the_journal_gets_priorities_and_a_file_gets_times() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("j{}", std::process::id()));
    let only_line = |listen: SocketAddr, stream: &dyn Fn(&File) -> String| {
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
    let journal = only_line(address(), &inode);
    assert!(journal.starts_with("<3>`DRAIN_SECONDS"), "{journal}");

    let file = only_line(address(), &|_| "1:1".to_string());
    let (time, message) = file.split_once(' ').unwrap();
    assert!(message.starts_with("ERROR `DRAIN_SECONDS"), "{file}");
    assert_eq!(time.len(), "2026-11-22T18:30:12.123456Z".len(), "{time}");
    assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    std::fs::remove_file(path).unwrap();
}
