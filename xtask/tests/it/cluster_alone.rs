//! Tests that have the cluster alone, because they break a node or measure. Tests begin in the
//! order of their names, so these come after those that share the cluster.

use std::{
    sync::atomic::Ordering::Relaxed,
    thread::{self, sleep},
    time::{Duration, Instant},
};

use crate::{
    app::app,
    cluster::begin_deploy,
    http,
    kit::cluster::{Namespace, PUSHED_BYTES, wait_patiently},
    load::{Connections, Load},
};

/// A stopping pod lingers for those that still send clients to it.
#[test]
fn a_node_that_hears_late_sends_nobody_into_the_void() {
    let site = Namespace::alone("late").prepared();
    let Some([control, _]) = &site.cluster.nodes else {
        println!("left out: the nodes are not ours to break");
        return;
    };
    site.deploy_first(&app("A"));
    let freeze = "for _ in 1 2 3 4; do
        systemctl kill --signal=STOP kube-proxy; sleep 2.5
        systemctl kill --signal=CONT kube-proxy; sleep 2.5; done";
    let load = Load::start(site.address(), 4, Connections::New);
    thread::scope(|scope| {
        scope.spawn(|| control.exec(&["sh", "-c", freeze]).unwrap());
        site.deploy(&app("B")).succeeds();
    });
    let report = load.stop();
    println!(
        "figure: a node that hears late: {} lost of {}",
        report.lost.len(),
        report.answered.len()
    );
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    assert_eq!(report.by_version.len(), 2, "{:?}", report.by_version);
}

/// Each of these breaks the cluster, so they are one test that has it alone.
#[test]
fn what_a_cluster_survives() {
    let site = Namespace::alone("lost").prepared();
    let a = site.deploy_first(&app("A"));
    let Some([control, other]) = &site.cluster.nodes else {
        println!("left out: the nodes are not ours to break");
        return;
    };
    let still = format!("{} still serves", a.trim());
    let address = site.address();
    let answers = || (0..20).all(|_| http::get(address, "/version").is_ok());
    let root = |command: &str| {
        let output = control.exec(&["sh", "-c", command]).unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    };

    println!("the nodes cannot pull");
    let rule = "INPUT --protocol tcp --dport 5000 --jump REJECT --source";
    let from = [control.ip(), other.ip()]
        .map(|ip| ip.to_string())
        .join(",");
    root(&format!("iptables --insert {rule} {from}"));
    site.deploy(&app("B"))
        .fails(&["its image cannot be pulled: ", &still]);
    root(&format!("iptables --delete {rule} {}", control.ip()));
    root(&format!("iptables --delete {rule} {}", other.ip()));

    println!("the registry is away");
    root("systemctl stop docker-registry");
    site.deploy(&app("C"))
        .fails(&["cannot push to ", "nothing was changed"]);
    root("systemctl start docker-registry");

    println!("no room");
    site.kubectl(&["cordon", "node1", "node2"]);
    site.deploy_impatiently(&app("D"))
        .fails(&["no room for a pod: ", "unschedulable", &still]);
    site.kubectl(&["uncordon", "node1", "node2"]);
    assert_eq!(site.served(), a.trim());

    println!("the API server is away for ten seconds");
    site.build(&app("E"));
    let load = Load::start(address, 2, Connections::New);
    let mut deploy = begin_deploy(&site);
    deploy.wait_for("Replacing", 1);
    root("systemctl stop --no-block kube-apiserver; systemctl kill --signal=KILL kube-apiserver");
    sleep(Duration::from_secs(10));
    let report = load.stop();
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    // A node may hear late that the server is back. Until then it may send clients to pods
    // that are gone.
    let load = Load::start(address, 2, Connections::New);
    root("systemctl start kube-apiserver");
    let deploy = deploy.end();
    let told = deploy.people.contains("no answer from deployer/lost");
    assert!(deploy.code == 0 && told, "{deploy:?}");
    site.wait_for_pods(2);
    wait_patiently("the first node to know the pods", answers);
    let e = site.served();
    let report = load.stop();
    println!(
        "figure: an API server was away: {} lost of {} after its return",
        report.lost.len(),
        report.answered.len()
    );

    println!("a node is drained");
    let load = Load::start(address, 2, Connections::New);
    let drained = site.kubectl(&[
        "drain",
        "node2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
    ]);
    assert!(drained.contains("drained"), "{drained}");
    site.wait_for_pods(2);
    let report = load.stop();
    assert!(report.lost.is_empty(), "{:?}", report.lost);
    assert_eq!(site.served(), e);
    site.kubectl(&["uncordon", "node2"]);
    let e = site.deploy(&app("spread")).succeeds().trim().to_owned();
    site.wait_for_pods(2);
    let nodes = site.kubectl(&["get", "pods", "--output=jsonpath={..nodeName}"]);
    assert!(
        nodes.contains("node1") && nodes.contains("node2"),
        "{nodes}"
    );

    println!("a node loses its power");
    let load = Load::start(address, 2, Connections::New);
    let start = Instant::now();
    other.kill().unwrap();
    wait_patiently("the other node to serve alone", answers);
    println!(
        "figure: a node lost its power: served alone after {:?}",
        start.elapsed()
    );
    let report = load.stop();
    println!(
        "figure: a node lost its power: {} lost of {}",
        report.lost.len(),
        report.answered.len()
    );
    let f = site.deploy(&app("F")).succeeds();
    assert_eq!(site.served(), f.trim());
    other.boot().unwrap();
    wait_patiently("the node to be back", || {
        !site.cluster.kubectl(&["get", "nodes"]).contains("NotReady")
    });
    site.wait_for_pods(2);
    assert_eq!(site.xtask("rollback", &[]).succeeds().trim(), e);
}

