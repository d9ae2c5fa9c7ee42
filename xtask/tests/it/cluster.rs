//! A target on Kubernetes: a real cluster of two nodes, each in a container.

use std::fs::File;

use crate::{
    app::{app, faulty_app},
    client::Client,
    configured::by,
    http::{self, Connection},
    kit::cluster::Namespace,
    load::{Connections, Load},
    workspace::{Said, said},
};

#[test]
fn from_bare_to_live_and_back() {
    let site = Namespace::new("live");
    site.deploy(&app("A")).fails(&[
        "app in deployer/live is not set up",
        "cargo xtask setup live",
    ]);
    let site = site.prepared();
    let a = site.deploy_first(&app("A"));
    assert_eq!(site.served(), a.trim());
    let again = site.deploy(&app("A"));
    assert!(again.people.contains("the same build"), "{again:?}");
    assert_eq!(again.succeeds(), a);
    let b = site.deploy(&app("B")).succeeds();
    site.wait_for_pods(2);
    assert_eq!(site.served(), b.trim());
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    site.wait_for_pods(2);
    assert_eq!(site.served(), a.trim());
    site.xtask("rollback", &[])
        .fails(&["versions before the live one: 0", "nothing was changed"]);
    assert_eq!(site.xtask("rollback", &["--to", b.trim()]).succeeds(), b);
    site.wait_for_pods(2);

    let status = site.xtask("status", &["--json"]).succeeds();
    let live = format!("\"live\": \"{}\", \"running\"", b.trim());
    assert_eq!(status.matches(&live).count(), 2, "{status}");
    assert!(
        status.contains("\"healthy\": true, \"restarts\": 0"),
        "{status}"
    );
    let history = site.xtask("history", &[]).succeeds();
    assert!(
        history.contains(&format!("{}  live\n", b.trim())),
        "{history}"
    );
    assert!(
        history.contains(&format!("{}  rollback --to 1\n", a.trim())),
        "{history}"
    );
    let logs = site.xtask("logs", &["--lines", "200"]).succeeds();
    assert_eq!(logs.matches(" ready").count(), 2, "{logs}");
}

#[test]
fn start_stop_restart_and_the_environment() {
    let site = Namespace::set_up("commands");
    let a = site.deploy_first(&app("A"));
    let pods = || site.kubectl(&["get", "pods", "--output=name"]);
    let value = site.workspace.place.path("value");
    std::fs::write(&value, "a \"quoted\" secret\n").unwrap();
    let mut set = site.command(&["env", "commands", "set", "SECRET"]);
    said(set.stdin(File::open(&value).unwrap())).succeeds();
    assert_eq!(site.xtask("env", &[]).succeeds(), "SECRET\n");
    let kept = site.kubectl(&["get", "secret/app-env", "--output=jsonpath={.data.SECRET}"]);
    assert_eq!(kept, "YSAicXVvdGVkIiBzZWNyZXQ=");

    let before = pods();
    site.xtask("restart", &[]).succeeds();
    site.wait_for_pods(2);
    assert!(before.lines().all(|pod| !pods().contains(pod)), "{before}");
    assert_eq!(site.served(), a.trim());

    site.xtask("stop", &[]).succeeds();
    assert!(http::get(site.address(), "/").is_err());
    // What does not start stays stopped.
    site.kubectl(&["create", "quota", "none", "--hard=pods=0"]);
    site.xtask("start", &[])
        .fails(&["no pod can be made: ", "is stopped, as before"]);
    assert_eq!(site.pods(), Some(0));
    site.kubectl(&["delete", "quota", "none"]);
    site.xtask("start", &[]).succeeds();
    site.wait_for_route();
    assert_eq!(site.served(), a.trim());
    // The settings and the label are kept by setup and by a deploy.
    site.xtask("setup", &[]).succeeds();
    let b = site.deploy(&app("B")).succeeds();
    assert_eq!(site.xtask("env", &[]).succeeds(), "SECRET\n");
    site.xtask("env", &["unset", "SECRET"]).succeeds();
    assert_eq!(site.xtask("env", &[]).succeeds(), "");

    let plan = site.xtask("deploy", &["--dry-run"]);
    assert!(plan.people.contains("Would push it to "), "{plan:?}");
    assert_eq!(plan.succeeds(), "", "nothing differs");
    let plan = site.xtask("rollback", &["--dry-run"]);
    assert!(
        plan.people
            .contains(&format!("Would activate {}", a.trim())),
        "{plan:?}"
    );
    assert_eq!(site.served(), b.trim());
}

