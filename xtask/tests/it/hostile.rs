//! Input that means harm, or is only odd.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use crate::{
    app::app,
    place::{Place, output, wait_until},
    workspace::{Workspace, said},
};

const VERSION: &str = "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c";

#[test]
fn names_that_are_no_versions() {
    let place = Place::new("names");
    let a = place.make_live(&app("A"));
    let before = (place.history(), place.files("versions"), place.files("log"));
    let newline = format!("{VERSION}\n{VERSION}");
    let names = [
        "",
        "-",
        "-n",
        "--help",
        ".",
        "..",
        "/",
        "../../etc/passwd",
        "a b",
        "$(touch pwned)",
        "`touch pwned`",
        ";touch pwned",
        "*",
        "\n",
        &newline,
        &format!("{VERSION}\n"),
        &format!(" {VERSION}"),
        &format!("{VERSION} "),
        &format!("{VERSION}/../x"),
        &format!("/{VERSION}"),
        &format!("-{VERSION}"),
        &VERSION.to_uppercase(),
        &format!("{VERSION}$(id)"),
        "20261122T183012Z-1a2b3c4d5e6f",
        "ü0261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
        "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c-dirty",
        "20261122T183012Z-1a2b3c4d5e6f-clean-9f86d081884c",
        // No time is like these. The script finds instances by names that begin with 2.
        "19991122T183012Z-1a2b3c4d5e6f-9f86d081884c",
        "20263122T183012Z-1a2b3c4d5e6f-9f86d081884c",
        "20261122T333012Z-1a2b3c4d5e6f-9f86d081884c",
    ];
    for name in names {
        let said = output(place.script(&["activate", name, &a.sha256, "tester@test"]));
        assert!(said.starts_with("not a version: '"), "{name:?}: {said}");
    }
    for sha256 in [
        "",
        "-",
        &a.sha256[1..],
        &format!("{}0", a.sha256),
        &a.sha256.to_uppercase(),
        "$(id)",
        &"\n".repeat(64),
    ] {
        let said = output(place.script(&["activate", &a.name, sha256, "tester@test"]));
        assert!(said.starts_with("not a sha256: '"), "{sha256:?}: {said}");
    }
    for by in ["", "a b", "a\tb", "a\nb", "$(id)", "ü", &"x".repeat(101)] {
        let said = output(place.script(&["activate", &a.name, &a.sha256, by]));
        assert!(said.starts_with("not a user@host: '"), "{by:?}: {said}");
    }
    for (args, answer) in [
        (&["follow", "../history"][..], "not an activation"),
        (&["follow", ""], "not an activation"),
        (&["follow", "20261122T183012Z-1"], "no such activation"),
        (&["logs", "-1"], "not a number"),
        (&["logs", "1;id"], "not a number"),
        (&["logs", "5", "--all"], "usage"),
        (&["activate"], "usage"),
        (&["start", "x"], "usage"),
        (&["rm", "-rf"], "usage"),
        (&[], "usage"),
    ] {
        let said = output(place.script(args));
        assert!(said.contains(answer), "{args:?}: {said}");
    }
    assert_eq!(
        (place.history(), place.files("versions"), place.files("log")),
        before
    );
    assert!(!fs::exists("pwned").unwrap() && !place.path("pwned").exists());
    assert_eq!(place.served(), Some(a.name));
}

#[test]
fn a_directory_with_spaces_and_quotes() {
    let workspace = Workspace::new("it's \"a\" $(touch pwned) dir; é");
    let a = workspace.deploy(&app("A")).succeeds();
    let b = workspace.deploy(&app("B")).succeeds();
    assert_eq!(workspace.xtask("rollback", &[]).succeeds(), a);
    assert_ne!(a, b);
    wait_until("A to serve alone", || {
        workspace.place.processes().len() == 1
    });
    assert_eq!(workspace.place.served().as_deref(), Some(a.trim()));
    assert!(workspace.xtask("status", &[]).succeeds().contains(a.trim()));
    workspace.xtask("stop", &[]).succeeds();
    workspace.place.wait_for_processes(0);
}

