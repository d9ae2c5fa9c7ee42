//! An activation is killed after its 1st, 2nd, 3rd… external command, through the whole
//! script. After each, with nobody giving a command, exactly the live version runs within
//! seconds, the verdict is recorded and told, and the next activation works.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::{
    app::{app, faulty_app},
    place::{Place, SCRIPT, Version, is_intact, wait_until},
};

const AT_ONCE: usize = 6;

/// From the kill, with the drain of 2 s in it.
const REST_TIMEOUT: Duration = Duration::from_secs(5);

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
        survived > 15,
        "only {survived} points: were the commands seen at all?"
    );
}

/// False if the activation reached its end with fewer commands.
fn survives_kill_after(scenario: &Scenario, commands: usize) -> bool {
    let place = &Place::new(&format!("{}-{commands}", scenario.name));
    place.set("ready=5 settle=0.1 drain=2 keep=5 overlap=true");
    let version = (scenario.prepare)(place);
    let before = place.live();
    let records_before = place.history().len();
    let Some(said) = activate_killed_after(place, &version, commands) else {
        return false;
    };
    let killed = Instant::now();
    let context = format!("{} killed after {commands} commands", scenario.name);

    // Its client was told a verdict.
    let verdict = said.lines().find_map(|it| it.strip_prefix("verdict "));
    let verdict = verdict.unwrap_or_else(|| panic!("{context}: no verdict: {said}"));
    assert!(verdict != "live" || scenario.may_become_live, "{context}");
    let live = match verdict {
        "live" => Some(version.name.clone()),
        _ => before,
    };

    // Nobody gives a command, and exactly what is live runs.
    wait_until(&format!("it to be at rest: {context}"), || {
        is_at_rest(place, live.as_ref())
    });
    assert!(killed.elapsed() < REST_TIMEOUT, "{context}: {killed:?}");
    assert_eq!(place.live(), live, "{context}");
    assert_eq!(place.served(), live, "{context}");
    let records = &place.history()[records_before..];
    let recorded = format!("\t{}\t{}", verdict.split(' ').next().unwrap(), version.name);
    assert!(
        records.len() == 1 && records[0].contains(&recorded),
        "{context}: {verdict}, {records:?}"
    );
    assert!(
        !place.path(".current.new").exists() && !place.path("versions/.new").exists(),
        "{context}"
    );
    let versions = place.files("versions");
    let is_intact = |it: &String| is_intact(&place.path("versions").join(it));
    assert!(versions.iter().all(is_intact), "{context}");

    // The next activation works.
    place.install_script(SCRIPT);
    let c = place.make_live(&app("C"));
    assert_eq!(place.live().as_deref(), Some(&*c.name), "{context}");
    true
}

/// The lock is free and names no attempt, and only the live version runs.
fn is_at_rest(place: &Place, live: Option<&String>) -> bool {
    let processes = place.processes();
    let lock = fs::File::open(place.path("lock")).unwrap();
    lock.try_lock().is_ok()
        && fs::read_to_string(place.path("lock")).unwrap().is_empty()
        && processes.len() == usize::from(live.is_some())
        && (processes.iter()).all(|(_, it)| it.starts_with(live.map_or("", |it| it)))
        && place.files("run").len() == 2 * processes.len()
}

/// Runs the activation with each external command behind a shim that counts, and kills the
/// worker once the count is reached. Returns what its client was told, if it was killed.
fn activate_killed_after(place: &Place, version: &Version, commands: usize) -> Option<String> {
    let shims = place.path("shims");
    fs::create_dir(&shims).unwrap();
    let [count, killed] = ["count", "killed"].map(|it| shims.join(it).display().to_string());
    // Only what the worker itself runs is counted.
    let kill = format!(
        "case $(/usr/bin/tr '\\0' ' ' </proc/$PPID/cmdline) in
            *'/bin/activate perform '*) ;;
            *) exit $code ;;
        esac
        n=$(/usr/bin/flock '{count}' /bin/sh -c 'echo >>\"$1\"; /usr/bin/wc -l <\"$1\"' sh '{count}')
        if [ \"$n\" = {commands} ]; then
            log=$(/bin/ls -t '{log}'/2* | /usr/bin/head -n 1)
            echo >'{killed}'
            read -r _ worker <\"$log\" && kill -KILL \"$worker\"
        fi",
        log = place.path("log").display(),
    );
    for command in external_commands() {
        let real = format!("\"$(PATH=/usr/bin:/bin command -v {command})\" \"$@\"");
        let shim = match command {
            // These become what they start.
            "setsid" | "nohup" | "sh" => format!("#!/bin/sh\nexec {real}\n"),
            _ => format!("#!/bin/sh\n{real}\ncode=$?\n{kill}\nexit $code\n"),
        };
        fs::write(shims.join(command), shim).unwrap();
        fs::set_permissions(shims.join(command), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = "PATH=/usr/local/sbin:";
    assert!(SCRIPT.contains(path));
    place.install_script(&SCRIPT.replacen(path, &format!("PATH={}:", shims.display()), 1));
    let said = place.activate(version);
    fs::exists(killed).unwrap().then_some(said)
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
