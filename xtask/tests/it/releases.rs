//! Other releases of Debian than the one that most tests use, once each.

use crate::{
    http,
    https::{DOMAIN, deploy_notes, none_is_lost, start_loads},
    internet::{DAY_SECS, Internet, image_of},
    lab::{image_from, server_image_of},
    load::{Connections, Load},
    notes::notes,
    place::wait_until,
    site::Site,
};

/// Keeps what apt knows of this release's packages. The server itself has no way to Debian.
const LISTS: &str = "RUN apt-get --option Acquire::Retries=3 update";

#[test]
fn debian_11() {
    let image = image_from(
        "lists-bullseye",
        &server_image_of("bullseye").unwrap(),
        LISTS,
    );
    let site = Site::bare_from(&image.unwrap(), "on-debian-11", &[]);
    // It has no package of Caddy, so there is no https; and nothing is changed.
    let files = "getent passwd; find /etc /srv /usr /home -newer /root/before ! -type d";
    site.root("touch /root/before");
    let before = site.root(files);
    site.xtask("setup", &["--as", "root", "--domain", "www.example.com"])
        .fails(&["apt offers no package caddy", "since release 12"]);
    assert_eq!(site.root(files), before);
    switches_rolls_back_and_boots(&site);
}

#[test]
fn debian_13() {
    let image = server_image_of("trixie").unwrap();
    switches_rolls_back_and_boots(&Site::bare_from(&image, "on-debian-13", &[]));
}

fn switches_rolls_back_and_boots(site: &Site) {
    let setup = || site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"]);
    setup().succeeds();
    let again = setup();
    assert!(again.people.contains("is set up already"), "{again:?}");
    site.set_up_notes("app", 80, "s3cret");
    let a = site.deploy(&notes("A")).succeeds();
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
        assert_eq!(report.by_version.len(), 2, "{:?}", report.by_version);
    }
    assert_eq!(site.xtask("run", &["--", "count"]).succeeds(), "0\n");
    let logs = site.xtask("logs", &["--lines", "500"]).succeeds();
    assert!(logs.contains(&format!("ready: {}", a.trim())), "{logs}");

    let c = site.deploy(&notes("C")).succeeds();
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    assert_ne!(site.served(), c.trim());
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    wait_until("the boot to serve", || {
        http::served(site.address()).as_deref() == Some(a.trim())
    });
}

#[test]
fn https_on_debian_13() {
    let internet = Internet::start_on(&image_of("trixie"), "https-on-13", DAY_SECS);
    let site = &internet.site;
    site.set_up_domain(DOMAIN);
    println!("{}", site.root("caddy version"));
    deploy_notes(&internet);
    site.deploy(&notes("B")).succeeds();
    let caddy = site.caddy();
    let loads = start_loads(&internet);
    for _ in 0..3 {
        site.xtask("rollback", &[]).succeeds();
        site.deploy(&notes("B")).succeeds();
    }
    assert_eq!(site.caddy(), caddy);
    none_is_lost(loads);
    let redirect = http::get(site.address(), "/version").unwrap();
    assert_eq!(redirect.status, 308);
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    wait_until("a boot", || internet.get(DOMAIN, "/version").is_ok());
}
