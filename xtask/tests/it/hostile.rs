//! Input that means harm, or is only odd.

use std::fs;

use crate::{
    app::app,
    place::{Place, output, wait_until},
    workspace::{Workspace, said},
};

const VERSION: &str = "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c";

#[test]
fn names_that_are_no_versions() {
    let place = Place::new("names");
    let a = place.make_live(&app("A"));
    let before = (place.history(), place.files("versions"), place.files("log"));
    let newline = format!("{VERSION}\n{VERSION}");
    let names = [
        "",
        "-",
        "-n",
        "--help",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "a b",
        "$(touch pwned)",
        "`touch pwned`",
        ";touch pwned",
        "*",
        "\n",
        &newline,
        &format!("{VERSION}\n"),
        &format!(" {VERSION}"),
        &format!("{VERSION} "),
        &format!("{VERSION}/../x"),
        &format!("/{VERSION}"),
        &format!("-{VERSION}"),
        &VERSION.to_uppercase(),
        &format!("{VERSION}$(id)"),
        "20261122T183012Z-1a2b3c4d5e6f",
        "ü0261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
        "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c-dirty",
        "20261122T183012Z-1a2b3c4d5e6f-clean-9f86d081884c",
    ];
    for name in names {
        let said = output(place.script(&["activate", name, &a.sha256, "tester@test"]));
        assert!(said.starts_with("not a version: '"), "{name:?}: {said}");
    }
    for sha256 in [
        "",
        "-",
        &a.sha256[1..],
        &format!("{}0", a.sha256),
        &a.sha256.to_uppercase(),
        "$(id)",
        &"\n".repeat(64),
    ] {
        let said = output(place.script(&["activate", &a.name, sha256, "tester@test"]));
        assert!(said.starts_with("not a sha256: '"), "{sha256:?}: {said}");
    }
    for by in ["", "a b", "a\tb", "a\nb", "$(id)", "ü", &"x".repeat(101)] {
        let said = output(place.script(&["activate", &a.name, &a.sha256, by]));
        assert!(said.starts_with("not a user@host: '"), "{by:?}: {said}");
    }
    for (args, answer) in [
        (&["follow", "../history"][..], "not an activation"),
        (&["follow", ""], "not an activation"),
        (&["follow", "20261122T183012Z-1"], "no such activation"),
        (&["logs", "-1"], "not a number"),
        (&["logs", "1;id"], "not a number"),
        (&["logs", "5", "--all"], "usage"),
        (&["activate"], "usage"),
        (&["start", "x"], "usage"),
        (&["rm", "-rf"], "usage"),
        (&[], "usage"),
    ] {
        let said = output(place.script(args));
        assert!(said.contains(answer), "{args:?}: {said}");
    }
    assert_eq!(
        (place.history(), place.files("versions"), place.files("log")),
        before
    );
    assert!(!fs::exists("pwned").unwrap() && !place.path("pwned").exists());
    assert_eq!(place.served(), Some(a.name));
}

#[test]
fn a_directory_with_spaces_and_quotes() {
    let workspace = Workspace::new("it's \"a\" $(touch pwned) dir; é");
    let a = workspace.deploy(&app("A")).succeeds();
    let b = workspace.deploy(&app("B")).succeeds();
    assert_eq!(workspace.xtask("rollback", &[]).succeeds(), a);
    assert_ne!(a, b);
    wait_until("A to serve alone", || {
        workspace.place.processes().len() == 1
    });
    assert_eq!(workspace.place.served().as_deref(), Some(a.trim()));
    assert!(workspace.xtask("status", &[]).succeeds().contains(a.trim()));
    workspace.xtask("stop", &[]).succeeds();
    workspace.place.wait_for_processes(0);
}

#[test]
fn the_environment_file_is_data() {
    let place = Place::new("env");
    fs::write(
        place.path("env"),
        "A=1\nLISTEN=127.0.0.1:1\nPWNED=$(touch pwned)\n; touch pwned\nno assignment\n",
    )
    .unwrap();
    place.make_live(&app("A"));
    let (pid, _) = place.processes()[0];
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let variables: Vec<&str> = environment.split('\0').collect();
    assert!(
        variables.contains(&"A=1") && variables.contains(&"PWNED=$(touch pwned)"),
        "{variables:?}"
    );
    assert!(!place.path("pwned").exists());
}

#[test]
fn targets_that_are_none() {
    let workspace = Workspace::new("targets");
    for (target, words) in [
        ("nowhere", "no target `nowhere`"),
        ("", "no target ``"),
        ("../x", "no target `../x`"),
        ("/tmp/a\nb", "control character"),
    ] {
        said(&mut workspace.command(&["status", target])).ends_as_wrong_usage(words);
    }
    for listen in [
        "3000",
        "localhost",
        "127.0.0.1",
        "127.0.0.1:99999",
        "1.2.3.4:80'; id",
        "",
    ] {
        workspace
            .xtask("setup", &["--listen", listen])
            .ends_as_wrong_usage("is not IP:PORT");
    }
    assert_eq!(
        said(&mut workspace.command(&["status", "--no-such-flag"])).code,
        2
    );
    assert_eq!(said(&mut workspace.command(&[])).code, 2);
    assert_eq!(said(&mut workspace.command(&["status", "-x"])).code, 2);
}