#[test]
fn times_beside_kubectl_by_hand() {
    let site = Namespace::alone("measured").prepared();
    site.deploy_first(&app("A"));
    let image = "--output=jsonpath={..containers[0].image}";
    let a = site.kubectl(&["get", "deployment/app", image]);
    site.wait_for_pods(2);

    // Closed connections are counted.
    let before = settled_bytes();
    let deploy = timed(|| site.deploy(&app("B")).succeeds());
    println!(
        "figure: a one-line change: {} bytes pushed",
        settled_bytes() - before
    );
    site.wait_for_pods(2);
    let rollback = timed(|| site.xtask("rollback", &[]).succeeds());
    site.wait_for_pods(2);
    let again = timed(|| site.deploy(&app("A")).succeeds());
    println!("figure: deploy {deploy:?}, rollback {rollback:?}, nothing new {again:?}");

    let status = ["rollout", "status", "deployment/app"];
    let manifest = |image: &str| {
        let patch = format!(
            r#"{{"spec": {{"template": {{"spec": {{"containers": [{{"name": "app", "image": "{image}"}}]}}}}}}}}"#
        );
        site.kubectl(&["patch", "deployment/app", "--patch", &patch]);
        site.kubectl(&status);
    };
    let b = site.kubectl(&[
        "get",
        "replicasets",
        "--output=jsonpath={..containers[0].image}",
    ]);
    let b = b.split(' ').find(|it| *it != a).unwrap();
    let by_hand = timed(|| manifest(b));
    site.wait_for_pods(2);
    let undo = timed(|| {
        site.kubectl(&["rollout", "undo", "deployment/app"]);
        site.kubectl(&status);
    });
    println!(
        "figure: by kubectl alone, the image pushed before: change {by_hand:?}, undo {undo:?}"
    );
}

fn timed<T>(job: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    job();
    start.elapsed()
}

/// The number does not change while no connection is open.
fn settled_bytes() -> u64 {
    sleep(Duration::from_secs(2));
    PUSHED_BYTES.load(Relaxed)
}
