//! The workflow for GitHub Actions: its shell lines, word for word, run as a user without
//! root on a clean machine with the programs of GitHub's. The actions between them are
//! GitHub's own: here the tests copy the project, and keep `target` as the caches do.
//!
//! Tests begin in the order of their names. This one takes long, so it is the first.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    adoption::{commands, edit},
    builder::{built_in_container, give, myself},
    lab::{Server, base_image, builder_image, image_from},
    site::Site,
    tour::{copy_what_git_would_clone, git},
    workspace::{Said, said},
};

const WORKFLOW: &str = include_str!("../../../.github/workflows/deploy.yml");

const GET_SENT: &str = "Get the builds that were sent before";
const WRITE_KEY: &str = "Write the ssh key";
const DEPLOY: &str = "Deploy";

/// What GitHub's machines have of what the workflow needs, but Rust.
const RUNNER: &str = r#"
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends \
        ca-certificates chromium gcc gh git libc6-dev openssh-client procps rsync zstd \
    && cd /tmp && apt-get --option Acquire::Retries=3 download docker.io \
    && dpkg-deb --fsys-tarfile docker.io_*.deb | tar --extract --directory / ./usr/bin/docker \
    && rm docker.io_*.deb && apt-get clean && rm -r /var/lib/apt/lists
CMD ["sleep", "infinity"]
"#;

const SOCKET: &str = "/var/run/docker.sock";

/// A user who may use Docker, as on GitHub, and who gets to the project if it is in /root.
const ADD_USER: &str = "set -eu
    groupadd --non-unique --gid \"$1\" engine
    useradd --uid \"$0\" --groups engine --create-home runner 2>/dev/null
    chown runner: ~runner \"$2\"
    chmod a+x /root";

#[test]
fn it_tests_and_deploys() {
    let site = Site::set_up("workflow");
    let (project, key) = project(&site);
    let values = values(&site, &key);
    let runner = Runner::start(&project);
    for step in steps("test") {
        restore_target(&project);
        let ran = runner.run(&step, &values);
        println!("{}: {}{}", step.name, ran.programs, ran.people);
        ran.succeeds();
    }
    let built = "target/musl/x86_64/target/x86_64-unknown-linux-musl/release/app";
    assert!(
        project.join(built).exists(),
        "the deploy would build it again"
    );

    let before = site.received();
    let first = runner.deploy(&values);
    assert_eq!(site.served(), first.trim());
    let whole = site.received() - before;
    let modes = ["sh", "-c", "stat -c %a ~/.ssh ~/.ssh/id_ed25519"];
    let modes = said(&mut runner.as_user(&modes, &[])).succeeds();
    assert_eq!(modes, "700\n600\n");
    drop(runner);

    edit(
        &project.join("app/pages/index.html"),
        "</body>",
        "<p>2</p></body>",
    );
    commit(&project, "A second version");
    let runner = Runner::start(&project);
    let before = site.received();
    let second = runner.deploy(&values);
    assert_eq!(site.served(), second.trim());
    let patch = site.received() - before;
    println!("figure: received {whole} bytes by the first deploy, {patch} by the second");
    assert!(patch < whole / 3, "{patch} of {whole}: it was no patch");
    refuses_what_is_wrong(&runner, &values);
    assert_eq!(site.served(), second.trim());
}

/// Nobody can change what an action or the shell does through a name.
#[test]
fn actions_are_pinned_and_no_expression_is_in_the_shell() {
    let actions = WORKFLOW.lines().filter_map(|it| it.split_once("uses: "));
    for (_, action) in actions {
        let (_, version) = action.split_once('@').unwrap();
        let commit = version.split(" # v").next().unwrap();
        assert!(
            commit.len() == 40 && commit.bytes().all(|it| it.is_ascii_hexdigit()),
            "{action}"
        );
    }
    let steps: Vec<_> = ["test", "deploy"].into_iter().flat_map(steps).collect();
    assert_eq!(steps.len(), WORKFLOW.matches(" run: ").count());
    for step in steps {
        assert!(!step.run.contains("${{"), "{}", step.run);
    }
}

fn refuses_what_is_wrong(runner: &Runner, values: &Values) {
    let with = |name: &str, value: &str| {
        let mut others = values.0.clone();
        others.retain(|(it, _)| it != name);
        others.push((name.to_owned(), value.to_owned()));
        Values(others)
    };
    let run = |step: &str, values: &Values| runner.run(&deploy_step(step), values);
    // gh has understood the line and has the token, but GitHub is not there.
    let failed = run(GET_SENT, values).people;
    assert!(
        failed.contains("error connecting to api.github.com"),
        "{failed}"
    );
    run(WRITE_KEY, &with("secrets.DEPLOY_KEY", "")).fails(&["DEPLOY_KEY: this secret is not set"]);
    for target in [
        "$(touch /tmp/ran); `touch /tmp/ran`; touch /tmp/ran",
        "--allow-dirty",
    ] {
        let refused = run(DEPLOY, &with("inputs.target || 'production'", target));
        refused.ends_as_wrong_usage("no target");
    }
    assert_eq!(said(&mut runner.as_user(&["ls", "/tmp/ran"], &[])).code, 2);
    let known = values.get("secrets.KNOWN_HOSTS");
    let (_, host_key) = known.split_once(' ').unwrap();
    let of_another = format!("other.example.com {host_key}");
    run(WRITE_KEY, &with("secrets.KNOWN_HOSTS", &of_another)).succeeds();
    run(DEPLOY, values).fails(&["Host key verification failed", "nothing was changed"]);
}

