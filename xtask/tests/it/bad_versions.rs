//! Versions that must not become live, each for another reason.

use crate::{
    app::{app, faulty_app},
    load::{Connections, Load},
    place::{Place, wait_until},
    workspace::Workspace,
};

#[test]
fn exits_at_once() {
    is_refused(
        &faulty_app("B", "exits"),
        &["it exited with status 3", "| fault: exits at once"],
    );
}

#[test]
fn never_listens() {
    is_refused(
        &faulty_app("B", "never-listens"),
        &["not ready within 1 s", "| fault: never listens"],
    );
}

#[test]
fn is_not_healthy() {
    is_refused(
        &faulty_app("B", "unhealthy"),
        &["it exited with status 1", "500"],
    );
}

#[test]
fn is_no_executable() {
    is_refused(
        b"#!/bin/sh\necho pwned\n",
        &["not an executable for this machine"],
    );
}

#[test]
fn is_empty() {
    is_refused(b"", &["not an executable for this machine"]);
}

#[test]
fn is_truncated() {
    let whole = app("B");
    is_refused(&whole[..whole.len() / 2], &["it exited with status"]);
}

#[test]
fn is_of_another_architecture() {
    let mut other = app("B");
    // e_machine, see elf(5): no machine has this number.
    other[18..20].copy_from_slice(&[0xfe, 0xca]);
    is_refused(&other, &["not an executable for this machine"]);
}

/// This one has taken requests by then, so those are not counted here: nobody can
/// answer what it took down with itself.
#[test]
fn dies_within_the_settle_time() {
    let place = Place::new("dies-once-ready");
    let a = place.make_live(&app("A"));
    let said = place.activate(&place.upload(&faulty_app("B", "dies-once-ready")));
    assert!(
        said.contains("verdict failed it was ready, then it exited"),
        "{said}"
    );
    assert!(said.contains("| fault: dies once ready"), "{said}");
    is_as_before(&place, &a.name);
}

/// It does become live; that it does not go when told to must not matter to the next.
#[test]
fn ignores_sigterm() {
    let place = Place::new("deaf");
    place.set("ready=5 settle=0.1 drain=1 keep=5 overlap=true");
    place.make_live(&faulty_app("A", "deaf"));
    let b = place.make_live(&app("B"));
    assert_eq!(place.processes().len(), 2);
    wait_until("the deaf one to be killed", || place.processes().len() == 1);
    assert_eq!(place.served(), Some(b.name));
}

#[test]
fn damaged_on_its_way() {
    let place = Place::new("damaged");
    let a = place.make_live(&app("A"));
    let b = place.upload(&app("B"));
    std::fs::write(
        place.path("incoming").join(format!("app-{}", b.name)),
        app("C"),
    )
    .unwrap();
    let said = place.activate(&b);
    assert!(
        said.contains("verdict failed the upload is damaged"),
        "{said}"
    );
    is_as_before(&place, &a.name);
}

#[test]
fn the_first_ever_leaves_nothing_half_live() {
    let workspace = Workspace::new("first-ever");
    workspace.deploy(&faulty_app("A", "exits")).fails(&[
        "did not become live",
        "it exited with status 3",
        "fault: exits at once",
        "nothing is live",
    ]);
    assert!(!crate::workspace::exists(&workspace.place.path("current")));
    assert_eq!(workspace.place.status("rollback"), [""; 0]);
    workspace.place.wait_for_processes(0);
    workspace.deploy(&app("B")).succeeds();
}

/// The kernel would share the port, and clients would meet either app.
#[test]
fn the_port_of_another_directory_is_left_alone() {
    let (first, mut second) = (Workspace::new("port-a"), Workspace::new("port-b"));
    let live = first.deploy(&app("A")).succeeds();
    second.place.address = first.place.address;
    second.deploy(&app("B")).fails(&[
        "did not become live",
        &format!("{} is taken by {}.1", first.place.address, live.trim()),
        "nothing is live",
    ]);
    second.place.wait_for_processes(0);
    assert!((0..50).all(|_| first.place.served().as_deref() == Some(live.trim())));
    first.xtask("stop", &[]).succeeds();
    second.deploy(&app("B")).succeeds();
}

/// Its instance then has the same name, too.
#[test]
fn the_port_of_another_directory_with_the_same_version_is_left_alone() {
    let (first, mut second) = (Place::new("same-a"), Place::new("same-b"));
    let a = first.make_live(&app("A"));
    second.address = first.address;
    second.set("ready=1 settle=0.3 drain=5 keep=5 overlap=true");
    let said = second.activate(&second.upload(&app("A")));
    let reason = format!("{} is taken by {}.1", first.address, a.name);
    assert!(said.contains(&reason), "{said}");
    second.wait_for_processes(0);
}

#[test]
fn the_message_tells_what_still_serves() {
    let workspace = Workspace::new("still-serves");
    let a = workspace.deploy(&app("A")).succeeds();
    let still = format!("{} still serves", a.trim());
    workspace
        .deploy(&faulty_app("B", "exits"))
        .fails(&["fault: exits at once", &still]);
    assert_eq!(workspace.place.served().as_deref(), Some(a.trim()));
}

fn is_refused(bytes: &[u8], reasons: &[&str]) {
    let place = Place::new("bad");
    place.set("ready=1 settle=0.3 drain=5 keep=5 overlap=true");
    let a = place.make_live(&app("A"));
    let clients = [
        Load::start(place.address, 2, Connections::New),
        Load::start(place.address, 2, Connections::KeptAlive),
    ];
    let said = place.activate(&place.upload(bytes));
    for report in clients.map(Load::stop) {
        assert!(
            !report.answered.is_empty() && report.lost.is_empty(),
            "{:?}",
            report.lost
        );
    }
    assert!(said.contains("\nverdict failed "), "{said}");
    reasons
        .iter()
        .for_each(|reason| assert!(said.contains(reason), "no {reason:?} in: {said}"));
    is_as_before(&place, &a.name);
}

fn is_as_before(place: &Place, live: &str) {
    assert_eq!(place.live().as_deref(), Some(live));
    assert!(place.history().last().unwrap().contains("\tfailed\t"));
    assert_eq!(place.status("rollback"), [live]);
    place.wait_for_processes(1);
    assert_eq!(place.served().as_deref(), Some(live));
    wait_until("the bad one to be forgotten", || {
        place.files("run").len() == 2
    });
}
