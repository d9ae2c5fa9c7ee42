//! Where a rollback goes, and what is kept for it.

use std::fs;

use crate::{
    app::{app, faulty_app},
    place::{Version, wait_until},
    workspace::Workspace,
};

fn quick(name: &str, keep: u32) -> Workspace {
    let workspace = Workspace::new(name);
    workspace.place.set(&format!(
        "ready=5 settle=0 drain=2 keep={keep} overlap=true"
    ));
    workspace
}

#[test]
fn a_rollback_goes_back_and_never_to_and_fro() {
    let workspace = quick("order", 5);
    let place = &workspace.place;
    let [a, b, _c] = ["A", "B", "C"].map(|label| place.make_live(&app(label)));
    assert_eq!(workspace.xtask("rollback", &[]).succeeds().trim(), b.name);
    assert_eq!(workspace.xtask("rollback", &[]).succeeds().trim(), a.name);
    workspace
        .xtask("rollback", &[])
        .fails(&["nothing was changed", "before the live one: 0"]);
    let d = place.make_live(&app("D"));
    assert_eq!(place.status("rollback"), [&*d.name, &*a.name]);
    assert_eq!(workspace.xtask("rollback", &[]).succeeds().trim(), a.name);
    assert_eq!(place.served(), Some(a.name));
}

#[test]
fn a_restart_is_no_step_back() {
    let workspace = quick("restart", 5);
    let place = &workspace.place;
    let [a, b] = ["A", "B"].map(|label| place.make_live(&app(label)));
    workspace.xtask("restart", &[]).succeeds();
    place.wait_for_processes(1);
    assert_eq!(place.processes()[0].1, format!("{}.2", b.name));
    assert_eq!(place.status("rollback"), [b.name, a.name]);
}

#[test]
fn failures_push_no_good_version_out() {
    let workspace = quick("prune", 3);
    let place = &workspace.place;
    let names = |versions: &[Version]| {
        let mut names: Vec<String> = versions
            .iter()
            .map(|it| format!("app-{}", it.name))
            .collect();
        names.sort();
        names
    };
    let early = ["A", "B", "C"].map(|label| place.make_live(&app(label)));
    for n in 0..6 {
        let said = place.activate(&place.upload(&faulty_app(&format!("bad {n}"), "exits")));
        assert!(said.contains("verdict failed"), "{said}");
    }
    // Nor do restarts of what is live.
    for _ in 0..4 {
        place.make_live_again(&early[2]);
    }
    // It prunes after it has told its verdict.
    let kept = |versions: &[Version]| place.files("versions") == names(versions);
    wait_until("only the good ones to be left", || kept(&early));
    let late = ["D", "E", "F"].map(|label| place.make_live(&app(label)));
    place.wait_for_processes(1);
    // What still ran was left; the next activation of anything takes it away.
    place.make_live_again(&late[2]);
    wait_until("only the late ones to be left", || kept(&late));

    let gone = &early[0].name;
    workspace
        .xtask("rollback", &["--to", gone])
        .fails(&["nothing was changed", gone]);
}

#[test]
fn the_live_version_and_the_one_before_it_are_never_pruned() {
    let workspace = quick("prune-2", 1);
    let place = &workspace.place;
    let [a, b, c] = ["A", "B", "C"].map(|label| place.make_live(&app(label)));
    place.wait_for_processes(1);
    place.make_live_again(&c);
    assert_eq!(
        place.status("rollback"),
        [&*c.name, &*b.name],
        "{a:?} is pruned"
    );
}

#[test]
fn what_cannot_be_rolled_back_to_is_said() {
    let workspace = quick("no-such", 5);
    let place = &workspace.place;
    let [a, b] = ["A", "B"].map(|label| place.make_live(&app(label)));
    let before = place.history();
    let rollback = |to: &str| workspace.xtask("rollback", &["--to", to]);
    rollback("7").fails(&["nothing was changed", "before the live one: 1"]);
    rollback("0").fails(&["the live version"]);
    rollback("ffffffffffff").fails(&["nothing was changed", "no version", "ffffffffffff"]);
    rollback("1a2b3c4d5e6f").fails(&["several versions", &a.name, &b.name]);
    rollback(&b.name).fails(&["is live"]);
    rollback("").fails(&["nothing was changed"]);
    rollback("../../etc/passwd").fails(&["nothing was changed", "no version"]);
    workspace.xtask("rollback", &["--dry-run"]).succeeds();
    assert_eq!(place.history(), before);

    // A part will do, if it is one's only.
    let part = &a.name[a.name.len() - 8..];
    assert_eq!(rollback(part).succeeds().trim(), a.name);
}

#[test]
fn a_torn_last_line_is_passed_over() {
    let workspace = quick("torn", 5);
    let place = &workspace.place;
    let [a, b] = ["A", "B"].map(|label| place.make_live(&app(label)));
    for torn in [
        "2026-11-22T18:30:12Z\tlive\t20261122T18",
        "\u{fffd}",
        "2026-11-22T18:30:12Z\tlive",
    ] {
        let whole = fs::read_to_string(place.path("history")).unwrap();
        fs::write(place.path("history"), format!("{whole}{torn}")).unwrap();
        assert_eq!(place.status("rollback"), [&*b.name, &*a.name]);
        workspace.xtask("history", &[]).succeeds();
        workspace.xtask("status", &[]).succeeds();
        place.make_live_again(&b);
        assert_eq!(place.status("rollback"), [&*b.name, &*a.name]);
        let history = place.history();
        let last: Vec<&str> = history.last().unwrap().split('\t').collect();
        assert_eq!((last.len(), last[0].len()), (5, 20), "{last:?}");
        assert_eq!(last[2], b.name);
    }
}

/// Whoever may deploy could else lock everybody out.
#[test]
fn a_version_with_an_impossible_date_is_passed_over() {
    let workspace = quick("date", 5);
    let place = &workspace.place;
    let a = place.make_live(&app("A"));
    let mut impossible = a.clone();
    impossible.name.replace_range(..8, "20260230");
    assert!(place.activate(&impossible).contains("\nverdict failed"));
    assert!(place.status("last")[0].contains("20260230"));
    let status = workspace.xtask("status", &[]).succeeds();
    assert!(status.contains(&a.name), "{status}");
    let b = workspace.deploy(&app("B")).succeeds();
    assert_eq!(place.live().as_deref(), Some(b.trim()));
}

#[test]
fn a_lost_history_is_no_obstacle() {
    let workspace = quick("lost", 5);
    let place = &workspace.place;
    let a = place.make_live(&app("A"));
    fs::remove_file(place.path("history")).unwrap();
    assert_eq!(place.status("rollback"), [&*a.name]);
    let b = place.make_live(&app("B"));
    assert_eq!(place.status("live"), [b.name]);
}
