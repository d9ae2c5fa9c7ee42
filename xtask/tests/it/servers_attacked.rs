//! What somebody who holds the deploy key, or the app itself, cannot do; what a hostile
//! configuration, host or moment does not achieve.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    app::app,
    builder::{by, xtask_with},
    http,
    lab::Server,
    place::wait_until,
    site::Site,
    workspace::{Said, Workspace, said},
};

const VERSION: &str = "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c";

/// As the deploy user or the app's, ATTEMPT ends with an error.
const FORBIDDEN_TO_BOTH: &[&str] = &[
    // To write to what is root's
    "echo x >/srv/app/versions/app-x",
    "echo x >>$(readlink -f /srv/app/current)",
    "rm $(readlink -f /srv/app/current) </dev/null",
    "echo x >>/srv/app/history",
    "echo x >/srv/app/settings",
    "echo x >>/srv/app/bin/activate",
    "echo x >/srv/app/bin/x",
    "echo x >>/srv/app/env",
    "echo x >>/srv/app/lock",
    "echo x >>$(ls -d /srv/app/log/* | head -n 1)",
    "ln -sfn /bin/sh /srv/app/current",
    "ln -sfn /bin/sh /srv/app/run/app-x",
    "mv /srv/app/versions /srv/app/x",
    "mv /srv/app/incoming /srv/app/x",
    "mv /srv/app /srv/x",
    "chmod 777 /srv/app/versions",
    "echo x >>/etc/systemd/system/app@.service",
    "echo 'ALL ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/x",
    // To read
    "cat /srv/app/env",
    "cat /etc/shadow",
    "cat /etc/sudoers.d/app",
    "cat /proc/1/environ",
    // To hold the lock, for which reading would do
    "flock --nonblock /srv/app/lock true",
    // To start or stop something
    "systemctl start systemd-timesyncd",
    "systemctl stop app.socket",
    "systemctl stop $(systemctl list-units --plain --no-legend 'app@*' | cut -d ' ' -f 1)",
    "systemctl daemon-reload",
    "systemd-run id",
    "kill 1",
    "kill $(systemctl show --property MainPID --value systemd-logind)",
    // To be somebody else
    "sudo -n sh",
    "sudo -n -s",
    "sudo -n -i",
    "sudo -n su",
    "sudo -n -u admin id",
    "sudo -n systemctl start ssh",
    "sudo -n systemd-run id",
    "sudo -n sh /srv/app/bin/activate status",
    "sudo -n env X=1 /srv/app/bin/activate status",
    "sudo -n -u admin /srv/app/bin/activate status",
    "sudo -n -g shadow /srv/app/bin/activate status",
    "sudo -n -R /tmp /srv/app/bin/activate status",
    "sudo -n -D /tmp /srv/app/bin/activate status",
    "sudo -n -C 9 /srv/app/bin/activate status",
    "sudo -n -e /srv/app/settings",
    "su admin -c id </dev/null",
    "setpriv --reuid 0 id",
];

