//! The laboratory's servers: each kind boots, lets people in, and does so again after a
//! power cut.

use std::{process::Command, time::Instant};

use crate::{
    lab::{server_image_of, sysvinit_image},
    place::output,
    site::Site,
};

#[test]
fn debian_11() {
    boots_and_lets_people_in(
        "debian-11",
        &server_image_of("bullseye").unwrap(),
        "systemd",
    );
}

#[test]
fn debian_12() {
    boots_and_lets_people_in(
        "debian-12",
        &server_image_of("bookworm").unwrap(),
        "systemd",
    );
}

#[test]
fn debian_13() {
    boots_and_lets_people_in("debian-13", &server_image_of("trixie").unwrap(), "systemd");
}

#[test]
fn debian_with_sysvinit() {
    boots_and_lets_people_in("sysvinit", &sysvinit_image().unwrap(), "init");
}

fn boots_and_lets_people_in(name: &'static str, image: &str, init: &str) {
    let start = Instant::now();
    let site = Site::bare_from(image, name, &[]);
    println!("figure: boots in {:.1} s", start.elapsed().as_secs_f32());
    assert_eq!(ssh(&site, "cat /proc/1/comm"), format!("{init}\n"));
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    assert_eq!(ssh(&site, "id -un"), "root\n");
}

fn ssh(site: &Site, command: &str) -> String {
    let ssh = site.workspace.place.path("shims/ssh");
    let mut ssh = Command::new(ssh);
    ssh.args([site.name, command]);
    output(ssh)
}
