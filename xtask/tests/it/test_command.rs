//! `cargo xtask test` itself: what it says where something is missing, and how it shows tests.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::{
    app::WORKSPACE,
    workspace::{Said, Workspace, said},
};

const TESTS: &str = r#"#[test]
fn catches_a_panic() {
    println!("figure: 7 panics caught");
    println!("not a figure");
    assert!(std::panic::catch_unwind(|| panic!("expected")).is_err());
}

#[test]
fn fails() {
    panic!("the reason\n\nand more");
}
"#;

#[test]
fn all_that_is_missing_is_named_before_anything_runs() {
    let workspace = Workspace::new("missing");
    // Only with them the template's own tests are there.
    fs::create_dir_all(workspace.root.join("xtask/tests")).unwrap();
    let tools = workspace.place.path("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["sh", "id"] {
        symlink(format!("/usr/bin/{tool}"), tools.join(tool)).unwrap();
    }
    let test = |ci: &str| -> Said {
        let mut command = workspace.command(&["test"]);
        said(command.env("PATH", &tools).env("CI", ci))
    };
    test("true").fails(&[
        "the tests `actions`, `arm64`, `builder`, `first_server`, `fleet`, `https`, `releases`, `run_command`, `servers`, `state`, `without_systemd` cannot run here: `docker` is not installed",
    ]);
    let without_engine = test("");
    assert!(!without_engine.people.contains("Checking"));
    without_engine.fails(&[
        "left out: the tests `actions`, `arm64`, `builder`, `first_server`, `fleet`, `https`, `releases`, `run_command`, `servers`, `state`, `without_systemd` cannot run here: `docker` is not installed",
        "chromium, ",
        "nothing was tested\nhint: `apt-get install --no-install-recommends chromium ",
        " && rustup component add clippy rustfmt`",
    ]);
}

#[test]
fn the_output_has_each_test_and_each_reason_and_the_figures_last() {
    let workspace = Workspace::new("output");
    let manifest = "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
    let lock = "version = 4\n\n[[package]]\nname = \"app\"\nversion = \"0.1.0\"\n";
    for (file, text) in [
        ("Cargo.toml", manifest),
        ("Cargo.lock", lock),
        ("src/lib.rs", TESTS),
    ] {
        let file = workspace.root.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    for folder in ["xtask/src", "xtask/server", ".ci"] {
        let from = format!("{WORKSPACE}/{folder}");
        let copy = Command::new("cp")
            .args(["-r", &from])
            .arg(workspace.root.join(folder))
            .status();
        assert!(copy.unwrap().success());
    }
    let mut command = workspace.command(&["test"]);
    command.env("CARGO", "cargo").env("RUST_BACKTRACE", "1");
    let said = said(command.env_remove("CI"));
    let shown = &said.programs;
    for line in [
        "test catches_a_panic ... ok\n",
        "test fails ... FAILED\n",
        "the reason\n",
        "\ntest result: FAILED. 1 passed; 1 failed; ",
    ] {
        assert!(shown.contains(line), "no {line:?} in {said:?}");
    }
    for hidden in ["expected", "not a figure", "stack backtrace"] {
        assert!(!shown.contains(hidden), "{hidden:?} in {said:?}");
    }
    assert_eq!(said.code, 1);
    let last = "    Measured catches_a_panic: 7 panics caught\n      Failed fails: the reason\nand more\n\
                error: tests failed; each says why above\n";
    assert!(said.people.ends_with(last), "{said:?}");
}
