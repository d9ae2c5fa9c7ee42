//! Targets with several real servers: what a rollout leaves on each host when one of them
//! fails, and when its client goes away.

use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, sleep},
    time::{Duration, Instant},
};

use crate::{
    app::app,
    client::Client,
    configured::{by, xtask_with},
    http,
    lab::Server,
    place::{version_of, wait_until},
    site::Site,
    workspace::{Said, said},
};

const THREE: [&str; 3] = ["web1", "web2", "web3"];

/// Longer than a host waits for its client's commit.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(75);

/// Each server with systemd takes about 12 of the kernel's inotify instances.
const INOTIFY_INSTANCES_PER_SERVER: usize = 16;

/// An xtask with the targets `fleet` (web1, web2, web3), `reordered` (web3 is second) and
/// `many`, which goes in groups of four.
static XTASK: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = |name: &str, hosts: &[&str], batch: &str| {
        let hosts: Vec<String> = hosts.iter().map(|it| format!("\"deploy@{it}\"")).collect();
        format!(
            "Target {{ name: {name:?}, listen: Some(\"0.0.0.0:80\"), hosts: &[{}], batch: {batch}, ..DEFAULTS }},\n",
            hosts.join(", ")
        )
    };
    let targets = [
        target("fleet", &THREE, "None"),
        target("reordered", &["web1", "web3", "web2"], "None"),
        target("many", &many(), "Some(4)"),
    ];
    let local = "Target {\n        name: \"local\",";
    let canary = "CANARY_SECS: u32 = 30";
    xtask_with(
        "fleet",
        &[
            (local, &*format!("{}{local}", targets.concat())),
            (canary, "CANARY_SECS: u32 = 10"),
        ],
    )
});

/// Eight, or as many as the environment asks for and the kernel can run.
fn many() -> Vec<&'static str> {
    const NAMES: [&str; 20] = [
        "web1", "web2", "web3", "web4", "web5", "web6", "web7", "web8", "web9", "web10", "web11",
        "web12", "web13", "web14", "web15", "web16", "web17", "web18", "web19", "web20",
    ];
    let wanted = env::var("CUTOVER_TEST_HOSTS").map_or(8, |it| it.parse().unwrap());
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances").unwrap();
    let limit = limit.trim().parse::<usize>().unwrap() / INOTIFY_INSTANCES_PER_SERVER;
    let number = wanted.min(limit).min(NAMES.len());
    println!("{number} hosts of {wanted}; fs.inotify.max_user_instances allows {limit}");
    NAMES[..number].to_vec()
}

struct Fleet {
    site: Site,
    others: Vec<Server>,
    target: &'static str,
}

impl Fleet {
    fn three() -> Fleet {
        Fleet::set_up("fleet", &THREE)
    }