#[test]
fn no_request_is_lost_over_ten_switches() {
    let site = Namespace::set_up("switches");
    site.deploy_first(&app("A"));
    let mut stream = Connection::open(site.address()).unwrap();
    let ask = "GET /events HTTP/1.1\r\nHost: test\r\n\r\n";
    stream.send(ask).unwrap();
    let clients = [
        Load::start(site.address(), 4, Connections::New),
        Load::start(site.address(), 4, Connections::KeptAlive),
    ];
    for n in 0..10 {
        match n % 3 {
            2 => site.xtask("rollback", &[]).succeeds(),
            _ => site.deploy(&app(&format!("{n}"))).succeeds(),
        };
    }
    // It ended at a switch, as a chunked answer does that is whole.
    let mut last = String::new();
    while let Ok(line) = stream.read_line() {
        last = line;
    }
    assert_eq!(last, "\r\n");
    for (kind, load) in ["new", "kept"].into_iter().zip(clients) {
        let report = load.stop();
        let answered = report.answered.len();
        println!(
            "figure: 10 switches on two nodes, {kind} connections: {} lost, {answered} answered",
            report.lost.len()
        );
        assert!(report.lost.is_empty(), "{kind}: {:?}", report.lost);
        assert!(answered > 1000, "only {answered} {kind}");
        assert!(report.by_version.len() > 5, "{:?}", report.by_version);
    }
    let mut stream = Connection::open(site.address()).unwrap();
    stream.send(ask).unwrap();
    assert!(stream.read_line().unwrap().contains("200"));
}

#[test]
fn bad_versions_never_become_live() {
    let site = Namespace::set_up("bad");
    site.deploy(&faulty_app("A", "exits")).fails(&[
        "did not become live on deployer/bad: it exited: exit code 3",
        "fault: exits at once",
        "nothing is live there",
    ]);
    site.wait_for_pods(0);
    let first = site.deploy_first(&app("0"));
    let a = site.deploy(&app("A")).succeeds();
    site.wait_for_pods(2);
    let still = format!("{} still serves", a.trim());
    let quota = ["create", "quota", "pods", "--hard=pods=2"];
    for (fault, reason) in [
        ("exits", "it exited: exit code 3"),
        ("never-listens", "it did not become ready in time"),
        ("unhealthy", "500"),
        ("dies-once-ready", "it exited: exit code 4"),
        ("none", "no pod can be made: "),
    ] {
        let load = Load::start(site.address(), 2, Connections::New);
        if fault == "none" {
            site.kubectl(&quota);
        }
        let bad = faulty_app("B", fault);
        let failed = match fault {
            "never-listens" => site.deploy_impatiently(&bad),
            _ => site.deploy(&bad),
        };
        failed.fails(&["did not become live", reason, &still]);
        let report = load.stop();
        assert!(
            report.lost.is_empty() && !report.answered.is_empty(),
            "{fault}: {:?}",
            report.lost
        );
        assert_eq!(
            report.by_version.len(),
            1,
            "{fault}: a bad version has served"
        );
        assert_eq!(site.served(), a.trim());
    }
    site.kubectl(&["delete", "quota", "pods"]);
    site.deploy(b"#!/bin/sh\n").fails(&["is not an executable"]);
    let failed = site.xtask("deploy", &["--build", "host", "--json"]);
    assert_eq!(failed.code, 1, "{failed:?}");

    // What has failed cannot be gone back to, and does not push out what can.
    let history = site.xtask("history", &[]).succeeds();
    assert_eq!(history.matches("  failed  ").count(), 1, "{history}");
    site.xtask("rollback", &["--to", "2"])
        .fails(&["versions before the live one: 1"]);
    assert_eq!(site.xtask("rollback", &[]).succeeds(), first);
}

