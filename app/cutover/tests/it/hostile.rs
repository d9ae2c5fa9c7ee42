//! Another version runs as the same user, and holds the same socket, while it is on trial.

use std::fs;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::examples::{AXUM, command_with_socket};
use crate::support::{Connection, Instance, address, eventually, get, nth};

const NOBODY: u32 = 65534;

/// Not a test: the test below runs it in another process, with the socket as standard input.
#[test]
#[ignore = "shuts its standard input down"]
fn shut_standard_input_down() {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    TcpStream::from(socket).shutdown(Shutdown::Both).unwrap();
}

#[test]
fn it_serves_on_after_another_process_shut_the_socket_down() {
    let socket = TcpListener::bind(address()).unwrap();
    let address = socket.local_addr().unwrap();
    let app = Instance::start(&mut command_with_socket(&nth(1), &socket));
    let mut kept = Connection::open(address);
    kept.get("/");

    for n in 1..=5 {
        shut_down_elsewhere(&socket);
        eventually(|| app.log().matches("listening again").count() == n);
        eventually(|| Connection::try_open(address).is_ok());
        assert_eq!(get(address, "/").instance(), nth(1));
    }
    assert_eq!(kept.get("/").status, 200);
}

#[test]
fn an_instance_listens_again_on_a_socket_that_was_shut_down() {
    let socket = TcpListener::bind(address()).unwrap();
    let address = socket.local_addr().unwrap();
    shut_down_elsewhere(&socket);
    assert!(Connection::try_open(address).is_err());
    let _app = Instance::start(&mut command_with_socket(&nth(1), &socket));
    assert_eq!(get(address, "/").instance(), nth(1));
}

/// A unix socket is shut down for good. systemd gives the next instance another one.
#[test]
fn it_ends_after_another_process_shut_the_unix_socket_down() {
    let path = std::env::temp_dir().join(format!("cutover-{}.sock", std::process::id()));
    let socket = UnixListener::bind(&path).unwrap();
    let mut app = Instance::start(&mut command_with_socket(&nth(1), &socket));
    UnixStream::connect(&path).unwrap();
    shut_down_elsewhere(&socket);
    fs::remove_file(&path).unwrap();
    let (status, _) = app.ends();
    assert_eq!(status.code(), Some(1), "{}", app.log());
    assert!(app.log().contains("shut the unix socket down"));
}

fn shut_down_elsewhere(socket: &impl AsFd) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "hostile::shut_standard_input_down"])
        .stdin(socket.as_fd().try_clone_to_owned().unwrap())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

/// Root may read everything, so as root this runs both processes as another user.
#[test]
fn another_process_of_the_user_cannot_read_its_memory() {
    let folder = readable_copies(&["server", &format!("server-{}", nth(1))]);
    let start = |name: &str| {
        let mut command = Command::new(folder.join(name));
        command.env("LISTEN", address().to_string());
        Instance::start(as_user(&mut command))
    };
    let deployed = start(&format!("server-{}", nth(1)));
    assert!(!can_read_environment(deployed.pid()));

    // The attempt itself works: a process that was not deployed can be read.
    let developed = start("server");
    assert!(can_read_environment(developed.pid()));
    fs::remove_dir_all(folder).unwrap();
}

fn can_read_environment(pid: u32) -> bool {
    let mut cat = Command::new("cat");
    cat.arg(format!("/proc/{pid}/environ"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    as_user(&mut cat).status().unwrap().success()
}

fn as_user(command: &mut Command) -> &mut Command {
    match is_root() {
        true => command.uid(NOBODY).gid(NOBODY),
        false => command,
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}

/// In a folder that is open to other users; the workspace may not be.
fn readable_copies(names: &[&str]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("cutover-hostile-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    for name in names {
        // Not `fs::copy`: a child of this process could inherit the open file, which then
        // cannot be executed.
        let mut copy = Command::new("cp");
        assert!(
            copy.arg(&*AXUM)
                .arg(folder.join(name))
                .status()
                .unwrap()
                .success()
        );
    }
    folder
}
