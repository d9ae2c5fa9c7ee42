//! Capistrano, as Debian has it: its own flow of releases, with an upload in place of a
//! checkout, and a restart.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    lab::Server,
    proxy::Proxy,
    tool::{Plain, RESET_PLAIN, Task, Tool, version_of},
};

const CAPFILE: &str = r#"
require "capistrano/setup"
require "capistrano/deploy"
set :scm, nil # what is built elsewhere has none
"#;

const DEPLOY: &str = r#"
set :application, "app"
set :deploy_to, "/srv/app"
set :scm, nil
set :ssh_options, config: [ENV["config"]]

namespace :deploy do
  task :upload do
    on release_roles(:all) do
      execute :mkdir, "-p", release_path
      upload! ENV["binary"], release_path.join("app").to_s
    end
  end
  task :restart do
    on release_roles(:all) do
      execute :systemctl, :restart, "app"
    end
  end
end
after "deploy:new_release_path", "deploy:upload"
after "deploy:publishing", "deploy:restart"
"#;

const STAGE: &str = "server \"capistrano\", user: \"root\", roles: %w[app]\n";

pub struct Capistrano {
    plain: Plain,
    version: String,
}

pub fn start() -> Result<Capistrano> {
    let version = version_of("cap", "--version").context("`apt-get install capistrano`")?;
    let server = Server::start_with("capistrano", &[])?;
    let plain = Plain::set_up(server, "capistrano", "/srv/app/current/app")?;
    plain.write("Capfile", CAPFILE)?;
    plain.write("config/deploy.rb", DEPLOY)?;
    plain.write("config/deploy/production.rb", STAGE)?;
    Ok(Capistrano { plain, version })
}

impl Tool for Capistrano {
    fn name(&self) -> String {
        format!("Capistrano {}", self.version)
    }

    fn server(&self) -> &Server {
        &self.plain.server
    }

    fn line(&self) -> &Proxy {
        &self.plain.line
    }

    fn command(&self, task: Task) -> Result<Option<Command>> {
        let mut cap = self.plain.command("cap");
        cap.arg("production").env("config", &self.plain.ssh_config);
        match task {
            Task::Deploy(binary) => cap.arg("deploy").env("binary", binary),
            Task::Rollback => cap.arg("deploy:rollback"),
            Task::Status | Task::Login => return Ok(None),
        };
        Ok(Some(cap))
    }

    fn reset(&self) -> &str {
        RESET_PLAIN
    }
}
