//! The README's pages "First server" and "Make it yours", as they are written: an app with a
//! database and a secret, and its staging twin on the same bare host.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use crate::{
    configured::{by, xtask_with},
    internet::{DAY_SECS, Internet},
    notes::notes,
    place::wait_until,
    workspace::{Said, said},
};

/// What the first step uncomments.
const PRODUCTION: &str = r#"    // Target {
    //     name: "production",
    //     hosts: &["deploy@web1.example.com"],
    //     domain: Some("www.example.com"), // by https; or listen: Some("0.0.0.0:80")
    //     ..DEFAULTS
    // },
"#;

const README: &str = include_str!("../../../README.md");

#[test]
fn a_bare_host_by_what_the_readme_says() {
    let readme = README.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "uncomment the target `production` and edit two lines: `hosts`,",
        "`cargo xtask setup production --as root`",
        "`cargo xtask deploy production`",
        "`cargo xtask env production set KEY --as root` reads the value from standard",
        "copy the target, and give it another `name`, `service`, and `listen` or `domain`",
        "`cargo xtask run production -- migrate`",
    ] {
        assert!(readme.contains(words), "the README does not say: {words}");
    }
    let first = FirstServer::start();
    let get = |domain: &str, path: &str| first.internet.get(domain, path).unwrap().body;

    first
        .xtask(&["setup", "production", "--as", "root"])
        .succeeds();
    let refused = first.deploy("production", "A");
    assert!(
        refused.people.contains("env production set NAME --as root"),
        "{refused:?}"
    );
    first.set_secret("production", "for production");
    let a = first.deploy("production", "A").succeeds();
    first.await_https("notes.example.org");
    assert_eq!(get("notes.example.org", "/secret"), "for production");
    let mut tls = first.internet.tls("notes.example.org").unwrap();
    let post = tls.request("POST", "notes.example.org", "/notes", "a note");
    assert_eq!(post.unwrap().status, 200);

    first
        .xtask(&["setup", "staging", "--as", "root"])
        .succeeds();
    first.set_secret("staging", "for staging");
    first.deploy("staging", "B").succeeds();
    first.await_https("staging.example.org");
    assert_eq!(get("staging.example.org", "/secret"), "for staging");
    assert_eq!(get("staging.example.org", "/notes"), "");

    first.deploy("production", "B").succeeds();
    first.set_secret("production", "a new one");
    first.xtask(&["restart", "production"]).succeeds();
    assert_eq!(first.xtask(&["rollback", "production"]).succeeds(), a);
    assert_eq!(get("notes.example.org", "/secret"), "a new one");
    assert_eq!(get("notes.example.org", "/notes"), "a note");
    let count = ["run", "production", "--", "count"];
    assert_eq!(first.xtask(&count).succeeds(), "1\n");
    assert_eq!(get("staging.example.org", "/secret"), "for staging");
}

struct FirstServer {
    internet: Internet,
    xtask: PathBuf,
}

impl FirstServer {
    fn start() -> FirstServer {
        let production = PRODUCTION
            .replace("    // ", "    ")
            .replace("web1.example.com", "first")
            .replace("www.example.com", "notes.example.org");
        let staging = production
            .replace(
                r#""production","#,
                r#""staging", service: Some("notes-staging"),"#,
            )
            .replace("notes.example.org", "staging.example.org");
        let edits = [
            (r#"NAME: &str = "app""#, r#"NAME: &str = "notes""#),
            (PRODUCTION, &(production + &staging)),
        ];
        let xtask = xtask_with("first-server", &edits);
        let internet = Internet::start("first", DAY_SECS);
        let cargo = internet.site.workspace.root.join("cargo");
        let text = fs::read_to_string(&cargo).unwrap();
        fs::write(&cargo, text.replace("release/app", "release/notes")).unwrap();
        FirstServer { internet, xtask }
    }

    fn xtask(&self, args: &[&str]) -> Said {
        said(&mut by(&self.xtask, &self.internet.site.command(args)))
    }

    /// Without a container, because the tests' builder is not the one that people have.
    fn deploy(&self, target: &str, label: &str) -> Said {
        let root = &self.internet.site.workspace.root;
        fs::write(root.join("binary"), notes(label)).unwrap();
        self.xtask(&["deploy", target, "--build", "host"])
    }

    fn set_secret(&self, target: &str, value: &str) {
        let file = self.internet.site.workspace.place.path("value");
        fs::write(&file, value).unwrap();
        let set = ["env", target, "set", "SECRET", "--as", "root"];
        let mut set = by(&self.xtask, &self.internet.site.command(&set));
        said(set.stdin(File::open(&file).unwrap())).succeeds();
    }

    fn await_https(&self, domain: &str) {
        wait_until("a certificate", || {
            self.internet.get(domain, "/version").is_ok()
        });
    }
}
