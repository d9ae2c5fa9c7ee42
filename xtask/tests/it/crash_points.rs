//! An activation is killed after its 1st, 2nd, 3rd… external command, through the
//! whole script; after each, all that DESIGN promises holds, and the next one works.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::{
    app::{app, faulty_app},
    http,
    place::{Place, SCRIPT, Version, is_intact, wait_until},
};

const AT_ONCE: usize = 6;

struct Scenario {
    name: &'static str,
    /// Makes live what was live before, and returns what is to be activated.
    prepare: fn(&Place) -> Version,
    may_become_live: bool,
}

#[test]
fn first_deploy() {
    survives(&Scenario {
        name: "first-deploy",
        prepare: |place| place.upload(&app("A")),
        may_become_live: true,
    });
}

#[test]
fn deploy() {
    survives(&Scenario {
        name: "deploy",
        prepare: |place| {
            place.make_live(&app("A"));
            place.upload(&app("B"))
        },
        may_become_live: true,
    });
}

#[test]
fn failing_deploy() {
    survives(&Scenario {
        name: "failing-deploy",
        prepare: |place| {
            place.make_live(&app("A"));
            place.upload(&faulty_app("B", "exits"))
        },
        may_become_live: false,
    });
}

#[test]
fn rollback() {
    survives(&Scenario {
        name: "rollback",
        prepare: |place| {
            let a = place.make_live(&app("A"));
            place.make_live(&app("B"));
            a
        },
        may_become_live: true,
    });
}

fn survives(scenario: &Scenario) {
    let next = AtomicUsize::new(1);
    let survived = AtomicUsize::new(0);
    thread::scope(|threads| {
        for _ in 0..AT_ONCE {
            threads.spawn(|| {
                while survives_kill_after(scenario, next.fetch_add(1, Relaxed)) {
                    survived.fetch_add(1, Relaxed);
                }
            });
        }
    });
    let survived = survived.into_inner();
    println!(
        "{}: killed after each of {survived} external commands",
        scenario.name
    );
    assert!(
        survived > 20,
        "only {survived} points: were the commands seen at all?"
    );
}

/// False where the activation came to its end with fewer commands.
fn survives_kill_after(scenario: &Scenario, commands: usize) -> bool {
    let place = &Place::new(&format!("{}-{commands}", scenario.name));
    place.set("ready=5 settle=0.1 drain=2 keep=5 overlap=true");
    let version = (scenario.prepare)(place);
    let before = place.live();
    let records_before = place.history().len();
    if !perform_killed_after(place, &version, commands) {
        return false;
    }
    let context = || format!("{} killed after {commands} commands", scenario.name);

    // What `current` names is whole, and was ready here.
    let live = place.live();
    let became_live = live != before;
    if let Some(live) = &live {
        assert!(
            is_intact(&place.path("current").canonicalize().unwrap()),
            "{}",
            context()
        );
        assert!(
            !became_live || (*live == version.name && scenario.may_become_live),
            "{}",
            context()
        );
    }

    // Something valid serves.
    if before.is_some() {
        for _ in 0..5 {
            let answer = http::get(place.address, "/healthz")
                .unwrap_or_else(|e| panic!("{}: {e}", context()));
            assert_eq!(answer.status, 200, "{}", context());
        }
    }

    // The next activation works without help, and cleans up.
    place.install_script(SCRIPT);
    let c = place.make_live(&app("C"));
    assert_eq!(place.live().as_deref(), Some(&*c.name), "{}", context());
    wait_until(&format!("the rest to end: {}", context()), || {
        place.processes().len() == 1
    });
    wait_until(
        &format!("the last instance to be forgotten: {}", context()),
        || place.files("run").len() == 2,
    );
    assert_eq!(place.served().as_deref(), Some(&*c.name), "{}", context());
    assert_eq!(
        fs::read_to_string(place.path("lock")).unwrap(),
        "",
        "{}",
        context()
    );
    assert!(
        !place.path(".current.new").exists() && !place.path("versions/.new").exists(),
        "{}",
        context()
    );
    assert!(
        place
            .files("versions")
            .iter()
            .all(|it| is_intact(&place.path("versions").join(it))),
        "{}",
        context()
    );
    assert_eq!(place.status("running"), [&*c.name], "{}", context());

    // The killed one got at most one verdict, and the right one.
    let records = &place.history()[records_before..];
    assert!(
        records.len() <= 2 && records.last().unwrap().contains(&c.name),
        "{}: {records:?}",
        context()
    );
    if records.len() == 2 {
        let verdict = if became_live || live.as_ref() == Some(&version.name) {
            "\tlive\t"
        } else {
            "\tfailed\t"
        };
        assert!(
            records[0].contains(&version.name) && records[0].contains(verdict),
            "{}: {records:?}",
            context()
        );
    }
    true
}

/// Runs the activation with each external command behind a shim that counts, and
/// kills the script once the count is reached. False if it is not.
fn perform_killed_after(place: &Place, version: &Version, commands: usize) -> bool {
    let shims = place.path("shims");
    fs::create_dir(&shims).unwrap();
    let (count, pid) = (shims.join("count"), shims.join("pid"));
    let kill = format!(
        "n=$(/usr/bin/flock '{0}' /bin/sh -c 'echo >>\"$1\"; /usr/bin/wc -l <\"$1\"' sh '{0}')
         [ \"$n\" -lt {commands} ] || kill -KILL \"$(/bin/cat '{1}')\" 2>/dev/null",
        count.display(),
        pid.display()
    );
    for command in external_commands() {
        let real = format!("\"$(PATH=/usr/bin:/bin command -v {command})\" \"$@\"");
        let shim = match command {
            // These become what they start.
            "setsid" | "nohup" | "sh" => format!("#!/bin/sh\n{kill}\nexec {real}\n"),
            _ => format!("#!/bin/sh\n{real}\ncode=$?\n{kill}\nexit $code\n"),
        };
        fs::write(shims.join(command), shim).unwrap();
        fs::set_permissions(shims.join(command), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = "PATH=/usr/local/sbin:";
    assert!(SCRIPT.contains(path));
    place.install_script(&SCRIPT.replacen(path, &format!("PATH={}:", shims.display()), 1));

    let mut script = Command::new("sh");
    script
        .args(["-c", "echo $$ >\"$1\"; shift; exec \"$@\"", "sh"])
        .arg(&pid);
    script.arg(place.path("bin/activate")).args([
        "perform",
        &version.name,
        &version.sha256,
        "tester@test",
    ]);
    let output = script.output().unwrap();
    // A moment for what it left behind to be where it would be without anybody's help.
    thread::sleep(Duration::from_millis(20));
    output.status.code().is_none()
}

/// All that the script could execute: whatever of its words is a program here.
fn external_commands() -> Vec<&'static str> {
    let mut words: Vec<&str> = SCRIPT
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()))
        .filter(|word| fs::exists(format!("/usr/bin/{word}")).unwrap())
        .filter(|word| {
            ![
                "", "printf", "echo", "kill", "test", "true", "false", "read",
            ]
            .contains(word)
        })
        .collect();
    words.sort();
    words.dedup();
    words
}