#[test]
fn wrong_targets_and_edited_deployments_are_left_alone() {
    let site = Namespace::set_up("refused");
    let deploy = |target| site.on(target, "deploy", &["--build", "host"]);
    let a = site.deploy_first(&app("A"));
    site.build(&app("B"));
    for command in ["deploy", "setup"] {
        let run = |target| site.on(target, command, &[]);
        run("wrong-context").fails(&["elsewhere", "kubectl config get-contexts"]);
        run("no-namespace").fails(&["nowhere"]);
    }
    deploy("no-rights").fails(&["forbidden", "cargo xtask setup no-rights"]);
    site.on("no-rights", "setup", &[]).fails(&[
        "you may not: ",
        "create deployments.apps",
        "nothing was changed",
    ]);
    site.on("no-namespace", "setup", &[])
        .fails(&["kubectl --context admin create namespace nowhere"]);
    assert_eq!(site.served(), a.trim());

    for edit in [
        &["set", "env", "deployment/app", "BY_HAND=1"][..],
        &["annotate", "deployment/app", "note=harmless"],
    ] {
        site.kubectl(edit);
    }
    for result in [
        deploy("refused"),
        site.xtask("rollback", &[]),
        site.xtask("restart", &[]),
    ] {
        result.fails(&[
            "was edited by kubectl-set",
            "nothing was changed",
            "cargo xtask setup refused",
        ]);
    }
    site.xtask("setup", &[]).succeeds();
    let b = deploy("refused").succeeds();
    assert_eq!(site.served(), b.trim());
    let env = site.kubectl(&["get", "deployment/app", "--output=jsonpath={..env[*].name}"]);
    assert!(!env.contains("BY_HAND"), "{env}");
}

/// The manifest changes between two versions, and an autoscaler acts in the middle.
#[test]
fn a_former_manifests_lines_come_and_go_with_its_version() {
    let site = Namespace::set_up("scaled");
    let former = site.cluster.xtask_with_manifest(
        "former",
        &[
            ("  replicas: @REPLICAS@\n", ""),
            (
                "          env:\n",
                "          env:\n            - name: FORMER\n              value: \"1\"\n",
            ),
        ],
    );
    let deploy = || {
        by(
            &former,
            &site.command(&["deploy", "scaled", "--build", "host"]),
        )
    };
    site.build(&app("A"));
    let a = said(&mut deploy()).succeeds();
    site.wait_for_route();

    let scale = ["autoscale", "deployment", "app", "--max=4", "--min=2"];
    let scaled = site.kubectl(&[&scale[..], &["--cpu-percent=80"]].concat());
    assert!(scaled.contains("autoscaled"), "{scaled}");
    site.wait_for_pods(2);
    site.build(&faulty_app("bad", "never-listens"));
    let mut bad = Client::start(&site.workspace, &deploy());
    bad.wait_for("Replacing", 1);
    let more = "--patch={\"spec\": {\"minReplicas\": 3}}";
    site.kubectl(&["patch", "horizontalpodautoscaler/app", more]);
    bad.end().fails(&[&format!("{} still serves", a.trim())]);
    let replicas = || {
        site.kubectl(&[
            "get",
            "deployment/app",
            "--output=jsonpath={.spec.replicas}",
        ])
    };
    assert_eq!(replicas(), "3");
    assert_eq!(site.served(), a.trim());
    site.kubectl(&["delete", "horizontalpodautoscaler/app"]);

    let has_former = || {
        let env = ["get", "deployment/app", "--output=jsonpath={..env[*].name}"];
        site.kubectl(&env).contains("FORMER")
    };
    assert!(has_former());
    site.deploy(&app("B")).succeeds();
    assert!(!has_former());
    assert_eq!(replicas(), "2");
    site.xtask("restart", &[]).succeeds();
    assert_eq!(site.xtask("rollback", &[]).succeeds(), a);
    assert!(has_former());
    assert_eq!(replicas(), "2");
    site.deploy(&app("C")).succeeds();
    assert!(!has_former());
}