/// Values that a shell or systemd could read differently from what was meant.
pub const VALUES: &[(&str, &str)] = &[
    ("PLAIN", "1"),
    ("EMPTY", ""),
    ("SPACES", "  My bin  "),
    ("QUOTES", r#"a "b" 'c'"#),
    (
        "SHELL",
        "$(touch pwned) `touch pwned` $HOME ${HOME} \\$HOME; touch pwned",
    ),
    ("SIGNS", "# no comment = 1 \\ \\n \\\\ % %i !"),
    ("LINES", "one\ntwo\n\nfour=4\n"),
    ("UTF8", "grüße 日本"),
];

#[test]
fn an_environment_is_read_as_it_was_set() {
    let place = Place::new("env");
    for (name, value) in VALUES {
        let mut set = place.script(&["env-set", name]);
        let mut set = set.stdin(Stdio::piped()).spawn().unwrap();
        let text = format!("{value}\n");
        set.stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        assert!(set.wait().unwrap().success(), "{name}");
    }
    let names: Vec<&str> = VALUES.iter().map(|(name, _)| *name).collect();
    assert_eq!(output(place.script(&["env"])), names.join("\n") + "\n");
    assert_eq!(output(place.script(&["env-unset", "EMPTY"])), "");
    assert!(output(place.script(&["env-unset", "EMPTY"])).contains("is not set"));
    for name in ["", "1A", "A B", "A=B", "ä", "A\nB"] {
        assert!(
            output(place.script(&["env-set", name])).contains("not a name"),
            "{name}"
        );
    }
    place.make_live(&app("A"));
    let (pid, _) = place.processes()[0];
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    let variables: Vec<&str> = environment.split('\0').collect();
    for (name, value) in VALUES {
        let set = variables.contains(&&*format!("{name}={value}"));
        assert_eq!(set, *name != "EMPTY", "{name}: {variables:?}");
    }
    let state = format!("STATE_DIRECTORY={}", place.path("state").display());
    assert!(variables.contains(&&*state), "{variables:?}");
    let mode = |file| fs::metadata(place.path(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("env"), mode("state")), (0o600, 0o700));
}

/// What both managers would not read alike is refused, and nothing in it is carried out.
#[test]
fn another_form_of_environment_is_refused() {
    let place = Place::new("env-form");
    for line in [
        "A=$(touch pwned)",
        "A=\"$(touch pwned)\"",
        "A=\"`touch pwned`\"",
        "A=1; touch pwned",
        "touch pwned",
        "A=two words",
        "A='single'",
        "A=\"no end",
        "export A=1",
        "A=\"1\" B=\"2\"",
        "# goes on \\",
    ] {
        fs::write(place.path("env"), format!("B=1\n{line}\n")).unwrap();
        let said = place.activate(&place.upload(&app("A")));
        assert!(said.contains("verdict failed"), "{line}: {said}");
        assert!(said.contains("neither NAME=plain nor"), "{line}: {said}");
        assert!(!place.path("pwned").exists() && !fs::exists("pwned").unwrap());
        for args in [["env-set", "C"], ["env-unset", "B"]] {
            let said = output(place.script(&args));
            assert!(said.contains("nothing was changed"), "{line}: {said}");
        }
        let kept = fs::read_to_string(place.path("env")).unwrap();
        assert_eq!(kept, format!("B=1\n{line}\n"));
    }
}

/// A host that never ends to answer, in each of three ways, costs bounded time and memory, and
/// its control characters reach no terminal.
#[test]
fn an_endless_answer_ends() {
    let workspace = Workspace::new("endless");
    fs::write(workspace.root.join("binary"), app("A")).unwrap();
    let shims = workspace.place.path("shims");
    fs::create_dir(&shims).unwrap();
    let ssh = "#!/bin/sh
        case \" $* \" in *' -M '*)
            while [ \"$1\" != -S ]; do shift; done
            true >\"$2\"
            exec sleep 1000
        esac
        escapes=$(printf '\\033]52;c;cHduZWQ=\\007\\033[2J')
        case $ATTACK in
            line) exec awk -v text=\"$escapes\" 'BEGIN { while (1) printf \"%s\", text }' ;;
            lines) exec yes \"$escapes\" ;;
            errors) exec yes \"$escapes\" >&2 ;;
        esac";
    fs::write(shims.join("ssh"), ssh).unwrap();
    fs::set_permissions(shims.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", shims.display(), std::env::var("PATH").unwrap());
    let mut tried = 0;
    for attack in ["line", "lines", "errors"] {
        for command in [
            &["deploy", "--build", "host"][..],
            &["rollback"],
            &["status"],
            &["history"],
            &["logs"],
            &["start"],
            &["stop"],
            &["restart"],
            &["env"],
            &["setup", "--listen", "0.0.0.0:80"],
        ] {
            let xtask = workspace.command(&[]);
            let mut limited = Command::new("sh");
            limited.args(["-c", "ulimit -v 300000; exec timeout 30 \"$@\"", "sh"]);
            limited.arg(xtask.get_program()).arg(command[0]);
            limited.arg("deploy@endless:/srv/app").args(&command[1..]);
            limited.current_dir(&workspace.root).env("PATH", &path);
            for (name, value) in xtask.get_envs() {
                limited.env(name, value.unwrap());
            }
            let said = said(limited.env("ATTACK", attack));
            let context = format!("{attack} {command:?}: {} {}", said.code, said.people);
            assert_eq!(said.code, 1, "{context}");
            let is_bounded = said
                .people
                .contains("the host sends more output than expected");
            assert!(is_bounded || attack == "errors", "{context}");
            let control = |c: char| c.is_control() && c != '\n' && c != '\t';
            assert!(!said.people.contains(control), "{context}");
            assert!(!said.programs.contains(control), "{context}");
            tried += 1;
        }
    }
    println!("{tried} endless answers");
}