const FORBIDDEN_TO_THE_DEPLOYER: &[&str] = &[
    "sudo -n -u app id",
    "sudo -n -u app /srv/app/bin/activate status",
    "su app -s /bin/sh -c id </dev/null",
    "kill $(pgrep -u app)",
    // The environment of the one command that is allowed
    "sudo -n SUDO_UID=0 /srv/app/bin/activate status",
    "sudo -n PATH=/tmp/attack /srv/app/bin/activate status",
    "sudo -n ENV=/tmp/attack/settings /srv/app/bin/activate status",
    "sudo -n LD_PRELOAD=/tmp/attack/so /srv/app/bin/activate status",
    "sudo -n -E /srv/app/bin/activate status",
    "sudo -n --preserve-env=PATH /srv/app/bin/activate status",
    // Its arguments
    "sudo -n /srv/app/bin/activate",
    "sudo -n /srv/app/bin/activate ''",
    "sudo -n /srv/app/bin/activate --help",
    "sudo -n /srv/app/bin/activate 'status\n'",
    "sudo -n /srv/app/bin/activate status ''",
    "sudo -n /srv/app/bin/activate 'status; touch /pwned'",
    "sudo -n /srv/app/bin/activate '$(touch /pwned)'",
    "sudo -n /srv/app/bin/activate systemd_stop x",
    "sudo -n /srv/app/bin/activate stop_all_but ''",
    "sudo -n /srv/app/bin/activate record a live b c d",
    "sudo -n /srv/app/bin/activate activate",
    "sudo -n /srv/app/bin/activate activate '' $SHA x@y",
    "sudo -n /srv/app/bin/activate activate $VERSION '' x@y",
    "sudo -n /srv/app/bin/activate activate $VERSION $SHA ''",
    "sudo -n /srv/app/bin/activate activate --help $SHA x@y",
    "sudo -n /srv/app/bin/activate activate -$VERSION $SHA x@y",
    "sudo -n /srv/app/bin/activate activate \"$VERSION \" $SHA x@y",
    "sudo -n /srv/app/bin/activate activate \"$VERSION\n\" $SHA x@y",
    "sudo -n /srv/app/bin/activate activate \"$VERSION\n$VERSION\" $SHA x@y",
    "sudo -n /srv/app/bin/activate activate ../versions/$VERSION $SHA x@y",
    "sudo -n /srv/app/bin/activate activate $VERSION/../x $SHA x@y",
    "sudo -n /srv/app/bin/activate activate '$(touch /pwned)' $SHA x@y",
    "sudo -n /srv/app/bin/activate activate $VERSION '$(touch /pwned)' x@y",
    "sudo -n /srv/app/bin/activate activate $VERSION $SHA '$(touch /pwned)'",
    "sudo -n /srv/app/bin/activate activate $VERSION $SHA \"x@y\n2026\tlive\"",
    "sudo -n /srv/app/bin/activate perform $VERSION \"$SHA\n\" x@y",
    "sudo -n /srv/app/bin/activate perform ../x $SHA x@y",
    "sudo -n /srv/app/bin/activate follow ../history",
    "sudo -n /srv/app/bin/activate follow ../../../etc/shadow",
    "sudo -n /srv/app/bin/activate follow --follow=name",
    "sudo -n /srv/app/bin/activate logs --file=/etc/shadow",
    "sudo -n /srv/app/bin/activate logs '1 --file=/etc/shadow'",
    "sudo -n /srv/app/bin/activate logs 1 --file=/etc/shadow",
    "sudo -n /srv/app/bin/activate logs 1 follow --all",
    "sudo -n /srv/app/bin/activate logs -1",
    // The same in a line that it reads
    "echo 'touch /pwned' | sudo -n /srv/app/bin/activate talk",
    "echo '$(touch /pwned)' | sudo -n /srv/app/bin/activate talk",
    "echo 'status; touch /pwned' | sudo -n /srv/app/bin/activate talk",
    "echo '*' | sudo -n /srv/app/bin/activate talk",
    "echo 'activate * * *' | sudo -n /srv/app/bin/activate talk",
    "echo 'follow ../history' | sudo -n /srv/app/bin/activate talk",
    "echo 'logs 1 --file=/etc/shadow' | sudo -n /srv/app/bin/activate talk",
    "{ head -c 100000 /dev/zero | tr '\\0' x; echo; } | sudo -n /srv/app/bin/activate talk",
    "{ head -c 1000 /dev/urandom; echo; } | sudo -n /srv/app/bin/activate talk",
];

/// These may be allowed or not; they do nothing but what the command does.
const HARMLESS_TO_THE_DEPLOYER: &[&str] = &[
    "SUDO_UID=0 SUDO_GID=0 sudo -n /srv/app/bin/activate status",
    "PATH=/tmp/attack:$PATH sudo -n /srv/app/bin/activate status",
    "ENV=/tmp/attack/settings BASH_ENV=/tmp/attack/settings sudo -n /srv/app/bin/activate status",
    "dir=/tmp/attack name='$(touch /pwned)' manager=touch sudo -n /srv/app/bin/activate status",
    "IFS=a PS4='$(touch /pwned)' SHELLOPTS=xtrace sudo -n /srv/app/bin/activate status",
    "SYSTEMD_PAGER='touch /pwned' PAGER='touch /pwned' sudo -n /srv/app/bin/activate logs 5",
    // The script finds its directory by its own name
    "sudo -n /tmp/attack/bin/activate status",
    "sudo -n /tmp/attack/linked/activate status",
    "cd /tmp/attack && sudo -n bin/activate status",
    "cd /tmp/attack/linked && sudo -n ./activate status",
    "cd /tmp/attack && PATH=/tmp/attack/bin:$PATH sudo -n activate status",
    "cd /tmp/attack && CDPATH=/tmp/attack sudo -n /srv/app/bin/activate status",
];

/// Whatever root is made to execute or to source of it leaves a file that only root can.
const ATTACK: &str = "mkdir -p /tmp/attack/bin && cd /tmp/attack && \
    ln -s /srv/app/bin linked && ln -s /srv/app/bin/activate bin/activate && \
    echo 'touch /pwned' >settings && \
    for it in cat sha256sum readlink systemctl journalctl tail awk df uname; do \
        printf '#!/bin/sh\\ntouch /pwned\\n' >$it && chmod 755 $it; \
    done";