    /// The third one has a disk with few inodes, so that it can be filled at once.
    fn set_up(target: &'static str, names: &[&'static str]) -> Fleet {
        LazyLock::force(&XTASK);
        let site = Site::bare(names[0]);
        let others = names[1..].iter().map(|name| {
            let args: &[&str] = match *name {
                "web3" => &["--tmpfs=/srv:size=90m,exec,nr_inodes=4000"],
                _ => &[],
            };
            let server = Server::start_with(name, args).unwrap();
            let config = site.workspace.place.path("ssh_config");
            server.ssh_config(&config).unwrap();
            server
        });
        let others = others.collect();
        let fleet = Fleet {
            site,
            others,
            target,
        };
        fleet.xtask(&["setup", target, "--as", "root"]).succeeds();
        fleet.all("sed -i s/settle=1/settle=0.3/ /srv/app/settings");
        fleet
    }

    fn command(&self, args: &[&str]) -> Command {
        by(&XTASK, &self.site.command(args))
    }

    fn xtask(&self, args: &[&str]) -> Said {
        let said = said(&mut self.command(args));
        println!("{}", said.people);
        said
    }

    fn build(&self, label: &str) {
        fs::write(self.site.workspace.root.join("binary"), app(label)).unwrap();
    }

    fn deploy(&self, label: &str) -> Said {
        self.build(label);
        self.xtask(&["deploy", self.target, "--build", "host"])
    }

    /// A client that is followed while it runs.
    fn client(&self, args: &[&str]) -> Client {
        Client::start(&self.site.workspace, &self.command(args))
    }

    fn begin_deploy(&self, binary: &[u8], args: &[&str]) -> Client {
        fs::write(self.site.workspace.root.join("binary"), binary).unwrap();
        self.client(&[&["deploy", self.target, "--build", "host"], args].concat())
    }

    fn servers(&self) -> Vec<&Server> {
        [&self.site.server]
            .into_iter()
            .chain(&self.others)
            .collect()
    }

    /// On all that are on: what was ever sent or tried, and who serves it.
    fn state(&self) -> Vec<String> {
        self.all(
            "cd /srv/app; cat history; ls incoming versions log;
             systemctl show --property MainPID 'app@*'",
        )
    }

    fn all(&self, command: &str) -> Vec<String> {
        let servers = self.servers().into_iter();
        servers.map(|it| root(it, command)).collect()
    }

    fn served(&self) -> Vec<String> {
        let serve = |it: &&Server| http::served((it.ip(), 80).into());
        self.servers().iter().map(|it| serve(it).unwrap()).collect()
    }

    fn serves_only(&self, version: &str) {
        let version = version.trim();
        assert_eq!(self.served(), vec![version; self.servers().len()]);
    }
}