/// A project made from the template, in which the README's section was followed. It stays
/// for the next run of the tests, and so does what is built in it.
fn project(site: &Site) -> (PathBuf, String) {
    let project = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workflow");
    fs::create_dir_all(project.join("target")).unwrap();
    for entry in fs::read_dir(&project).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true if path.ends_with("target") => {}
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }
    let _ = fs::remove_dir_all(project.join("target/sent"));
    give(&project, myself());
    copy_what_git_would_clone(&project);
    // The suite that this test is part of runs the crate's tests already.
    fs::remove_file(project.join("app/cutover/tests/it/main.rs")).unwrap();
    git(&project, &["init", "--quiet"]);
    git(&project, &["add", "--all"]);
    git(
        &project,
        &["commit", "--quiet", "--message", "A copy of the template"],
    );
    git(
        &project,
        &[
            "remote",
            "add",
            "origin",
            "https://github.com/somebody/project",
        ],
    );
    let key = follow_readme(site, &project);
    commit(&project, "Deploy from GitHub Actions");
    (project, key)
}

/// Puts into `target` what the tests have built. GitHub's cache puts there what earlier runs
/// have built.
fn restore_target(project: &Path) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    for (from, name) in [
        (target.join("debug"), "debug"),
        (target.join("quick"), "quick"),
        (built_in_container(), "musl"),
    ] {
        let to = project.join("target").join(name);
        if from.exists() && !to.exists() {
            let mut rsync = Command::new("rsync");
            rsync.args(["--archive", "--exclude=/incremental"]);
            said(rsync.arg(from.join("")).arg(&to)).succeeds();
            give(&to, user());
        }
    }
}

/// Returns the new key.
fn follow_readme(site: &Site, project: &Path) -> String {
    let commands = commands("Deploy from GitHub Actions")[0].replace("web1.example.com", site.name);
    let path = site.workspace.place.path("shims");
    let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    shell.args(["-euc", &commands]).current_dir(project);
    said(shell.env("PATH", path)).succeeds();

    let manifest = project.join("xtask/Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let bench = text.find("\n[[bench]]").unwrap();
    fs::write(&manifest, &text[..bench]).unwrap();

    let config = project.join("xtask/src/config.rs");
    let target = format!(
        "    Target {{
        name: \"production\",
        hosts: &[\"deploy@{}\"],
        listen: Some(\"0.0.0.0:80\"),
        ..DEFAULTS
    }},
];",
        site.server.ip()
    );
    edit(&config, "];", &target);
    let builder = builder_image("x86_64").unwrap();
    edit(
        &config,
        "ghcr.io/rust-cross/rust-musl-cross:{arch}-musl",
        &builder,
    );
    let key = fs::read_to_string(project.join("github-key")).unwrap();
    for file in ["github-key", "github-key.pub"] {
        fs::remove_file(project.join(file)).unwrap();
    }
    key
}

/// git works only for the owner, and the project is the runner's.
fn commit(project: &Path, message: &str) {
    give(project, myself());
    git(project, &["add", "--all"]);
    git(project, &["commit", "--quiet", "--message", message]);
    give(project, user());
}

/// What GitHub puts in the place of an expression.
struct Values(Vec<(String, String)>);

impl Values {
    fn evaluate<'a>(&'a self, text: &'a str) -> &'a str {
        let expression = text
            .strip_prefix("${{ ")
            .and_then(|it| it.strip_suffix(" }}"));
        expression.map_or(text, |it| self.get(it))
    }

    fn get(&self, expression: &str) -> &str {
        let known = self.0.iter().find(|(name, _)| name == expression);
        let (_, value) = known.unwrap_or_else(|| panic!("what is {expression:?}?"));
        value
    }
}

fn values(site: &Site, key: &str) -> Values {
    let host_key = site.root("cat /etc/ssh/ssh_host_ed25519_key.pub");
    let values = [
        ("secrets.DEPLOY_KEY", key.trim_end()),
        (
            "secrets.KNOWN_HOSTS",
            &format!("{} {}", site.server.ip(), host_key.trim_end()),
        ),
        ("inputs.target || 'production'", "production"),
        ("github.token", "a token that nobody gave"),
    ];
    Values(
        values
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    )
}

/// A clean machine with the project and the machine's user.
struct Runner {
    machine: Server,
    project: PathBuf,
    /// CARGO_HOME
    cargo: String,
}

