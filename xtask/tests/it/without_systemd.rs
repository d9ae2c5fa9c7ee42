//! Servers without systemd, over ssh: the nohup manager does all that systemd does elsewhere.

use std::process::Command;

use crate::{
    http,
    https::QUICK,
    lab::{image_from, sysvinit_image},
    load::{Connections, Load},
    notes::notes,
    place::{output, wait_until},
    site::Site,
};

#[test]
fn sysvinit_with_cron() {
    let site = Site::bare_from(&sysvinit_image().unwrap(), "sysvinit-cron", &[]);
    let to_boot = "to /etc/cron.d/app: @reboot root /srv/app/bin/activate boot";
    set_up(&site, to_boot);
    switches_and_rolls_back(&site);
    the_deploy_user_may_do_one_thing(&site);
    the_app_has_few_rights(&site);
    boots_by(
        &site,
        "echo '@reboot root /srv/app/bin/activate boot' >/etc/cron.d/app",
    );
}

#[test]
fn sysvinit_without_cron() {
    boots_by_rc_local(
        "cronless",
        "RUN apt-get purge --yes cron && rm -rf /etc/cron.d",
    );
}

#[test]
fn openrc() {
    boots_by_rc_local(
        "openrc",
        "RUN apt-get --option Acquire::Retries=3 update \
            && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends openrc \
            && apt-get purge --yes cron && rm -rf /etc/cron.d /var/lib/apt/lists",
    );
}

/// On a server with sysvinit, changed by these steps of a Dockerfile.
fn boots_by_rc_local(name: &'static str, steps: &str) {
    let image = image_from(&format!("server-{name}"), &sysvinit_image().unwrap(), steps);
    let site = Site::bare_from(&image.unwrap(), name, &[]);
    let to_boot = "to /etc/rc.local, which has to be executable: /srv/app/bin/activate boot";
    set_up(&site, to_boot);
    site.deploy(&notes("A")).succeeds();
    let lines = "'#!/bin/sh' '/srv/app/bin/activate boot'";
    boots_by(
        &site,
        &format!("printf '%s\\n' {lines} >/etc/rc.local; chmod +x /etc/rc.local"),
    );
}

fn set_up(site: &Site, to_boot: &str) {
    let setup = |args: &[&str]| site.xtask("setup", &[&["--as", "root"], args].concat());
    setup(&["--domain", "www.example.com"]).fails(&["only where systemd runs"]);
    let first = setup(&["--listen", "0.0.0.0:80"]);
    assert!(first.people.contains("there is no systemd"), "{first:?}");
    assert!(first.people.contains(to_boot), "{first:?}");
    first.succeeds();
    let again = setup(&[]);
    assert!(again.people.contains("is set up already"), "{again:?}");
    site.root(QUICK);
    site.set_env(&site.target(), "SECRET", "s3cret");
}

fn switches_and_rolls_back(site: &Site) {
    let a = site.deploy(&notes("A")).succeeds();
    assert_eq!(http::get(site.address(), "/secret").unwrap().body, "s3cret");
    let b = site.deploy(&notes("B")).succeeds();
    let kinds = [Connections::New, Connections::KeptAlive];
    let loads = kinds.map(|kind| Load::start(site.address(), 3, kind));
    for n in 0..5 {
        let to = [&a, &b][n % 2];
        assert_eq!(&site.xtask("rollback", &["--to", to.trim()]).succeeds(), to);
    }
    for load in loads {
        let report = load.stop();
        let (lost, answered) = (report.lost.len(), report.answered.len());
        println!("figure: 5 switches, {lost} lost, {answered} answered");
        assert!(lost == 0 && answered > 200, "{:?}", report.lost);
    }
    let c = site.deploy(&notes("C")).succeeds();
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    wait_until("A to serve alone", || site.instances() == 1);
    assert_eq!(site.served(), a.trim());
    let status = site.xtask("status", &["--json"]).succeeds();
    assert!(status.contains("\"healthy\": true"), "{status}");
    let logs = site.xtask("logs", &["--lines", "200"]).succeeds();
    assert!(logs.contains(&format!("ready: {}", a.trim())), "{logs}");
    let history = site.xtask("history", &[]).succeeds();
    assert!(
        history.contains(&format!("live    {}", c.trim())),
        "{history}"
    );
    site.xtask("restart", &[]).succeeds();
    site.xtask("stop", &[]).succeeds();
    assert!(http::get(site.address(), "/").is_err());
    site.xtask("start", &[]).succeeds();
    assert_eq!(site.served(), a.trim());
}

fn the_deploy_user_may_do_one_thing(site: &Site) {
    let ssh = site.workspace.place.path("shims/ssh");
    let run = |command: &str| {
        let mut ssh = Command::new(&ssh);
        ssh.args([&format!("deploy@{}", site.name), command]);
        output(ssh)
    };
    assert!(run("sudo -n /srv/app/bin/activate session </dev/null").contains("live\t"));
    for command in [
        "sudo -n id",
        "sudo -n /srv/app/bin/activate status",
        "sudo -n /srv/app/bin/activate env",
        "sudo -n /srv/app/bin/activate session more",
    ] {
        let said = run(command);
        assert!(said.contains("password is required"), "{command}: {said}");
    }
    for command in [
        "cat /srv/app/env",
        "ls /srv/app/state",
        "ls /srv/app/log",
        "touch /srv/app/versions/new",
        "ln -sf /bin/sh /srv/app/current",
        "echo >>/srv/app/bin/activate",
    ] {
        let said = run(command);
        assert!(said.contains("ermission denied"), "{command}: {said}");
    }
}

fn the_app_has_few_rights(site: &Site) {
    let fields =
        "grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs)' /proc/$(pgrep -f '^/srv/app/run/')/status";
    let status = site.root(&format!("id -u app; {fields}"));
    let mut lines = status.lines();
    let uid = lines.next().unwrap();
    // Only the right to open a port below 1024.
    let expected = [
        format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"),
        "CapEff:\t0000000000000400".to_owned(),
        "CapBnd:\t0000000000000400".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
    ];
    assert_eq!(lines.collect::<Vec<_>>(), expected, "{status}");
}

/// After a power cut, first without that line and then with it.
fn boots_by(site: &Site, add_line: &str) {
    let live = site.served();
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    assert!(http::get(site.address(), "/").is_err());
    site.xtask("start", &[]).succeeds();
    assert_eq!(site.served(), live);
    site.root(add_line);
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    wait_until("the boot to serve", || {
        http::served(site.address()).as_deref() == Some(&*live)
    });
    site.deploy(&notes("D")).succeeds();
    assert_ne!(site.served(), live);
}