fn root(server: &Server, command: &str) -> String {
    let output = server.exec(&["sh", "-c", command]).unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// Has the server wait at a `sync` with certain arguments. `sync .` is the moment after
/// the commit.
const CAN_BE_HELD: &str = r#"cat >/usr/local/sbin/sync <<'END'
#!/bin/sh
if [ "$*" = "$(cat /root/hold 2>/dev/null)" ]; then
    mv /root/hold /root/held
    while [ -e /root/held ]; do sleep 0.05; done
fi
exec /usr/bin/sync "$@"
END
chmod +x /usr/local/sbin/sync"#;

fn hold_at_commit(server: &Server) {
    root(server, "echo . >/root/hold");
}

fn let_go(server: &Server) {
    root(server, "rm -f /root/hold /root/held");
}

/// Kills the instances of a version.
fn kill_instance(server: &Server, binary: &[u8]) {
    let hash = &version_of(binary).sha256[..12];
    root(
        server,
        &format!("pkill -KILL -f '^/srv/app/run/app-.*-{hash}'"),
    );
}

fn wait_until_held(client: &mut Client, server: &Server) {
    client.wait_until("a host to be held", |_| {
        root(server, "ls /root/held") == "/root/held\n"
    });
}

/// A failed rollout, as people and programs are told.
fn fails(said: &Said, people: &[&str], programs: &[&str]) {
    assert_eq!(said.code, 1, "{said:?}");
    for word in people {
        assert!(
            said.people.contains(word),
            "no {word:?} in: {}",
            said.people
        );
    }
    for word in programs {
        assert!(
            said.programs.contains(word),
            "no {word:?} in: {}",
            said.programs
        );
    }
}

fn in_json(host: &str, live: &str, outcome: &str) -> String {
    format!("\"host\": \"deploy@{host}\", \"live\": \"{live}\", \"outcome\": \"{outcome}\"")
}

#[test]
fn three_hosts_of_which_one_fails() {
    let fleet = Fleet::three();
    let a = fleet.deploy("A").succeeds();
    let a = a.trim();
    fleet.serves_only(a);
    let before = fleet.state();

    // The last one cannot be reached: none is touched.
    let ssh = |verb: &str| {
        let units = ["systemctl", verb, "ssh.service", "ssh.socket"];
        fleet.others[1].exec(&units).unwrap();
    };
    ssh("stop");
    let unreachable = fleet.deploy("B");
    unreachable.fails(&["cannot connect to deploy@web3"]);
    assert_eq!(fleet.state(), before);
    ssh("start");

    // The second one fails: none switches.
    let env = |text: &str| {
        let write = format!("printf '{text}' >/srv/app/env");
        fleet.others[0].exec(&["sh", "-c", &write]).unwrap();
    };
    env("DRAIN_SECONDS=soon\\n");
    let failed = fleet.deploy("B");
    failed.fails(&[
        "error: the rollout failed on deploy@web2; now:\n",
        &format!("  deploy@web1: {a} is live; the activation of 2"),
        &format!("  deploy@web2: {a} is live; 2"),
        "did not become live: it exited before it was ready\n",
        "DRAIN_SECONDS=soon",
    ]);
    assert_eq!(fleet.served(), [a, a, a]);
    let histories = |state: Vec<String>| state.concat().matches("\tlive\t").count();
    assert_eq!(histories(fleet.state()), 3);
    let status = fleet.xtask(&["status", "fleet", "--json"]).succeeds();
    println!("{status}");
    assert_eq!(
        status.matches("\"verdict\": \"failed\"").count(),
        3,
        "{status}"
    );

    // Once that is mended, the same again goes on.
    env("");
    let again = fleet.deploy("B");
    let b = again.succeeds();
    let b = b.trim();
    assert_eq!(fleet.served(), [b, b, b]);

    // A host that has it already is left alone.
    fleet.others[0]
        .exec(&["/srv/app/bin/activate", "stop"])
        .unwrap();
    let first = fleet.state().swap_remove(0);
    let again = fleet.deploy("B");
    again.succeeds();
    let hash = |version: &str| version.rsplit('-').next().unwrap().to_owned();
    assert!(fleet.served().iter().all(|it| hash(it) == hash(b)));
    assert_eq!(fleet.state()[0], first);

    // Where they differ, one back is not the same for all, but a version is.
    fs::write(fleet.site.workspace.root.join("binary"), app("C")).unwrap();
    let only = ["deploy", "deploy@web2:/srv/app", "--build", "host"];
    fleet.xtask(&only).succeeds();
    let before = fleet.state();
    let back = fleet.xtask(&["rollback", "fleet"]);
    back.fails(&[
        "would go back to different versions",
        "--to VERSION",
        "web2: ",
    ]);
    assert_eq!(fleet.state(), before);
    let back = fleet.xtask(&["rollback", "fleet", "--to", b]);
    assert_eq!(back.succeeds().trim(), b);
    assert_eq!(fleet.served(), [b, b, b]);
    let after = fleet.state();
    assert!(after[0] == before[0] && after[1] != before[1] && after[2] == before[2]);

    // What is logged is followed on all of them, and from version to version.
    let mut client = fleet.client(&["logs", "fleet", "-f"]);
    client.wait_until("the old logs of all", |it| {
        let logs = it.programs();
        ["web1", "web2", "web3"].iter().all(|it| logs.contains(it))
    });
    let d = fleet.deploy("D").succeeds();
    let ready = format!("ready: {}", d.trim());
    client.wait_until("the new logs of all", |it| {
        it.programs().matches(&ready).count() == 3
    });
    client.kill();

    // One that is away keeps nobody from stopping the others, and starting them.
    ssh("stop");
    let stopped = fleet.xtask(&["stop", "fleet"]);
    stopped.fails(&["Stopped on deploy@web1", "cannot connect to deploy@web3"]);
    let serves = |server: &Server| http::get((server.ip(), 80).into(), "/").is_ok();
    assert_eq!(
        fleet.servers().into_iter().map(serves).collect::<Vec<_>>(),
        [false, false, true]
    );
    let started = fleet.xtask(&["start", "fleet"]);
    started.fails(&[&format!("Started {} on deploy@web2", d.trim())]);
    assert_eq!(
        fleet.servers().into_iter().map(serves).collect::<Vec<_>>(),
        [true, true, true]
    );
}

#[test]
fn a_host_fails_at_its_turn() {
    let fleet = Fleet::three();
    let [web1, web2, web3] = fleet.servers()[..] else {
        panic!("there are three");
    };
    fleet.all(CAN_BE_HELD);
    // Begins a deploy whose first host is held right after its commit.
    let deploy_up_to_first = |binary: &[u8], args: &[&str]| {
        hold_at_commit(web1);
        let mut client = fleet.begin_deploy(binary, args);
        wait_until_held(&mut client, web1);
        client
    };

    // Nothing was live before, so the first host cannot go back.
    let first = app("first");
    let client = deploy_up_to_first(&first, &["--json"]);
    kill_instance(web2, &first);
    let_go(web1);
    let said = client.end();
    fails(
        &said,
        &[
            "error: the rollout failed on deploy@web2; now:",
            "it has switched, and cannot go back: nothing was live there before",
            "deploy@web2: nothing is live; 2",
            "it was ready, then it",
            "deploy@web3: nothing is live; the activation of 2",
            "hint: `cargo xtask deploy fleet` or `cargo xtask rollback fleet --to VERSION` makes the hosts equal",
        ],
        &[
            "\"outcome\": \"not reverted\", \"error\": \"nothing was live there before\"",
            "\"host\": \"deploy@web2\", \"live\": null, \"outcome\": \"failed\"",
            "\"host\": \"deploy@web3\", \"live\": null, \"outcome\": \"cancelled\", \"error\": null",
        ],
    );
    let a = fleet.deploy("A").succeeds();
    let a = a.trim();
    fleet.serves_only(a);
    let went_back = format!("deploy@web1: {a} is live; it had switched, and went back");
    let cancelled = format!("deploy@web3: {a} is live; the activation of 2");

    // The new version dies on the second host right after the commit.
    let dies = app("dies");
    hold_at_commit(web3);
    let mut client = fleet.begin_deploy(&dies, &["--json"]);
    wait_until_held(&mut client, web3);
    kill_instance(web2, &dies);
    let_go(web3);
    let problem = format!("deploy@web2: {a} is live; it had switched, and went back: it ");
    fails(
        &client.end(),
        &[
            "the rollout failed on deploy@web2, and the hosts that had switched went back",
            &went_back,
            &problem,
        ],
        &THREE
            .map(|host| in_json(host, a, "reverted"))
            .each_ref()
            .map(|it| it.as_str()),
    );
    fleet.serves_only(a);

    // With `--keep` they stay, and one rollback makes them equal.
    let keep = app("keep");
    let client = deploy_up_to_first(&keep, &["--keep"]);
    kill_instance(web2, &keep);
    let_go(web1);
    fails(
        &client.end(),
        &[
            "the hosts that had switched stay so",
            "is live; it has switched\n",
            &cancelled,
        ],
        &[],
    );
    let to_a = ["rollback", "fleet", "--to", a];
    let hash = &version_of(&keep).sha256[..12];
    assert!(fleet.served()[0].ends_with(hash));
    assert_eq!(fleet.xtask(&to_a).succeeds().trim(), a);
    fleet.serves_only(a);

    // The second host's disk is full.
    fleet.all("sed -i s/settle=0.3/settle=3/ /srv/app/settings");
    fs::write(fleet.site.workspace.root.join("binary"), app("full")).unwrap();
    let mut client = fleet.client(&["deploy", "reordered", "--build", "host"]);
    client.wait_for("Watching", 3);
    root(
        web3,
        "cd /srv && mkdir filler && cd filler && seq 9999 | xargs touch",
    );
    let full = format!("deploy@web3: {a} is live; 2");
    fails(
        &client.end(),
        &[
            "the rollout failed on deploy@web3,",
            &went_back,
            &full,
            "/srv/app/current could not be written",
        ],
        &[],
    );
    root(web3, "rm -r /srv/filler");
    fleet.all("sed -i s/settle=3/settle=0.3/ /srv/app/settings");
    fleet.serves_only(a);

    // The second host loses its power before it is told to commit.
    let mut client = deploy_up_to_first(&app("power"), &[]);
    web2.kill().unwrap();
    let_go(web1);
    client.wait_for("connection to deploy@web2 lost", 1);
    web2.boot().unwrap();
    let failed = format!("deploy@web2: {a} is live; 2");
    fails(
        &client.end(),
        &[&went_back, &failed, "did not become live"],
        &[],
    );
    fleet.serves_only(a);

    // The same right after its commit: it comes back with the new version.
    let committed = |cut: &dyn Fn(), mend: &dyn Fn()| {
        hold_at_commit(web2);
        let mut client = fleet.begin_deploy(&app(&format!("{:?}", Instant::now())), &[]);
        wait_until_held(&mut client, web2);
        cut();
        client.wait_for("connection to deploy@web2 lost", 1);
        mend();
        let_go(web2);
        client.end().succeeds()
    };
    let b = committed(&|| web2.kill().unwrap(), &|| web2.boot().unwrap());
    wait_until("web2 to serve", || {
        http::served((web2.ip(), 80).into()).is_some()
    });
    fleet.serves_only(&b);

    // The connection is lost for a while.
    let b = committed(&|| web2.disconnect().unwrap(), &|| web2.connect().unwrap());
    fleet.serves_only(&b);

    // The connection is lost, and nothing comes back. The host goes on by itself.
    hold_at_commit(web2);
    let lost = app("lost");
    let mut client = fleet.begin_deploy(&lost, &["--json"]);
    wait_until_held(&mut client, web2);
    web2.disconnect().unwrap();
    let_go(web2);
    let said = client.end();
    fails(
        &said,
        &[
            "the rollout failed on deploy@web2, and the hosts that had switched went back",
            "deploy@web2: cannot be reached; activation of 2",
            "connection lost; if the commit arrived, 2",
            "becomes live there; if not, the host cancels within a minute",
            "makes the hosts equal",
        ],
        &[
            "\"host\": \"deploy@web2\", \"live\": null, \"outcome\": \"unknown\", \"error\": \"connection lost; ",
            &in_json("web1", b.trim(), "reverted"),
        ],
    );
    web2.connect().unwrap();
    let hash = &version_of(&lost).sha256[..12];
    let served = fleet.served();
    assert!(served[0] == b.trim() && served[1].ends_with(hash) && served[2] == b.trim());
    fleet
        .xtask(&["rollback", "fleet", "--to", b.trim()])
        .succeeds();
    fleet.serves_only(&b);
}

/// Where the client is stopped: at this line of its output, or while this host is held
/// right after its commit.
enum Stage {
    Line(&'static str, usize),
    Commit(usize),
    Revert,
}

#[test]
fn the_client_is_stopped_at_each_stage() {
    let fleet = Fleet::three();
    fleet.all(CAN_BE_HELD);
    let a = fleet.deploy("A").succeeds();
    let stages = [
        Stage::Line("Connecting", 3),
        Stage::Line("Installing", 1),
        Stage::Line("Watching", 3),
        Stage::Commit(0),
        Stage::Commit(1),
        Stage::Commit(2),
        Stage::Revert,
    ];
    for (n, stage) in stages.iter().enumerate() {
        let binary = app(&format!("B {n}"));
        let said = stop_at(&fleet, stage, &binary, "-INT");
        let start = Instant::now();
        wait_until_over(&fleet);
        println!(
            "stage {n}: Ctrl-C, over {:?} after the client's end",
            start.elapsed()
        );
        let served = fleet.served();
        let hash = &version_of(&binary).sha256[..12];
        let switched = served.iter().filter(|it| it.ends_with(hash)).count();
        let expected = match stage {
            Stage::Line(..) => 0,
            Stage::Commit(host) => host + 1,
            Stage::Revert => 0,
        };
        assert_eq!(switched, expected, "{served:?}");
        match stage {
            Stage::Line("Connecting", _) => {}
            Stage::Commit(2) => assert_eq!(said.code, 0),
            Stage::Revert => fails(&said, &["interrupted", "stopped following"], &[]),
            _ => {
                let live = format!("deploy@web3: {} is live; ", a.trim());
                let interrupted = "error: interrupted, so no other host was switched";
                fails(&said, &[interrupted, &live], &[]);
                // On a slow machine its host is not followed yet.
                assert!(
                    said.people.contains("was cancelled")
                        || said.people.contains("cancels within a minute"),
                    "{said:?}"
                );
            }
        }
        if expected > 0 {
            assert_eq!(
                fleet
                    .xtask(&["rollback", "fleet", "--to", a.trim()])
                    .succeeds(),
                a
            );
        }
        fleet.serves_only(&a);
    }
    for (n, stage) in stages.iter().enumerate() {
        let binary = app(&format!("C {n}"));
        stop_at(&fleet, stage, &binary, "-KILL");
        let start = Instant::now();
        wait_until_over(&fleet);
        println!("stage {n}: client killed, over after {:?}", start.elapsed());
        let hash = &version_of(&binary).sha256[..12];
        for served in fleet.served() {
            assert!(served == a.trim() || served.ends_with(hash), "{served}");
        }
        let b = fleet.deploy(&format!("C {n}")).succeeds();
        assert!(fleet.served().iter().all(|it| it.ends_with(hash)), "{b}");
        fleet
            .xtask(&["rollback", "fleet", "--to", a.trim()])
            .succeeds();
        fleet.serves_only(&a);
    }
    assert!(!fleet.state().concat().contains(".answer"));
}

/// Stops a deploy of the binary there.
fn stop_at(fleet: &Fleet, stage: &Stage, binary: &[u8], signal: &str) -> Said {
    let servers = fleet.servers();
    let stop = |client: Client, held: Option<&Server>| {
        client.signal(signal);
        // The client asks again before the host goes on.
        sleep(Duration::from_millis(300));
        held.inspect(|it| let_go(it));
        client.end()
    };
    match stage {
        Stage::Line(line, times) => {
            fleet.all("sed -i s/settle=0.3/settle=2/ /srv/app/settings");
            let mut client = fleet.begin_deploy(binary, &[]);
            client.wait_for(line, *times);
            let said = stop(client, None);
            fleet.all("sed -i s/settle=2/settle=0.3/ /srv/app/settings");
            said
        }
        Stage::Commit(host) => {
            hold_at_commit(servers[*host]);
            let mut client = fleet.begin_deploy(binary, &[]);
            wait_until_held(&mut client, servers[*host]);
            stop(client, Some(servers[*host]))
        }
        Stage::Revert => {
            hold_at_commit(servers[0]);
            let mut client = fleet.begin_deploy(binary, &[]);
            wait_until_held(&mut client, servers[0]);
            kill_instance(servers[1], binary);
            root(servers[0], "echo . >/root/hold; rm /root/held");
            client.wait_for("Reverting", 1);
            wait_until_held(&mut client, servers[0]);
            stop(client, Some(servers[0]))
        }
    }
}

/// Within a minute after the client has gone, no host holds its lock.
fn wait_until_over(fleet: &Fleet) {
    let start = Instant::now();
    let free =
        "flock -n /srv/app/lock true && ! pgrep -f '[a]ctivate perform' >/dev/null && echo free";
    while !fleet.all(free).iter().all(|it| it == "free\n") {
        assert!(
            start.elapsed() < COMMIT_TIMEOUT,
            "{:?}",
            fleet.all("cat /srv/app/lock")
        );
        sleep(Duration::from_millis(200));
    }
}

#[test]
fn many_hosts_go_in_groups_behind_a_canary() {
    let hosts = many();
    let fleet = Fleet::set_up("many", &hosts);
    fleet.build("A");
    let start = Instant::now();
    let a = fleet.deploy("A").succeeds();
    println!(
        "figure: first deploy to {} hosts: {:?}",
        hosts.len(),
        start.elapsed()
    );
    fleet.serves_only(&a);

    // The canary fails, and no other host is touched.
    let bad = app("bad");
    let before = fleet.state();
    let mut client = fleet.begin_deploy(&bad, &["--json"]);
    client.wait_for("Watching deploy@web1 for 10 s before the other hosts", 1);
    kill_instance(&fleet.site.server, &bad);
    let said = client.end();
    let untouched = in_json("web2", a.trim(), "untouched");
    fails(
        &said,
        &[
            "the rollout failed on deploy@web1,",
            "its turn did not come",
        ],
        &[&untouched],
    );
    fleet.serves_only(&a);
    let versions = |state: &[String]| state.concat().matches("\tlive\t").count();
    assert_eq!(versions(&before[1..]), versions(&fleet.state()[1..]));

    // All go well, and what that costs here
    fleet.all("systemctl restart systemd-journald");
    let logins = || {
        fleet
            .all("journalctl | grep -c 'Accepted publickey' || :")
            .concat()
    };
    let before = logins();
    let start = Instant::now();
    let client = fleet.begin_deploy(&app("B"), &[]);
    let cost = cost_until_end(client);
    let b = cost.said.succeeds();
    fleet.serves_only(&b);
    let number = hosts.len();
    println!(
        "figure: deploy to {number} hosts in groups of 4: {:?} ({} ms a host, without 10 s for the canary), \
         {} processes, {} kB of memory ({} kB a host, client alone {} kB)",
        start.elapsed(),
        (start.elapsed().as_millis() - 10_000) / number as u128,
        cost.processes,
        cost.memory_kb,
        cost.memory_kb / number,
        cost.client_kb,
    );
    let increments = before
        .lines()
        .zip(logins().lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|(before, after)| after.parse::<usize>().unwrap() - before.parse::<usize>().unwrap())
        .collect::<Vec<_>>();
    assert_eq!(
        increments,
        vec![1; number],
        "a deploy logs in once on each host"
    );
    assert!(cost.processes <= 6 * number + 4, "{}", cost.processes);
    let start = Instant::now();
    assert_eq!(fleet.xtask(&["rollback", "many"]).succeeds(), a);
    println!("figure: rollback of {number} hosts: {:?}", start.elapsed());
}

/// The most that a client and its processes took at one time.
struct Cost {
    said: Said,
    processes: usize,
    memory_kb: usize,
    client_kb: usize,
}

fn cost_until_end(client: Client) -> Cost {
    let group = client.group();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let sampling = scope.spawn(|| {
            let mut most = (0, 0, 0);
            while !over.load(Relaxed) {
                let members: Vec<(u32, usize)> = members(group);
                let client = members
                    .iter()
                    .find(|(pid, _)| *pid == group)
                    .map_or(0, |it| it.1);
                most.0 = most.0.max(members.len());
                most.1 = most.1.max(members.iter().map(|it| it.1).sum());
                most.2 = most.2.max(client);
                sleep(Duration::from_millis(200));
            }
            most
        });
        let said = client.end();
        over.store(true, Relaxed);
        let (processes, memory_kb, client_kb) = sampling.join().unwrap();
        Cost {
            said,
            processes,
            memory_kb,
            client_kb,
        }
    })
}

/// The processes of a group, and the memory in kB that each has: its share of what it
/// shares with others.
fn members(group: u32) -> Vec<(u32, usize)> {
    let listed = Command::new("pgrep")
        .args(["--pgroup", &group.to_string()])
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let memory = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let pids = listed.lines().map(|it| it.parse().unwrap());
    pids.map(|pid| (pid, memory(pid).unwrap_or(0))).collect()
}
