//! Ansible and pyinfra, each in a virtual environment of its own. They say what is to be
//! there: this binary, this link, and a restart if one of them was not. Going back is
//! the same with the older binary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};

use crate::{
    lab::{Server, image_from, server_image},
    place,
    proxy::Proxy,
    tool::{Plain, RESET_PLAIN, Task, Tool, version_of},
};

/// With pipelining, as everybody who wants it quicker sets it; and without asking the
/// server for facts that nobody uses.
const ANSIBLE_CFG: &str = "\
[defaults]
inventory = inventory
interpreter_python = /usr/bin/python3
[ssh_connection]
pipelining = True
";

const PLAYBOOK: &str = r#"
- hosts: ansible
  gather_facts: false
  tasks:
    - name: the version
      ansible.builtin.copy:
        src: "{{ binary }}"
        dest: "/srv/app/app-{{ version }}"
        mode: "0755"
    - name: the link
      ansible.builtin.file:
        path: /srv/app/current
        src: "app-{{ version }}"
        state: link
      notify: restart
  handlers:
    - name: restart
      ansible.builtin.systemd_service:
        name: app
        state: restarted
"#;

const PYINFRA: &str = r#"
from pyinfra import host
from pyinfra.operations import files, systemd

version = f"/srv/app/app-{host.data.version}"
files.put(name="the version", src=host.data.binary, dest=version, mode="755")
link = files.link(name="the link", path="/srv/app/current", target=version)
systemd.service(name="restart", service="app", restarted=True, _if=link.did_change)
"#;

/// Ansible's modules are Python programs, run over there.
const WITH_PYTHON: &str = "
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get --option Acquire::Retries=3 update \\
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends python3 \\
    && apt-get clean && rm -r /var/lib/apt/lists
";

pub struct Declared {
    plain: Plain,
    name: String,
    program: PathBuf,
    args: fn(binary: &Path, version: &str) -> Vec<String>,
    /// What to go back to: what was deployed first.
    first: OnceLock<PathBuf>,
}

pub fn start_ansible() -> Result<Declared> {
    let bin = installed("ansible-core")?;
    let program = bin.join("ansible-playbook");
    let image = image_from("server-python", &server_image()?, WITH_PYTHON)?;
    let server = Server::start_from(&image, "ansible", &[])?;
    let plain = Plain::set_up(server, "ansible", "/srv/app/current")?;
    let ssh = format!(
        "ansible ansible_ssh_common_args='-F {}'\n",
        plain.ssh_config.display()
    );
    plain.write("ansible.cfg", ANSIBLE_CFG)?;
    plain.write("inventory", &ssh)?;
    plain.write("deploy.yml", PLAYBOOK)?;
    Ok(Declared {
        plain,
        name: format!("Ansible {}", version_of(&program, "--version")?),
        program,
        args: |binary, version| {
            let variables = format!("binary={} version={version}", binary.display());
            vec!["deploy.yml".into(), "--extra-vars".into(), variables]
        },
        first: OnceLock::new(),
    })
}

pub fn start_pyinfra() -> Result<Declared> {
    let program = installed("pyinfra")?.join("pyinfra");
    let server = Server::start_with("pyinfra", &[])?;
    let plain = Plain::set_up(server, "pyinfra", "/srv/app/current")?;
    let line = plain.line.address();
    // It knows a host key by the address alone.
    let known_hosts = fs::read_to_string(plain.ssh_setting("UserKnownHostsFile")?)?;
    let (_, key) = known_hosts.split_once(' ').context("a host has a key")?;
    plain.write(
        "known_hosts",
        &format!("[{}]:{} {key}", line.ip(), line.port()),
    )?;
    let settings = format!(
        "hosts = [('pyinfra', dict(ssh_hostname='{}', ssh_port={}, ssh_user='root', ssh_key='{}', \
         ssh_allow_agent=False, ssh_look_for_keys=False, \
         ssh_known_hosts_file='known_hosts', ssh_strict_host_key_checking='yes'))]\n",
        line.ip(),
        line.port(),
        plain.ssh_setting("IdentityFile")?
    );
    plain.write("inventory.py", &settings)?;
    plain.write("deploy.py", PYINFRA)?;
    Ok(Declared {
        plain,
        name: format!("pyinfra {}", version_of(&program, "--version")?),
        program,
        args: |binary, version| {
            let binary = format!("binary={}", binary.display());
            let version = format!("version={version}");
            ["--yes", "--data", &binary, "--data", &version]
                .into_iter()
                .chain(["inventory.py", "deploy.py"])
                .map(str::to_owned)
                .collect()
        },
        first: OnceLock::new(),
    })
}

/// The folder of its programs. Installed once, and kept.
fn installed(package: &str) -> Result<PathBuf> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("peers")
        .join(package);
    let done = home.join("done");
    if !done.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        let mut pip = Command::new(home.join("bin/pip"));
        run(pip.args(["install", "--quiet", package]))?;
        fs::write(done, "")?;
    }
    Ok(home.join("bin"))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .context("`apt-get install python3 python3-venv`")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(())
}

impl Tool for Declared {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn server(&self) -> &Server {
        &self.plain.server
    }

    fn line(&self) -> &Proxy {
        &self.plain.line
    }

    fn command(&self, task: Task) -> Result<Option<Command>> {
        let binary = match task {
            Task::Deploy(binary) => {
                self.first.get_or_init(|| binary.to_owned());
                binary
            }
            Task::Rollback => self.first.get().context("there is nothing before it")?,
            Task::Status | Task::Login => return Ok(None),
        };
        let version = place::version_of(&fs::read(binary)?).name;
        let mut command = self.plain.command(&self.program);
        command.args((self.args)(binary, &version));
        Ok(Some(command))
    }

    fn reset(&self) -> &str {
        RESET_PLAIN
    }
}