impl Runner {
    fn start(project: &Path) -> Runner {
        let image = image_from("runner", &base_image().unwrap(), RUNNER).unwrap();
        let rust = output(Command::new("rustc").args(["--print", "sysroot"]));
        let cargo =
            std::env::var("CARGO_HOME").unwrap_or(std::env::var("HOME").unwrap() + "/.cargo");
        let mount = |from: &str, to: &str| format!("--volume={from}:{to}");
        let here = project.to_str().unwrap();
        let args = [
            mount(&rust, "/opt/rust:ro"),
            // By the same path, or cargo builds again what it finds in `target`.
            mount(
                &format!("{cargo}/registry"),
                &format!("{cargo}/registry:ro"),
            ),
            // The engine mounts the project into the builder by its path here.
            mount(here, here),
            mount(SOCKET, SOCKET),
        ];
        let args = args.each_ref().map(String::as_str);
        let machine = Server::start_plain(&image, "runner", &args).unwrap();
        let engine = fs::metadata(SOCKET).unwrap().gid();
        let add = [
            "sh",
            "-c",
            ADD_USER,
            &user().to_string(),
            &engine.to_string(),
            &cargo,
        ];
        let added = machine.exec(&add).unwrap();
        assert!(added.status.success(), "{added:?}");
        Runner {
            machine,
            project: project.to_owned(),
            cargo,
        }
    }

    /// All steps of the job, and what the deploy says is live.
    fn deploy(&self, values: &Values) -> String {
        let mut live = String::new();
        for step in steps("deploy") {
            let ran = self.run(&step, values);
            println!("{}: {}", step.name, ran.people);
            live = ran.succeeds();
        }
        live
    }

    /// As GitHub runs it. Nothing that it prints may have a line of the key.
    fn run(&self, step: &Step, values: &Values) -> Said {
        let env = step.env.iter();
        let env: Vec<_> = env
            .map(|(name, value)| (&**name, values.evaluate(value)))
            .collect();
        let ran = said(&mut self.as_user(&["bash", "-e", "-c", &step.run], &env));
        for line in values.get("secrets.DEPLOY_KEY").lines() {
            assert!(
                !format!("{ran:?}").contains(line),
                "the key is in the log: {ran:?}"
            );
        }
        ran
    }

    fn as_user(&self, command: &[&str], env: &[(&str, &str)]) -> Command {
        let mut docker = Command::new("docker");
        docker
            .args(["exec", "--user=runner", "--workdir"])
            .arg(&self.project);
        docker.args(["--env=CI=true", "--env=CARGO_NET_OFFLINE=true"]);
        docker.arg(format!("--env=CARGO_HOME={}", self.cargo));
        docker.arg("--env=PATH=/opt/rust/bin:/usr/local/bin:/usr/bin:/bin");
        for (name, value) in env {
            docker.args(["--env", name]).env(name, value);
        }
        docker.arg(self.machine.container()).args(command);
        docker
    }
}

/// The number that the user has on GitHub's machines.
fn user() -> u32 {
    if myself() == 0 { 1001 } else { myself() }
}

fn output(command: &mut Command) -> String {
    said(command).succeeds().trim().to_owned()
}

struct Step {
    name: String,
    env: Vec<(String, String)>,
    run: String,
}

fn deploy_step(name: &str) -> Step {
    steps("deploy")
        .into_iter()
        .find(|it| it.name == name)
        .unwrap()
}

/// The steps of a job that run shell lines. Only the YAML that the workflow uses is read.
fn steps(job: &str) -> Vec<Step> {
    let jobs = WORKFLOW.split_once("\njobs:\n").unwrap().1;
    let job = block(jobs, &format!("  {job}:"));
    let (head, steps) = job.split_once("    steps:\n").unwrap();
    let steps = steps
        .split("      - ")
        .skip(1)
        .filter(|it| it.starts_with("name: "));
    steps
        .map(|step| {
            let (name, rest) = step.split_once('\n').unwrap();
            Step {
                name: name.replacen("name: ", "", 1),
                env: [variables(head, "    env:"), variables(rest, "        env:")].concat(),
                run: run(rest),
            }
        })
        .collect()
}

fn run(step: &str) -> String {
    let lines = block(step, "        run: |");
    if !lines.is_empty() {
        return lines
            .lines()
            .map(|it| format!("{}\n", it.get(10..).unwrap_or_default()))
            .collect();
    }
    let line = step
        .lines()
        .find_map(|it| it.strip_prefix("        run: "))
        .unwrap();
    assert!(
        ![": ", " #"].iter().any(|it| line.contains(it)),
        "YAML reads this otherwise: {line}"
    );
    line.to_owned()
}

fn variables(text: &str, heading: &str) -> Vec<(String, String)> {
    let lines = block(text, heading);
    let pairs = lines.lines().map(|it| it.trim().split_once(": ").unwrap());
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The lines below a heading that are indented further.
fn block(text: &str, heading: &str) -> String {
    let indent = heading.len() - heading.trim_start().len();
    let below = text.lines().skip_while(|it| *it != heading).skip(1);
    let is_inside = |it: &&str| it.trim().is_empty() || it.len() - it.trim_start().len() > indent;
    below
        .take_while(is_inside)
        .map(|it| format!("{it}\n"))
        .collect()
}
