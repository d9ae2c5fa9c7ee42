//! The README's tour, by a stranger with a fresh clone: with the real cargo.

use std::{fs, path::Path, process::Command};

use crate::{
    app,
    place::Place,
    workspace::{Said, said},
};

#[test]
fn clone_deploy_edit_deploy_roll_back() {
    let place = Place::new("tour");
    let clone = place.path("clone");
    copy_what_git_would_clone(&clone);
    // The template's own address may be in use on this machine.
    let config = clone.join("xtask/src/config.rs");
    let text = fs::read_to_string(&config).unwrap();
    let address = place.address.to_string();
    assert!(text.contains("127.0.0.1:3000"));
    fs::write(&config, text.replace("127.0.0.1:3000", &address)).unwrap();
    git(&clone, &["init", "--quiet"]);
    git(&clone, &["add", "--all"]);
    git(
        &clone,
        &["commit", "--quiet", "--message", "A copy of the template"],
    );
    let local = clone.join("target/local");

    let first = xtask(&clone, &["deploy"]);
    assert!(
        first.people.contains(&format!("http://{address}")),
        "{first:?}"
    );
    let first = first.succeeds();
    assert!(!first.contains("dirty"), "{first}");
    assert_eq!(place.served().as_deref(), Some(first.trim()));

    let page = clone.join("app/pages/index.html");
    let text = fs::read_to_string(&page).unwrap();
    fs::write(&page, text.replace("</body>", "<!-- an edit --></body>")).unwrap();
    // From another folder of the workspace.
    let second = xtask(&clone.join("app/src"), &["deploy"]).succeeds();
    assert!(second.contains("-dirty-"), "{second}");
    assert_eq!(place.served().as_deref(), Some(second.trim()));
    let index = crate::http::get(place.address, "/").unwrap();
    assert!(index.body.contains("<!-- an edit -->"));

    assert_eq!(xtask(&clone, &["rollback"]).succeeds(), first);
    assert_eq!(place.served().as_deref(), Some(first.trim()));
    let built = xtask(&clone, &["build"]).succeeds();
    assert!(Path::new(built.trim()).is_file(), "{built}");
    xtask(&clone, &["stop"]).succeeds();
    assert!(local.join("current").exists() && place.served().is_none());
}

pub fn xtask(dir: &Path, args: &[&str]) -> Said {
    let mut cargo = Command::new("cargo");
    without_cargo(&mut cargo);
    said(cargo.arg("xtask").args(args).current_dir(dir))
}

/// Without the variables that cargo sets for this test.
pub fn without_cargo(command: &mut Command) -> &mut Command {
    let is_set = |name: &String| name.starts_with("CARGO") && name != "CARGO_HOME";
    for name in std::env::vars().map(|(name, _)| name).filter(is_set) {
        command.env_remove(name);
    }
    command
}

pub fn copy_what_git_would_clone(to: &Path) {
    let list = [
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ];
    let files = Command::new("git")
        .current_dir(app::WORKSPACE)
        .args(list)
        .output()
        .unwrap();
    for file in String::from_utf8(files.stdout)
        .unwrap()
        .split_terminator('\0')
    {
        let from = Path::new(app::WORKSPACE).join(file);
        if from.is_file() {
            fs::create_dir_all(to.join(file).parent().unwrap()).unwrap();
            fs::copy(&from, to.join(file)).unwrap();
        }
    }
}

pub fn git(dir: &Path, args: &[&str]) {
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"];
    assert!(
        Command::new("git")
            .current_dir(dir)
            .args(identity)
            .args(args)
            .status()
            .unwrap()
            .success()
    );
}