/// The pid of an instance may be another process's by now, as after a reboot.
#[test]
fn a_pid_that_is_anothers_now_is_left_alone() {
    let place = Place::new("pid");
    let a = place.make_live(&app("A"));
    let (pid, instance) = place.processes()[0].clone();
    let kill = |pid: u32| {
        Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status()
    };
    kill(pid).unwrap();
    place.wait_for_processes(0);
    let mut others = ["sleep 99", "exec -a /run/app-x sleep 99"].map(|it| {
        let mut other = Command::new("bash");
        other.args(["-c", it]).spawn().unwrap()
    });
    for other in &others {
        fs::write(
            place.path(&format!("run/{instance}.pid")),
            format!("{}\n", other.id()),
        )
        .unwrap();
        assert_eq!(place.status("running"), [""; 0]);
        assert_eq!(place.status("healthy"), [""; 0]);
        for request in ["stop", "start", "stop"] {
            let said = output(place.script(&[request]));
            assert!(said.contains("\nverdict done\n"), "{said}");
        }
    }
    // Its activation's pid, too.
    let log = place.path("log").join(
        place
            .files("log")
            .iter()
            .find(|it| it.starts_with("20"))
            .unwrap(),
    );
    let text = fs::read_to_string(&log).unwrap();
    let (_, rest) = text.split_once('\n').unwrap();
    let rest = rest.replace("verdict live\n", "");
    fs::write(&log, format!("worker {}\n{rest}", others[0].id())).unwrap();
    let name = log.file_name().unwrap().to_str().unwrap();
    let said = output(place.script(&["follow", name]));
    assert!(!said.contains("verdict"), "{said}");
    for other in &mut others {
        assert!(other.try_wait().unwrap().is_none(), "it was killed");
        other.kill().unwrap();
        other.wait().unwrap();
    }
    place.make_live_again(&a);
}

#[test]
fn targets_that_are_none() {
    let workspace = Workspace::new("targets");
    for (target, words) in [
        ("nowhere", "no target `nowhere`"),
        ("", "no target ``"),
        ("../x", "no target `../x`"),
        ("/tmp/a\nb", "control character"),
    ] {
        said(&mut workspace.command(&["status", target])).ends_as_wrong_usage(words);
    }
    for listen in [
        "3000",
        "localhost",
        "127.0.0.1",
        "127.0.0.1:99999",
        "1.2.3.4:80'; id",
        "",
    ] {
        workspace
            .xtask("setup", &["--listen", listen])
            .ends_as_wrong_usage("is not IP:PORT");
    }
    assert_eq!(
        said(&mut workspace.command(&["status", "--no-such-flag"])).code,
        2
    );
    assert_eq!(said(&mut workspace.command(&[])).code, 2);
    assert_eq!(said(&mut workspace.command(&["status", "-x"])).code, 2);
}
