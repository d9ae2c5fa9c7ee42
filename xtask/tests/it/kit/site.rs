//! A real server in a container, and a client that deploys to it.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, process::Command};

use crate::{
    http,
    lab::{Server, server_image},
    workspace::{Said, Workspace, said},
};

/// A server, and the workspace of a client that deploys to `deploy@NAME:/srv/app`.
pub struct Site {
    pub workspace: Workspace,
    pub name: &'static str,
    pub server: Server,
}

impl Site {
    pub fn bare(name: &'static str) -> Site {
        Site::bare_with(name, &[])
    }

    pub fn bare_with(name: &'static str, docker_args: &[&str]) -> Site {
        Site::bare_from(&server_image().unwrap(), name, docker_args)
    }

    /// On a server of another kind, such as `lab::sysvinit_image`.
    pub fn bare_from(image: &str, name: &'static str, docker_args: &[&str]) -> Site {
        let workspace = Workspace::new(name);
        let server = Server::start_from(image, name, docker_args).unwrap();
        let config = workspace.place.path("ssh_config");
        // The default key exchange costs 70 ms of a processor more, and the tests log in often.
        fs::write(&config, "KexAlgorithms curve25519-sha256\n").unwrap();
        server.ssh_config(&config).unwrap();
        // Stands for the user's ~/.ssh/config: no environment variable names another one.
        let config = config.display();
        let ssh = workspace.place.path("shims/ssh");
        fs::create_dir_all(ssh.parent().unwrap()).unwrap();
        let script = format!("#!/bin/sh\nexec /usr/bin/ssh -F '{config}' \"$@\"\n");
        fs::write(&ssh, script).unwrap();
        fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
        Site {
            workspace,
            name,
            server,
        }
    }

    pub fn set_up(name: &'static str) -> Site {
        let site = Site::bare(name);
        site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"])
            .succeeds();
        site
    }

    pub fn target(&self) -> String {
        format!("deploy@{}:/srv/app", self.name)
    }

    /// If the test kills the command, what that leaves in TMPDIR is removed with the test.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.workspace.command(args);
        let place = &self.workspace.place;
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", place.path("shims").display()))
            .env("TMPDIR", &place.dir);
        command
    }

    pub fn xtask(&self, command: &str, args: &[&str]) -> Said {
        said(&mut self.command(&[&[command, &*self.target()], args].concat()))
    }

    pub fn deploy(&self, binary: &[u8]) -> Said {
        fs::write(self.workspace.root.join("binary"), binary).unwrap();
        self.xtask("deploy", &["--build", "host"])
    }

    /// Sets a variable of the app's environment. The value is read from a file.
    pub fn set_env(&self, target: &str, name: &str, value: &str) {
        let input = self.workspace.place.path("value");
        fs::write(&input, value).unwrap();
        let mut command = self.command(&["env", target, "set", name, "--as", "root"]);
        said(command.stdin(fs::File::open(&input).unwrap())).succeeds();
    }

    pub fn address(&self) -> SocketAddr {
        (self.server.ip(), 80).into()
    }

    pub fn served(&self) -> String {
        http::served(self.address()).unwrap()
    }

    /// Counts the instances that have a process.
    pub fn instances(&self) -> usize {
        self.root("pgrep -c -f '^/srv/app/run/app-' || :")
            .trim()
            .parse()
            .unwrap()
    }

    /// The address of this machine, as the server sees it.
    pub fn client_address(&self) -> String {
        let [a, b, c, _] = self.server.ip().octets();
        format!("{a}.{b}.{c}.1")
    }

    /// The number of bytes that the server has received since it booted.
    pub fn received(&self) -> u64 {
        let count = self.root("cat /sys/class/net/eth0/statistics/rx_bytes");
        count.trim().parse().unwrap()
    }

    pub fn root(&self, command: &str) -> String {
        let output = self.server.exec(&["sh", "-c", command]).unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }
}