#[test]
fn least_privilege() {
    let site = deployed("attacked");
    site.root("echo SECRET=42 >/srv/app/env");
    assert_eq!(as_user(&site, "deploy", ATTACK), (0, String::new()));
    let before = fingerprint(&site);
    let mut tried = 0;
    for (user, attempts, refused) in [
        ("deploy", FORBIDDEN_TO_BOTH, true),
        ("deploy", FORBIDDEN_TO_THE_DEPLOYER, true),
        ("deploy", HARMLESS_TO_THE_DEPLOYER, false),
        ("app", FORBIDDEN_TO_BOTH, true),
        ("app", FORBIDDEN_TO_THE_APP, true),
    ] {
        let answers = answers(&site, user, attempts);
        assert_eq!(answers.len(), attempts.len());
        for (attempt, (code, said)) in attempts.iter().zip(&answers) {
            assert!(!refused || *code != 0, "{user} may `{attempt}`: {said}");
            assert!(!said.contains("SECRET"), "{user} `{attempt}`: {said}");
        }
        tried += answers.len();
    }
    assert_same(&before, &fingerprint(&site));
    println!("{tried} attempts, none of which did anything");
}

const FORBIDDEN_TO_THE_APP: &[&str] = &[
    "ls /srv/app/incoming",
    "echo x >/srv/app/incoming/x",
    "cat ~deploy/.ssh/authorized_keys",
    "echo x >>~deploy/.ssh/authorized_keys",
    "sudo -n /srv/app/bin/activate status",
    "sudo -n -u deploy id",
    "su deploy -c id </dev/null",
    "/srv/app/bin/activate start",
    "kill $(pgrep -u deploy sleep)",
    "echo x >$(readlink -f /srv/app/run)/x.stopping",
];

/// What must not change, and whoever serves goes on.
fn fingerprint(site: &Site) -> String {
    site.root(
        "find /srv/app /etc -path '*/app/log/*' -o -path '*/app/incoming/*' -o -path '*/app/lock' \
             -o -printf '%p %u:%g %m %l\\n' | sort
         find /srv/app/bin /srv/app/versions /etc -type f -exec sha256sum {} + | sort -k 2
         sha256sum /srv/app/history /srv/app/settings /srv/app/env
         systemctl show --property MainPID 'app@*'; ls -a / /run/systemd/transient
         systemctl list-units --plain --no-legend --type service --state running | grep -v '^user'",
    )
}

fn assert_same(before: &str, after: &str) {
    let missing_in = |there: &str, text: &str| {
        let there: HashSet<&str> = there.lines().collect();
        let missing = text.lines().filter(|it| !there.contains(it));
        missing.map(str::to_owned).collect::<Vec<_>>()
    };
    let (gone, new) = (missing_in(after, before), missing_in(before, after));
    assert!(before == after, "gone: {gone:#?}\nnew: {new:#?}");
}

/// A site on which A is live, as somebody has deployed it who is not root.
fn deployed(name: &'static str) -> Site {
    let site = Site::set_up(name);
    site.deploy(&app("A")).succeeds();
    site
}

/// How each of them ended, and what it said; in one go, for speed.
fn answers(site: &Site, user: &str, attempts: &[&str]) -> Vec<(i32, String)> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let script: String = attempts
        .iter()
        .map(|it| {
            format!(
                "timeout 5 sh -c {} 2>&1; printf '\\n=> %s\\n' $?\n",
                quoted(it)
            )
        })
        .collect();
    let (_, said) = as_user(site, user, &script);
    let mut answers = Vec::new();
    let mut text = String::new();
    for line in said.lines() {
        match line.strip_prefix("=> ") {
            Some(code) => answers.push((code.parse().unwrap(), std::mem::take(&mut text))),
            None => text += line,
        }
    }
    answers
}

