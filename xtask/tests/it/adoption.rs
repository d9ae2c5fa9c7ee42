//! A server of another shape takes over what the README's section "You already have a
//! server" lists, and is deployed: with the real cargo.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    app,
    load::{Connections, Load},
    place::Place,
    tour::{git, without_cargo, xtask},
    workspace::said,
};

const README: &str = include_str!("../../../README.md");

const SECTION: &str = "You already have a server";

/// The server before, a repository of its own.
const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/adopted");

#[test]
fn a_server_of_another_shape_is_deployed_by_the_readme() {
    let place = Place::new("adoption");
    let server = adopt(&place);
    let _stop_at_end = StopAtEnd(&server);
    let first = xtask(&server, &["deploy"]).succeeds();
    assert!(!first.contains("dirty"), "{first}");
    assert_eq!(place.served().as_deref(), Some(first.trim()));
    let clients = [
        Load::start(place.address, 2, Connections::New),
        Load::start(place.address, 2, Connections::KeptAlive),
    ];

    let goods = server.join("catalog/src/lib.rs");
    edit(&goods, "butter", "butter\\nbeer");
    git(
        &server,
        &["commit", "--quiet", "--all", "--message", "Beer"],
    );
    let second = xtask(&server, &["deploy"]).succeeds();
    assert!(!second.contains("dirty"), "{second}");
    assert_eq!(place.served().as_deref(), Some(second.trim()));
    let answer = crate::http::get(place.address, "/goods").unwrap();
    assert_eq!(answer.body, "bread\nbutter\nbeer\n");

    assert_eq!(xtask(&server, &["rollback"]).succeeds(), first);
    assert_eq!(place.served().as_deref(), Some(first.trim()));

    // The answer of the old version is not taken for the new one's.
    let main = server.join("src/main.rs");
    edit(
        &main,
        "async || router()",
        "async || std::future::pending::<Router>().await",
    );
    let still = format!("{} still serves", first.trim());
    xtask(&server, &["deploy"]).fails(&["did not become live", &still]);
    assert_eq!(place.served().as_deref(), Some(first.trim()));

    for report in clients.map(Load::stop) {
        assert!(report.lost.is_empty(), "{:?}", report.lost);
        for version in [&first, &second] {
            assert!(report.by_version.contains_key(version.trim()));
        }
    }
    // A second service does not take the directory of the first one over.
    xtask(&server, &["setup", "twin"]).fails(&["`shop-server`", "`shop-twin`"]);
}

/// No instance outlives the test, also when it fails.
struct StopAtEnd<'a>(&'a Path);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        let script = self.0.join("target/local/bin/activate");
        let _ = Command::new(script).arg("stop").output();
    }
}

/// Makes the repository, does all that the README says, and returns its folder.
fn adopt(place: &Place) -> PathBuf {
    let server = place.path("shop");
    copy(Path::new(SERVER), &server);
    fs::rename(server.join("gitignore"), server.join(".gitignore")).unwrap();
    git(&server, &["init", "--quiet"]);
    git(&server, &["add", "--all"]);
    git(&server, &["commit", "--quiet", "--message", "A shop"]);
    symlink(app::WORKSPACE, place.path("cutover")).unwrap();
    keep_what_was_built(&server);

    let [copy, commit] = &commands(SECTION)[..] else {
        panic!("the README has two lists of commands");
    };
    run(&server, copy);
    change_lines(&server, &place.address.to_string());
    run(&server, commit);
    server
}

/// The lists of commands in a section of the README.
pub fn commands(title: &str) -> Vec<&'static str> {
    let blocks = section(title).split("```sh\n").skip(1);
    blocks.map(|it| it.split("```").next().unwrap()).collect()
}

fn section(title: &str) -> &'static str {
    let mut sections = README.split("\n## ");
    let section = sections.find(|it| it.split('\n').next() == Some(title));
    section.unwrap_or_else(|| panic!("the README has no section {title:?}"))
}

/// The README's table of lines to change.
fn change_lines(server: &Path, address: &str) {
    let add = |file: &str, after: &str, separator: &str, line: &str| {
        assert!(
            section(SECTION).contains(line),
            "the README does not say {line:?}"
        );
        edit(&server.join(file), after, &[after, line].join(separator));
    };
    add("Cargo.toml", "\"catalog\"", ", ", "\"cutover\", \"xtask\"");
    let template = read(&Path::new(app::WORKSPACE).join("Cargo.toml"));
    let quick = &template[template.find("[profile.quick]").unwrap()..];
    edit(
        &server.join("Cargo.toml"),
        "[lints]",
        &format!("{quick}\n[lints]"),
    );
    let dependency = "cutover = { path = \"cutover\" }";
    add("Cargo.toml", "{ path = \"catalog\" }", "\n", dependency);
    let route = ".route(\"/healthz\", get(|| async { \"ok\" }))";
    add("src/main.rs", "Router::new()", "\n        ", route);

    let main = server.join("src/main.rs");
    let old = read(&main);
    let [from, to] = ["use tokio", "fn router"].map(|it| old.find(it).unwrap());
    edit(&main, &old[from..to], &format!("{}\n", block("rust")));

    let manifest = server.join("xtask/Cargo.toml");
    let text = read(&manifest);
    edit(&manifest, &text[text.find("[[bench]]").unwrap()..], "");

    let config = server.join("xtask/src/config.rs");
    edit(
        &config,
        "NAME: &str = \"app\"",
        "NAME: &str = \"shop-server\"",
    );
    edit(&config, "127.0.0.1:3000", address);
    let twin = "    Target { name: \"twin\", directory: Some(\"target/local\"), \
        service: Some(\"shop-twin\"), listen: Some(\"127.0.0.1:1\"), ..DEFAULTS },\n];";
    edit(&config, "];", twin);
}

/// The only block of the section in this language.
fn block(language: &str) -> &'static str {
    let block = section(SECTION).split(&format!("```{language}\n")).nth(1);
    block.unwrap().split("```").next().unwrap()
}

/// The next run of this test finds its dependencies built, which takes a minute.
fn keep_what_was_built(server: &Path) {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("adopted");
    fs::create_dir(server.join("target")).unwrap();
    for profile in ["quick", "release"] {
        fs::create_dir_all(kept.join(profile)).unwrap();
        symlink(kept.join(profile), server.join("target").join(profile)).unwrap();
    }
}

fn run(server: &Path, commands: &str) {
    let mut shell = Command::new("sh");
    without_cargo(&mut shell)
        .args(["-euc", commands])
        .current_dir(server)
        .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|it| (it, "Test")))
        .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|it| (it, "test@localhost")));
    said(&mut shell).succeeds();
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(copied.unwrap().success());
}

pub fn edit(file: &Path, from: &str, to: &str) {
    let text = read(file);
    assert!(text.contains(from), "{} has no {from:?}", file.display());
    fs::write(file, text.replacen(from, to, 1)).unwrap();
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}
