//! The shell script that this began as, from its description: `ssh mkdir`, `scp`, and
//! one `ssh nohup` that switches; three connections. Its `rm` and `ln` and their order
//! are its own. Its build is left out, as everybody's is.

use std::{
    process::Command,
    thread::sleep,
    time::{Duration, SystemTime},
};

use anyhow::Result;

use crate::{
    lab::Server,
    proxy::Proxy,
    tool::{Plain, RESET_PLAIN, Task, Tool},
};

const DEPLOY: &str = r#"
set -e
name=app-$(date -u +%s)-$(git rev-parse --short HEAD)-$(sha256sum <"$binary" | head -c 12)
ssh -F "$config" script mkdir -p /srv/app/versions
scp -q -F "$config" "$binary" "script:/srv/app/versions/$name"
ssh -F "$config" script nohup sh -c "'rm /srv/app/current; ln -s versions/$name /srv/app/current; systemctl restart app'"
"#;

/// By hand: it is known which one to go back to.
const ROLLBACK: &str = r#"
ssh -F "$config" script nohup sh -c "'cd /srv/app; old=\$(ls versions | head -n 1); rm current; ln -s versions/\$old current; systemctl restart app'"
"#;

pub struct Script(Plain);

pub fn start() -> Result<Script> {
    let server = Server::start_with("script", &[])?;
    Ok(Script(Plain::set_up(server, "script", "/srv/app/current")?))
}

impl Tool for Script {
    fn name(&self) -> String {
        "shell script".to_owned()
    }

    fn server(&self) -> &Server {
        &self.0.server
    }

    fn line(&self) -> &Proxy {
        &self.0.line
    }

    fn command(&self, task: Task) -> Result<Option<Command>> {
        wait_for_the_next_second()?;
        let mut sh = self.0.command("sh");
        sh.env("config", &self.0.ssh_config);
        match task {
            Task::Deploy(binary) => sh.env("binary", binary).args(["-c", DEPLOY]),
            Task::Rollback => sh.args(["-c", ROLLBACK]),
            Task::Status | Task::Login => return Ok(None),
        };
        Ok(Some(sh))
    }

    fn reset(&self) -> &str {
        RESET_PLAIN
    }
}

/// Two deploys of the same bytes in one second have the same name, and it fails: it
/// would write to what runs.
fn wait_for_the_next_second() -> Result<()> {
    let now = SystemTime::UNIX_EPOCH.elapsed()?;
    sleep(Duration::from_secs(now.as_secs() + 1) - now);
    Ok(())
}
