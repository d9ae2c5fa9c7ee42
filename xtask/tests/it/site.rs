//! A real server, sshd and systemd in a container, and a client that deploys to it.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, process::Command};

use crate::{
    http,
    lab::Server,
    workspace::{Said, Workspace, said},
};

/// A server that was set up for `deploy@NAME:/srv/app`, and the client's side of it.
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
        let workspace = Workspace::new(name);
        let server = Server::start_with(name, docker_args).unwrap();
        let config = workspace.place.path("ssh_config");
        server.ssh_config(&config).unwrap();
        // The user's own configuration, which cannot be given by an environment variable.
        let ssh = workspace.place.path("shims");
        fs::create_dir_all(&ssh).unwrap();
        fs::write(
            ssh.join("ssh"),
            format!(
                "#!/bin/sh\nexec /usr/bin/ssh -F '{}' \"$@\"\n",
                config.display()
            ),
        )
        .unwrap();
        fs::set_permissions(ssh.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
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

    /// What it leaves in the temporary directory when it is killed goes with the test.
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

    pub fn address(&self) -> SocketAddr {
        (self.server.ip(), 80).into()
    }

    pub fn served(&self) -> String {
        http::served(self.address()).unwrap()
    }

    /// How many instances have a process.
    pub fn instances(&self) -> usize {
        self.root("pgrep -c -f '^/srv/app/run/app-' || :")
            .trim()
            .parse()
            .unwrap()
    }

    /// Bytes that ever came over its line.
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