/// How it ended, and what it said.
fn as_user(site: &Site, user: &str, command: &str) -> (i32, String) {
    let sha = format!("SHA={}", "0".repeat(64));
    let version = format!("VERSION={VERSION}");
    let shell = [
        "timeout", "20", "runuser", "-u", user, "--", "env", &sha, &version,
    ];
    let output = site
        .server
        .exec(&[&shell[..], &["sh", "-c", command]].concat())
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// The sha256 is the right one, so only root's rights are missing.
#[test]
fn a_link_hands_out_no_file_of_roots() {
    let site = deployed("links");
    let secret = "root:SECRET-SECRET-SECRET:1:0:99999:7:::";
    site.root(&format!("echo '{secret}' | tee /srv/app/env >>/etc/shadow"));
    // One that would be installed, if root did read it.
    site.root(&format!(
        "(umask 077; {{ cat /bin/true; echo '{secret}'; }} >/srv/secret)"
    ));
    let mut tried = 0;
    for file in ["/etc/shadow", "/srv/app/env", "/srv/secret"] {
        let sha256 = site.root(&format!("sha256sum <{file}"))[..64].to_owned();
        let uploads = [
            format!("ln -sfn {file} $U"),
            format!("ln -sfn ../../..{file} $U"),
            format!("ln -sfn /proc/self/root{file} $U"),
            format!("ln -sfn {file} ~/x; ln -sfn ~/x $U"),
            // Swapped between any check and any use
            format!(
                "echo x >~/a; ln -sfn {file} ~/b; (while [ -e ~/b ]; do ln ~/a $U.a; mv -T $U.a $U; cp -d ~/b $U.b; mv -T $U.b $U; done) >/dev/null 2>&1 &"
            ),
        ];
        for upload in uploads {
            let times = if upload.contains("while") { 10 } else { 1 };
            let attack = format!(
                "U=/srv/app/incoming/app-$VERSION; {upload}
                 for i in $(seq {times}); do
                     sudo -n /srv/app/bin/activate activate $VERSION {sha256} x@y
                 done; rm -f ~/b"
            );
            let (_, said) = as_user(&site, "deploy", &attack);
            let failed = said.matches("verdict failed").count();
            assert_eq!(failed, times, "{attack}: {said}");
            let read = said.contains("not an executable") || said.contains("Starting");
            assert!(!read, "{attack}: {said}");
            let stored = site.root("grep -r SECRET-SECRET /srv/app/versions /srv/app/log");
            assert!(
                !said.contains("SECRET-SECRET") && stored.is_empty(),
                "{attack}: {said}"
            );
            tried += times;
        }
    }
    println!("{tried} activations of a link, none of which read it as root");
    assert_eq!(site.root("ls /srv/app/versions").lines().count(), 1);
}

/// Whose process runs with the deploy user's rights can be traced by the deploy user, who
/// could take from it a file that root had opened for it.
#[test]
fn what_root_opened_is_out_of_reach() {
    let site = deployed("traced");
    let thief = r#"
        # pidfd_open(2) and pidfd_getfd(2)
        my ($end, %seen) = (time + 3);
        while (time < $end) {
            for my $proc (grep { -o $_ } glob "/proc/[0-9]*") {
                my ($pid) = $proc =~ /(\d+)/;
                (readlink("$proc/exe") // "") =~ m,/(cat|test|rm|find|setpriv)$, or next;
                my $process = syscall(434, $pid + 0, 0);
                for my $theirs (0 .. 20) {
                    my $fd = syscall(438, $process, $theirs, 0);
                    next if $fd < 0;
                    my $file = readlink "/proc/self/fd/$fd";
                    open my $info, "<", "/proc/self/fdinfo/$fd";
                    my ($flags) = join("", <$info>) =~ /flags:\s*(\d+)/;
                    my $writes = oct($flags) & 3 ? "writes" : "reads";
                    print "stole $writes $file\n" unless $seen{"$writes $file"}++;
                    syscall(3, $fd);
                }
                syscall(3, $process);
            }
        }"#;
    let attack = format!(
        "truncate --size 60M /srv/app/incoming/app-$VERSION
         perl -e '{thief}' &
         for i in 1 2 3 4 5; do
             sudo -n /srv/app/bin/activate activate $VERSION $SHA x@y
         done >~/said; wait; cat ~/said"
    );
    let (_, said) = as_user(&site, "deploy", &attack);
    println!("{said}");
    assert_eq!(said.matches("the upload is damaged").count(), 5, "{said}");
    assert!(said.contains("stole "), "the thief saw nobody: {said}");
    for stolen in said.lines().filter(|it| it.starts_with("stole writes ")) {
        assert!(!stolen.contains("/srv/app/"), "{said}");
    }
}

#[test]
fn an_activation_survives_a_logind_that_kills() {
    let site = deployed("logind");
    site.root("sed -i s/settle=1/settle=4/ /srv/app/settings");
    site.root(
        "mkdir -p /etc/systemd/logind.conf.d && cd /etc/systemd/logind.conf.d && \
         printf '[Login]\\nKillUserProcesses=yes\\n' >kill.conf && systemctl restart systemd-logind",
    );
    let no_session = || !site.root("loginctl list-sessions").contains("deploy");
    // It does kill.
    let ssh = site.workspace.place.path("shims/ssh");
    let nohup = "nohup setsid sleep 1000 >/dev/null 2>&1 </dev/null & sleep 0.5; pgrep -x sleep";
    let mut session = Command::new(ssh);
    session.args([&format!("deploy@{}", site.name), nohup]);
    assert!(session.output().unwrap().status.success());
    wait_until("the end of the session", no_session);
    wait_until("the end of what it started", || {
        site.root("pgrep -x sleep").is_empty()
    });

    fs::write(site.workspace.root.join("binary"), app("B")).unwrap();
    let mut deploy = site
        .command(&["deploy", &site.target(), "--build", "host"])
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(deploy.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("Watching")));
    assert!(!no_session());
    let group = format!("-{}", deploy.id());
    Command::new("kill")
        .args(["-KILL", "--", &group])
        .status()
        .unwrap();
    deploy.wait().unwrap();
    wait_until("the end of the session", no_session);
    assert_eq!(
        lives(&site),
        1,
        "the verdict was there before the session ended"
    );
    wait_until("the verdict", || lives(&site) == 2);
    assert!(
        site.xtask("status", &[])
            .succeeds()
            .contains(&site.served())
    );
}

fn lives(site: &Site) -> usize {
    site.root("cat /srv/app/history")
        .matches("\tlive\t")
        .count()
}

#[test]
fn hosts_that_are_none_are_not_connected_to() {
    let workspace = Workspace::new("hosts");
    let shims = workspace.place.path("shims");
    let called = workspace.place.path("called");
    fs::create_dir(&shims).unwrap();
    for tool in ["ssh", "rsync"] {
        let shim = format!(
            "#!/bin/sh\necho \"$0 $@\" >>'{}'\nexit 255\n",
            called.display()
        );
        fs::write(shims.join(tool), shim).unwrap();
        fs::set_permissions(shims.join(tool), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", shims.display(), std::env::var("PATH").unwrap());
    let xtask = |args: &[&str]| said(workspace.command(args).env("PATH", &path));
    let hosts = [
        "-oProxyCommand=touch$IFS/tmp/pwned",
        "-oProxyCommand=x@web",
        "-web",
        "-",
        "",
        "deploy@",
        "@web",
        "deploy@-web",
        "-deploy@web",
        "deploy@web@web",
        "deploy@web -oProxyCommand=x",
        "deploy@web;id",
        "deploy@web|id",
        "deploy@web&id",
        "deploy@$(id)",
        "deploy@`id`",
        "deploy@web\n-v",
        "deploy@web\t",
        " deploy@web",
        "deploy@'web'",
        "deploy@we\\b",
        "deploy@wéb",
        "deploy@*",
    ];
    let directories = [
        "/srv/a b",
        "/srv/a;id",
        "/srv/$(id)",
        "/srv/`id`",
        "/srv/'a'",
        "/srv/a\nb",
        "/srv/\\a",
        "/srv/~a",
    ];
    let targets = hosts
        .iter()
        .map(|host| format!("{host}:/srv/app"))
        .chain(directories.iter().map(|it| format!("deploy@web:{it}")));
    let mut tried = 0;
    for target in targets {
        for command in ["deploy", "status", "setup", "rollback", "logs", "stop"] {
            // What begins with `-` is an option, unless it cannot be one.
            let said = xtask(&[command, "--", &target]);
            assert!(
                said.code != 0 && said.programs.is_empty(),
                "{target:?}: {said:?}"
            );
            assert!(!called.exists(), "{command} {target:?}: {said:?}");
            tried += 1;
        }
    }
    println!("{tried} refused before ssh saw them");
    for user in ["-x", "a b", "$(id)", "a;id", ""] {
        let said = xtask(&[
            "setup",
            "deploy@web:/srv/app",
            "--listen",
            "0.0.0.0:80",
            &format!("--as={user}"),
        ]);
        assert!(said.code != 0 && !called.exists(), "--as={user}: {said:?}");
    }
    // The shim would have told.
    xtask(&["status", "deploy@web:/srv/app"]).fails(&["cannot connect to deploy@web"]);
    assert!(called.exists());
}

#[test]
fn a_host_key_that_is_not_known_is_never_taken() {
    let site = deployed("keys");
    let state = || {
        site.root(
            "cat /srv/app/history; ls -l /srv/app/incoming /srv/app/versions; \
             journalctl --unit ssh --output cat | grep -c Accepted",
        )
    };
    let before = state();
    let config = site.workspace.place.path("ssh_config");
    let text = fs::read_to_string(&config).unwrap();
    let known = text
        .lines()
        .find_map(|line| line.strip_prefix("UserKnownHostsFile "))
        .unwrap()
        .trim_matches('"');
    let another = site.workspace.place.path("another");
    let keygen = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&another)
        .status();
    assert!(keygen.unwrap().success());
    let entry = fs::read_to_string(known).unwrap();
    let host = entry.split(' ').next().unwrap();
    let key = fs::read_to_string(another.with_extension("pub")).unwrap();
    let another_known = site.workspace.place.path("known_hosts");
    fs::write(
        &config,
        text.replace(known, another_known.to_str().unwrap()),
    )
    .unwrap();
    for known in [format!("{host} {key}"), String::new()] {
        fs::write(&another_known, known).unwrap();
        let connect = format!("cannot connect to deploy@{}", site.name);
        site.deploy(&app("B"))
            .fails(&[&connect, "Host key verification failed"]);
        for command in ["status", "setup", "rollback", "logs", "restart"] {
            site.xtask(command, &[])
                .fails(&["Host key verification failed"]);
        }
    }
    assert_eq!(state(), before);
}

/// web1, web2 and web3, with an xtask whose config.rs names them.
struct Fleet {
    site: Site,
    others: [Server; 2],
    xtask: PathBuf,
}

impl Fleet {
    fn set_up() -> Fleet {
        let target = "Target {\n        name: \"local\",";
        let three = "Target { name: \"fleet\", listen: Some(\"0.0.0.0:80\"), \
            hosts: &[\"deploy@web1\", \"deploy@web2\", \"deploy@web3\"], ..DEFAULTS },\n    ";
        let xtask = xtask_with("fleet", &[(target, &format!("{three}{target}"))]);
        let site = Site::bare("web1");
        let others = ["web2", "web3"].map(|name| Server::start_with(name, &[]).unwrap());
        for server in &others {
            let config = site.workspace.place.path("ssh_config");
            server.ssh_config(&config).unwrap();
        }
        let fleet = Fleet {
            site,
            others,
            xtask,
        };
        fleet.xtask(&["setup", "fleet", "--as", "root"]).succeeds();
        fleet
    }

    fn xtask(&self, args: &[&str]) -> Said {
        said(&mut by(&self.xtask, &self.site.command(args)))
    }

    fn deploy(&self, label: &str) -> Said {
        fs::write(self.site.workspace.root.join("binary"), app(label)).unwrap();
        self.xtask(&["deploy", "fleet", "--build", "host"])
    }

    fn servers(&self) -> [&Server; 3] {
        [&self.site.server, &self.others[0], &self.others[1]]
    }

    /// On all that are on: what was ever sent or tried, and who serves it.
    fn state(&self) -> Vec<String> {
        let state = "cd /srv/app; cat history; ls incoming versions log; \
            systemctl show --property MainPID 'app@*'";
        self.servers()
            .map(|it| it.exec(&["sh", "-c", state]).unwrap().stdout)
            .map(|it| String::from_utf8(it).unwrap())
            .to_vec()
    }

    fn served(&self) -> Vec<String> {
        self.servers()
            .map(|it| http::served((it.ip(), 80).into()).unwrap())
            .to_vec()
    }
}

#[test]
fn three_hosts_of_which_one_fails() {
    let fleet = Fleet::set_up();
    let a = fleet.deploy("A").succeeds();
    let a = a.trim();
    assert_eq!(fleet.served(), [a, a, a]);
    let before = fleet.state();

    // The last one cannot be reached: none is touched.
    let ssh = |verb: &str| {
        let units = ["systemctl", verb, "ssh.service", "ssh.socket"];
        fleet.others[1].exec(&units).unwrap();
    };
    ssh("stop");
    let unreachable = fleet.deploy("B");
    println!("{}", unreachable.people);
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
    println!("{}", failed.people);
    let table = format!(
        "error: stopped there; now it stands like this:\n  \
         deploy@web1: {a} is live\n  deploy@web2: {a} is live\n  deploy@web3: {a} is live\n\
         because: 2"
    );
    failed.fails(&[
        &table,
        "did not become live on deploy@web2: ",
        "`DRAIN_SECONDS=soon` is no whole number",
        &format!("{a} still serves"),
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
    println!("{}", again.people);
    let b = again.succeeds();
    let b = b.trim();
    assert_eq!(fleet.served(), [b, b, b]);

    // A host that has it already is left alone.
    fleet.others[0]
        .exec(&["/srv/app/bin/activate", "stop"])
        .unwrap();
    let first = fleet.state().swap_remove(0);
    let again = fleet.deploy("B");
    println!("{}", again.people);
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
    println!("{}", back.people);
    back.fails(&["not go back to the same version", "--to VERSION", "web2: "]);
    assert_eq!(fleet.state(), before);
    let back = fleet.xtask(&["rollback", "fleet", "--to", b]);
    println!("{}", back.people);
    assert_eq!(back.succeeds().trim(), b);
    assert_eq!(fleet.served(), [b, b, b]);
    let after = fleet.state();
    assert!(after[0] == before[0] && after[1] != before[1] && after[2] == before[2]);

    // What is logged is followed on all of them, and from version to version.
    let follow = fleet.site.command(&["logs", "fleet", "-f"]);
    let followed = fleet.site.workspace.place.path("followed");
    let mut client = by(&fleet.xtask, &follow)
        .stdout(File::create(&followed).unwrap())
        .spawn()
        .unwrap();
    wait_until("the old logs of all", || {
        let logs = fs::read_to_string(&followed).unwrap();
        ["web1", "web2", "web3"].iter().all(|it| logs.contains(it))
    });
    let d = fleet.deploy("D").succeeds();
    let ready = format!("ready: {}", d.trim());
    wait_until("the new logs of all", || {
        let logs = fs::read_to_string(&followed).unwrap();
        logs.matches(&ready).count() == 3
    });
    client.kill().unwrap();
    client.wait().unwrap();

    // One that is away keeps nobody from stopping the others, and starting them.
    ssh("stop");
    let stopped = fleet.xtask(&["stop", "fleet"]);
    println!("{}", stopped.people);
    stopped.fails(&["Stopped on deploy@web1", "cannot connect to deploy@web3"]);
    let serves = |server: &Server| http::get((server.ip(), 80).into(), "/").is_ok();
    assert_eq!(fleet.servers().map(serves), [false, false, true]);
    let started = fleet.xtask(&["start", "fleet"]);
    started.fails(&[&format!("Started {} on deploy@web2", d.trim())]);
    assert_eq!(fleet.servers().map(serves), [true, true, true]);
}

#[test]
fn no_host_switches_once_the_client_is_gone() {
    let fleet = Fleet::set_up();
    let a = fleet.deploy("A").succeeds();
    let a = a.trim();
    fs::write(fleet.site.workspace.root.join("binary"), app("B")).unwrap();
    let deploy_and = |signal: &str| {
        let deploy = fleet.site.command(&["deploy", "fleet", "--build", "host"]);
        let mut client = by(&fleet.xtask, &deploy)
            .process_group(0)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
        let watched = |line: &str| line.contains("Watching");
        for _ in fleet.servers() {
            let found = lines.find(|line| watched(line.as_ref().unwrap()));
            found.unwrap().unwrap();
        }
        let group = format!("-{}", client.id());
        let kill = Command::new("kill").args([signal, "--", &group]).status();
        assert!(kill.unwrap().success());
        let said: Vec<String> = lines.map(Result::unwrap).collect();
        (client.wait().unwrap().code(), said.join("\n"))
    };
    let failed = || fleet.state().concat().matches("\tfailed\t").count();
    // Who says so calls it off at once.
    for server in fleet.servers() {
        let slow = "sed -i s/settle=1/settle=4/ /srv/app/settings";
        server.exec(&["sh", "-c", slow]).unwrap();
    }
    let start = Instant::now();
    let (code, said) = deploy_and("-INT");
    println!("called off after {:?}\n{said}", start.elapsed());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("was called off"), "{said}");
    wait_until("all to have ended", || failed() == 3);
    assert!(start.elapsed() < Duration::from_secs(20), "{said}");
    assert_eq!(fleet.served(), [a, a, a]);
    // Who is gone, in a minute.
    let start = Instant::now();
    deploy_and("-KILL");
    sleep(Duration::from_secs(45));
    wait_until("all to have given up", || failed() == 6);
    println!("given up after {:?}", start.elapsed());
    assert_eq!(fleet.served(), [a, a, a]);
    let b = fleet.deploy("B").succeeds();
    assert_eq!(fleet.served(), [b.trim(), b.trim(), b.trim()]);
    wait_until("what the answers came by to be gone", || {
        !fleet.state().concat().contains(".answer")
    });
}

#[test]
fn setup_again_says_what_it_changes_and_stops_nothing() {
    let site = deployed("again");
    let main_pid = || site.root("systemctl show --property MainPID 'app@*'");
    let pid = main_pid();
    let changes_nothing = || {
        let before = fingerprint(&site);
        let again = site.xtask("setup", &["--as", "root"]);
        assert!(again.people.contains("is as it should be"), "{again:?}");
        again.succeeds();
        assert_same(&before, &fingerprint(&site));
    };
    changes_nothing();
    for (edit, shown) in [
        (
            "sed -i s/WatchdogSec=30/WatchdogSec=31/ /etc/systemd/system/app@.service",
            &[
                "app@.service",
                "| -WatchdogSec=31",
                "| +WatchdogSec=30",
                "cargo xtask restart",
            ][..],
        ),
        (
            "sed -i s/keep=5/keep=9/ /srv/app/settings",
            &["/srv/app/settings", "keep=9", "keep=5"],
        ),
        ("rm /etc/sudoers.d/app", &["/etc/sudoers.d/app"]),
        (
            "echo '# mine' >>/srv/app/bin/activate",
            &["/srv/app/bin/activate", "| -# mine"],
        ),
        ("chmod 755 /srv/app/incoming", &["/srv/app/incoming"]),
    ] {
        site.root(edit);
        let setup = site.xtask("setup", &["--as", "root"]);
        println!("{}", setup.people);
        assert!(
            shown.iter().all(|it| setup.people.contains(it)),
            "{shown:?}: {setup:?}"
        );
        setup.succeeds();
        changes_nothing();
    }
    // Another port is not taken under the hands of what serves.
    let move_it = || site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:81"]);
    move_it().fails(&["it serves on another port"]);
    assert_eq!(main_pid(), pid);
    let live = site.served();
    site.xtask("stop", &[]).succeeds();
    let moved = move_it();
    println!("{}", moved.people);
    assert!(
        moved.people.contains("ListenStream=0.0.0.0:81"),
        "{moved:?}"
    );
    moved.succeeds();
    site.xtask("start", &[]).succeeds();
    site.xtask("restart", &[]).succeeds();
    assert_eq!(http::served((site.server.ip(), 81).into()), Some(live));
    assert_eq!(exit_status(&site, VISUDO), 0, "{}", site.root(VISUDO));
}

#[test]
fn setup_by_an_administrator_spares_what_is_not_ours() {
    let site = Site::bare("admin");
    let setup = || site.xtask("setup", &["--as", "admin", "--listen", "0.0.0.0:80"]);
    let what_is = || site.root("ls /home; find /etc /srv -printf '%p %u %m %s %T@\\n'");
    for (theirs, words) in [
        (
            "mkdir /srv/app && echo x >/srv/app/x",
            &["/srv/app is there already"][..],
        ),
        (
            "rm -r /srv/app && echo '[Service]' >/etc/systemd/system/app.service",
            &["app.service is somebody else's"],
        ),
        (
            "rm /etc/systemd/system/app.service && printf '[Service]\\nExecStart=/srv/application/x\\n' >/etc/systemd/system/app.service",
            &["app.service is somebody else's"],
        ),
        (
            "rm /etc/systemd/system/app.service && useradd app",
            &["app is a person's"],
        ),
        (
            "userdel app && cd /etc/ssh && install -D -m 644 ~admin/.ssh/authorized_keys keys/admin &&
             mv ~admin/.ssh/authorized_keys . && echo 'AuthorizedKeysFile /etc/ssh/keys/%u' >sshd_config.d/keys.conf &&
             systemctl restart ssh",
            &["admin has no ~/.ssh/authorized_keys"],
        ),
    ] {
        assert_eq!(exit_status(&site, theirs), 0);
        let before = what_is();
        setup().fails(words);
        assert_same(&before, &what_is());
    }
    site.root(
        "cd /etc/ssh && mv authorized_keys ~admin/.ssh && rm -r keys sshd_config.d/keys.conf &&
         systemctl restart ssh",
    );
    let done = setup();
    println!("{}", done.people);
    done.succeeds();
    assert!(setup().people.contains("is as it should be"));
    assert_eq!(exit_status(&site, VISUDO), 0, "{}", site.root(VISUDO));
    let live = site.deploy(&app("A")).succeeds();
    assert_eq!(site.served(), live.trim());
}

#[test]
fn the_units_are_sound() {
    let site = deployed("units");
    let instance = site.root("systemctl list-units --plain --no-legend 'app@*' | cut -d ' ' -f 1");
    let instance = instance.trim();
    let verify = format!(
        "cd /etc/systemd/system && systemd-analyze verify --man=no app.socket app.service {instance}"
    );
    assert_eq!(
        (exit_status(&site, &verify), site.root(&verify)),
        (0, String::new())
    );
    let security = site.root(&format!("systemd-analyze security {instance}"));
    let exposure = security
        .rsplit_once(": ")
        .unwrap()
        .1
        .split(' ')
        .next()
        .unwrap();
    println!("exposure {exposure}");
    assert!(exposure.parse::<f32>().unwrap() <= 1.5, "{security}");

    // As the unit's last lines offer.
    site.root(
        "sed -i 's/^#PrivateNetwork/PrivateNetwork/; s/ AF_INET AF_INET6//' \
         /etc/systemd/system/app@.service && systemctl daemon-reload",
    );
    let live = site.deploy(&app("B")).succeeds();
    assert_eq!(site.served(), live.trim());
    let shown = site.root(
        "systemctl show --property PrivateNetwork --property RestrictAddressFamilies \
         $(systemctl list-units --state active --plain --no-legend 'app@*' | cut -d ' ' -f 1)",
    );
    assert!(
        shown.contains("PrivateNetwork=yes") && shown.contains("RestrictAddressFamilies=AF_UNIX\n"),
        "{shown}"
    );
}

fn exit_status(site: &Site, command: &str) -> i32 {
    site.server
        .exec(&["sh", "-c", command])
        .unwrap()
        .status
        .code()
        .unwrap()
}

/// The laboratory's own file has another mode than visudo likes.
const VISUDO: &str = "chmod 440 /etc/sudoers.d/admin && visudo -c";