#[test]
fn logs_follow_a_container_that_starts_again() {
    let site = Namespace::set_up("logs");
    let Some([node, other]) = &site.cluster.nodes else {
        println!("left out: the nodes are not ours to break");
        return;
    };
    site.deploy_first(&app("A"));
    let mut logs = Client::start(
        &site.workspace,
        &site.command(&["logs", "logs", "--follow"]),
    );
    let starts = |it: &Client| it.programs().matches(" ready").count();
    logs.wait_until("both pods' first lines", |it| starts(it) == 2);
    let ids = site.kubectl(&["get", "pods", "--output=jsonpath={..containerID}"]);
    let id = ids
        .split(' ')
        .next()
        .unwrap()
        .trim_start_matches("containerd://");
    let kill = [
        "ctr",
        "--namespace=k8s.io",
        "tasks",
        "kill",
        "--signal=SIGKILL",
        id,
    ];
    let killed = [node, other].map(|it| it.exec(&kill).unwrap().status.success());
    assert!(killed.contains(&true), "{ids}");
    logs.wait_until("the first lines of the next run", |it| starts(it) == 3);
}

#[test]
fn of_two_people_one_is_told() {
    let site = Namespace::set_up("two");
    site.deploy_first(&app("A"));
    site.build(&app("B"));
    let mut first = begin_deploy(&site);
    first.wait_for("Pushing", 1);
    // Its binary is read by then. Whose push takes longer is left to chance.
    let c = site.deploy(&app("C"));
    let b = first.end();
    println!("{}", c.people);
    let waited = |it: &Said| it.people.contains("Waiting for the rollout by ");
    let (last, other) = match waited(&b) || c.code != 0 {
        true => (b, c),
        false => (c, b),
    };
    if waited(&last) {
        other.succeeds();
    } else {
        other.fails(&["has changed the Deployment meanwhile"]);
    }
    assert_eq!(site.served(), last.succeeds().trim());
    site.wait_for_pods(2);
}

#[test]
fn a_killed_client_leaves_what_serves() {
    let site = Namespace::set_up("killed");
    site.deploy_first(&app("0"));
    let load = Load::start(site.address(), 2, Connections::New);
    for (n, (stage, fault)) in [
        ("Building", "none"),
        ("Pushing", "none"),
        ("Replacing", "none"),
        ("Replacing", "never-listens"),
        ("Restoring", "exits"),
    ]
    .into_iter()
    .enumerate()
    {
        site.build(&faulty_app(&format!("{n}"), fault));
        let mut deploy = begin_deploy(&site);
        deploy.wait_for(stage, 1);
        deploy.kill();
        let next = site.deploy(&app(&format!("after {n}"))).succeeds();
        site.wait_for_pods(2);
        assert_eq!(site.served(), next.trim(), "{stage}");
    }
    // A restart is of what is live, whatever a killed client has left.
    let live = site.served();
    site.build(&faulty_app("left", "exits"));
    let mut deploy = begin_deploy(&site);
    deploy.wait_for("Replacing", 1);
    deploy.kill();
    site.xtask("restart", &[]).succeeds();
    site.wait_for_pods(2);
    assert_eq!(site.served(), live);
    let report = load.stop();
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    let history = site.xtask("history", &[]).succeeds();
    assert!(history.matches("rollback --to").count() >= 4, "{history}");
}

pub fn begin_deploy(site: &Namespace) -> Client {
    let command = site.command(&["deploy", site.name, "--build", "host"]);
    Client::start(&site.workspace, &command)
}
