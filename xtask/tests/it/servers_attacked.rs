//! What somebody who holds the deploy key, or the app itself, cannot do; what a hostile
//! configuration, host or moment does not achieve.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Stdio},
};

use crate::{
    app::app,
    http,
    place::wait_until,
    site::Site,
    workspace::{Workspace, said},
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
    // Every verb but the one that is allowed
    "sudo -n /srv/app/bin/activate status",
    "sudo -n /srv/app/bin/activate start",
    "sudo -n /srv/app/bin/activate boot",
    "sudo -n /srv/app/bin/activate session session",
    "sudo -n /srv/app/bin/activate perform 20261122T183012Z-1 deploy stop",
    "sudo -n /srv/app/bin/activate heal 20261122T183012Z-1 deploy stop",
    "sudo -n /srv/app/bin/activate supervise 20261122T183012Z-1 deploy stop",
    "sudo -n /srv/app/bin/activate env",
    // The same in a line that it reads
    "echo 'perform 20261122T183012Z-1 deploy stop' | sudo -n /srv/app/bin/activate session",
    "echo 'heal 20261122T183012Z-1 deploy stop' | sudo -n /srv/app/bin/activate session",
    "echo 'boot' | sudo -n /srv/app/bin/activate session",
    "echo 'session' | sudo -n /srv/app/bin/activate session",
    "echo 'status' | sudo -n /srv/app/bin/activate session",
    "echo 'env' | sudo -n /srv/app/bin/activate session",
    "echo 'env-set X' | sudo -n /srv/app/bin/activate session",
    "echo \"activate $VERSION $SHA x@y\" | sudo -n /srv/app/bin/activate session",
    "echo 'follow --follow=name' | sudo -n /srv/app/bin/activate session",
    "echo 'logs 1 follow --all' | sudo -n /srv/app/bin/activate session",
    "cat /dev/zero | tr '\\0' x | sudo -n /srv/app/bin/activate session",
    "echo 'touch /pwned' | sudo -n /srv/app/bin/activate session",
    "echo '$(touch /pwned)' | sudo -n /srv/app/bin/activate session",
    "echo 'status; touch /pwned' | sudo -n /srv/app/bin/activate session",
    "echo '*' | sudo -n /srv/app/bin/activate session",
    "echo 'activate * * *' | sudo -n /srv/app/bin/activate session",
    "echo 'follow ../history' | sudo -n /srv/app/bin/activate session",
    "echo 'logs 1 --file=/etc/shadow' | sudo -n /srv/app/bin/activate session",
    "{ head -c 100000 /dev/zero | tr '\\0' x; echo; } | sudo -n /srv/app/bin/activate session",
    "{ head -c 1000 /dev/urandom | tr -d '\\n'; echo; } | sudo -n /srv/app/bin/activate session",
];

/// These may be allowed or not; they do nothing but what the command does.
const HARMLESS_TO_THE_DEPLOYER: &[&str] = &[
    "SUDO_UID=0 SUDO_GID=0 sudo -n /srv/app/bin/activate session </dev/null",
    "PATH=/tmp/attack:$PATH sudo -n /srv/app/bin/activate session </dev/null",
    "ENV=/tmp/attack/settings BASH_ENV=/tmp/attack/settings sudo -n /srv/app/bin/activate session </dev/null",
    "dir=/tmp/attack service='$(touch /pwned)' manager=touch sudo -n /srv/app/bin/activate session </dev/null",
    "IFS=a PS4='$(touch /pwned)' SHELLOPTS=xtrace sudo -n /srv/app/bin/activate session </dev/null",
    "SYSTEMD_PAGER='touch /pwned' PAGER='touch /pwned' sudo -n /srv/app/bin/activate session </dev/null",
    // The script finds its directory by its own name
    "sudo -n /tmp/attack/bin/activate session </dev/null",
    "sudo -n /tmp/attack/linked/activate session </dev/null",
    "cd /tmp/attack && sudo -n bin/activate session </dev/null",
    "cd /tmp/attack/linked && sudo -n ./activate session </dev/null",
    "cd /tmp/attack && PATH=/tmp/attack/bin:$PATH sudo -n activate session </dev/null",
    "cd /tmp/attack && CDPATH=/tmp/attack sudo -n /srv/app/bin/activate session </dev/null",
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
    let limits = site.root(
        "runuser -u deploy -- sh -c 'sleep 4 | sudo -n /srv/app/bin/activate session' >/dev/null &
         sleep 2; grep 'Max address space' /proc/$(pgrep -n -f 'activate session')/limits; wait",
    );
    assert!(
        limits.contains(" 67108864 "),
        "an endless line is bounded: {limits}"
    );
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
    // logind ends a session a moment after its connection.
    wait_until("the end of all sessions", || {
        site.root("ls /run/systemd/transient | grep ^session-")
            .is_empty()
    });
    site.root(
        "find /srv/app /etc -path '*/app/log/*' -o -path '*/app/incoming/*' -o -path '*/app/lock' \
             -o -printf '%p %u:%g %m %l\\n' | sort
         find /srv/app/bin /srv/app/versions /etc -type f -exec sha256sum {} + | sort -k 2
         sha256sum /srv/app/history /srv/app/settings /srv/app/env
         systemctl show --property MainPID 'app@*'; ls -a / /run/systemd/transient
         systemctl list-units --plain --no-legend --type service --state running | grep -v '^user' | tr -s ' '",
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
            format!("ln -sfn {file} /srv/app/incoming/x; ln -sfn /srv/app/incoming/x $U"),
            // Swapped between any check and any use
            format!(
                "echo x >/srv/app/incoming/a; ln -sfn {file} /srv/app/incoming/b; (while [ -e /srv/app/incoming/b ]; do ln /srv/app/incoming/a $U.a; mv -T $U.a $U; cp -d /srv/app/incoming/b $U.b; mv -T $U.b $U; done) >/dev/null 2>&1 &"
            ),
        ];
        for upload in uploads {
            let times = if upload.contains("while") { 10 } else { 1 };
            let attack = format!(
                "VERSION=20261122T183012Z-1a2b3c4d5e6f-{}; U=/srv/app/incoming/app-$VERSION; {upload}
                 for i in $(seq {times}); do
                     echo activate $VERSION {sha256} x@y | sudo -n /srv/app/bin/activate session
                 done; rm -f /srv/app/incoming/?",
                &sha256[..12]
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
                (readlink("$proc/exe") // "") =~ m,/(dd|test|rm|find|setpriv)$, or next;
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
        "SHA=9f86d081884c$(printf %052d 0)
         truncate --size 60M /srv/app/incoming/app-$VERSION
         perl -e '{thief}' &
         for i in 1 2 3 4 5; do
             echo activate $VERSION $SHA x@y | sudo -n /srv/app/bin/activate session
         done >/tmp/said; wait; cat /tmp/said"
    );
    let (_, said) = as_user(&site, "deploy", &attack);
    println!("{said}");
    assert_eq!(said.matches("the upload is damaged").count(), 5, "{said}");
    assert!(said.contains("stole "), "the thief saw nobody: {said}");
    for stolen in said.lines().filter(|it| it.starts_with("stole writes ")) {
        assert!(!stolen.contains("/srv/app/"), "{said}");
    }
}

/// Each upload is another kind of file by the time that root's worker reads it.
#[test]
fn an_upload_that_is_swapped_is_installed_as_it_was_or_not_at_all() {
    let site = deployed("swapped");
    site.root("sed -i 's/settle=[0-9.]*/settle=0/' /srv/app/settings");
    let live = site.served();
    let (mut tried, mut went_live) = (0, 0);
    for swap in [
        "mkfifo $U.x",
        "ln -s /etc/shadow $U.x",
        "ln -s $(readlink -f /srv/app/current) $U.x",
        "ln $(readlink -f /srv/app/current) $U.x",
        "ln /etc/hostname $U.x",
        "mknod $U.x c 1 5",
        "mkdir $U.x",
        "cat /bin/true >$U.x",
        "cat /dev/null >$U",
        "cat /bin/true | dd of=$U conv=notrunc status=none",
    ] {
        for attempt in 0..3 {
            let (_, said) = as_user(
                &site,
                "deploy",
                &format!(
                    "cd /srv/app/incoming; {{ cat ../current; echo '{swap} {attempt}'; }} >new
                     SHA=$(sha256sum <new | cut -c 1-64)
                     VERSION=20261122T183012Z-1a2b3c4d5e6f-$(echo $SHA | cut -c 1-12)
                     U=/srv/app/incoming/app-$VERSION; mv new $U; cp $U good
                     (while [ -e good ]; do
                         {swap}; [ ! -e $U.x ] || mv -T $U.x $U; cp good $U.y; mv -T $U.y $U
                     done) >/dev/null 2>&1 &
                     sleep 0.0{attempt}
                     echo activate $VERSION $SHA x@y | sudo -n /srv/app/bin/activate session
                     rm -f good; wait; rm -rf $U*"
                ),
            );
            assert!(said.contains("\nverdict "), "{swap}: {said}");
            assert!(!said.contains("root:"), "{swap}: {said}");
            // What starts is whole, and so it goes live.
            let is_live = said.contains("\nverdict live");
            assert_eq!(said.contains("\nStarting "), is_live, "{swap}: {said}");
            tried += 1;
            went_live += usize::from(is_live);
        }
    }
    println!("{tried} uploads swapped, {went_live} were read whole");
    let installed = site.root("cd /srv/app/versions; ls; sha256sum app-* | awk '{ print substr($1, 1, 12) == substr($2, length($2) - 11) }'");
    assert!(!installed.lines().any(|it| it == "0"), "{installed}");
    let sums = site.root("cd /srv/app/versions; find . -type f -links 1 | wc -l; ls | wc -l");
    let (files, names) = sums.trim().split_once('\n').unwrap();
    assert_eq!(files, names, "{installed}");
    assert!(
        went_live > 0,
        "no upload was read whole, so nothing was tried"
    );
    assert_ne!(live, "");
}

/// All that the deploy user can take is room for files, and root can take that back.
#[test]
fn no_inodes_are_left() {
    let site = Site::bare_with("inodes", &["--tmpfs=/srv:size=90m,nr_inodes=400,exec"]);
    site.xtask("setup", &["--as", "root", "--listen", "0.0.0.0:80"])
        .succeeds();
    site.deploy(&app("A")).succeeds();
    let live = site.served();
    as_user(
        &site,
        "deploy",
        "cd /srv/app/incoming; i=0; while true >x$i; do i=$((i + 1)); done",
    );
    let full = site.root("df --output=iavail /srv | tail -n 1");
    assert_eq!(full.trim(), "0");
    for command in ["rollback", "restart", "start"] {
        assert_eq!(site.xtask(command, &[]).code, 1, "{command}");
        assert_eq!(site.served(), live, "{command}");
    }
    let deploy = site.deploy(&app("B"));
    assert_eq!(deploy.code, 1, "{deploy:?}");
    assert!(site.xtask("status", &[]).succeeds().contains(&live));
    assert_eq!(site.served(), live);
    site.root("find /srv/app/incoming -type f -delete");
    let next = site.deploy(&app("B")).succeeds();
    assert_eq!(site.served(), next.trim());
}

/// Whatever takes the place of rsync there, nothing wrong goes live, the client ends, and its
/// terminal is safe.
#[test]
fn a_hostile_rsync_on_the_other_side() {
    let site = deployed("hostile-rsync");
    let live = site.served();
    site.root("mv /usr/bin/rsync /usr/bin/rsync.real");
    let escapes = r"printf '\\033]52;c;cHduZWQ=\\007\\033[2J'";
    for (n, does) in [
        format!("{escapes} >&2; exit 1"),
        format!("{escapes}; exit 0"),
        format!("while :; do {escapes}; done"),
        format!("while :; do {escapes}; done >&2"),
        "exit 0".to_owned(),
        "kill -KILL $PPID".to_owned(),
        "head -c 100000 /dev/urandom".to_owned(),
        r#"rsync.real \"$@\"; for it in /srv/app/incoming/app-*; do echo x >>$it; done"#.to_owned(),
        r#"rsync.real \"$@\"; for it in /srv/app/incoming/app-*; do ln -sf /etc/shadow $it; done"#
            .to_owned(),
    ]
    .iter()
    .enumerate()
    {
        site.root(&format!(
            "printf '%s\\n' '#!/bin/sh' \"{does}\" >/usr/bin/rsync; chmod 755 /usr/bin/rsync; rm -f /srv/app/incoming/*"
        ));
        let _ = fs::remove_dir_all(site.workspace.root.join("target/sent"));
        let said = site.deploy(&app(&format!("B{n}")));
        assert_eq!(said.code, 1, "{does}: {said:?}");
        let control = |c: char| c.is_control() && c != '\n' && c != '\t';
        // ssh's own messages have line ends of a terminal.
        let people = said.people.replace("\r\n", "\n");
        assert!(!people.contains(control), "{does}: {people:?}");
        assert!(said.people.len() < 2_000_000, "{does}");
        assert_eq!(site.served(), live, "{does}");
    }
    println!("9 hostile programs in the place of rsync");
    site.root("mv /usr/bin/rsync.real /usr/bin/rsync; rm -f /srv/app/incoming/*");
    site.deploy(&app("C")).succeeds();
}

/// Somebody else has made what the client wants to make in the folder for temporary files.
#[test]
fn a_control_directory_that_exists_is_not_used() {
    let site = deployed("control");
    let status = site.command(&["status", &site.target()]);
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "cd \"$TMPDIR\" && mkdir victim && mkdir -m 777 cutover-$$-0 && ln -s victim cutover-$$-1 &&
         ln -s nowhere cutover-$$-2 && true >cutover-$$-3 && mkfifo cutover-$$-4 && cd - >/dev/null && exec \"$@\"",
        "sh",
    ]);
    command.arg(status.get_program()).args(status.get_args());
    command.current_dir(status.get_current_dir().unwrap());
    for (name, value) in status.get_envs() {
        command.env(name, value.unwrap());
    }
    let said = said(&mut command).succeeds();
    assert!(said.contains(&site.served()), "{said}");
    let files = |pattern: &str| {
        let find = format!(
            "find {} -path '{pattern}'",
            site.workspace.place.dir.display()
        );
        let found = Command::new("sh").args(["-c", &find]).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().count()
    };
    assert_eq!(files("*/cutover-*-[0-4]"), 5, "they are left as they were");
    assert_eq!(files("*/cutover-*-[0-4]/*") + files("*/victim/*"), 0);
}

/// The history tells by which key somebody was let in, whatever they claim.
#[test]
fn the_history_names_the_key() {
    let site = deployed("named");
    let fingerprint = site.root("ssh-keygen -lf /home/deploy/.ssh/authorized_keys");
    let key = &fingerprint.split(' ').nth(1).unwrap()[.."SHA256:".len() + 16];
    let last = || site.root("tail -n 1 /srv/app/history");
    let known = format!(" as deploy,{},{key}\n", site.client_address());
    assert!(last().ends_with(&known), "{} has no {known}", last());
    let live = site.served();
    let ssh = site.workspace.place.path("shims/ssh");
    let record = last();
    let sha256 = record.split('\t').nth(3).unwrap();
    let activate = format!("echo activate {live} {sha256} root@evil");
    let session = "-n /srv/app/bin/activate session";
    let attempts = [
        (format!("{activate} | sudo {session}"), true),
        (
            format!("{activate} | SSH_CONNECTION='1.2.3.4 5 6 7' SUDO_USER=root sudo {session}"),
            true,
        ),
        // A root's process of that name, and one of the deploy user's
        (
            format!("ln -sf /usr/bin/sudo /tmp/sshd; {activate} | /tmp/sshd {session}"),
            true,
        ),
        (
            format!("cp /bin/sh /var/tmp/sshd; echo '{activate} | sudo {session}' | /var/tmp/sshd"),
            true,
        ),
        // Out of the login: then no key is named.
        (
            format!("{activate} | setsid sh -c '(sleep 1; sudo {session}) <&3 &' 3<&0; sleep 4"),
            false,
        ),
    ];
    println!("{} attempts to be taken for somebody else", attempts.len());
    for (attempt, is_known) in attempts {
        let before = last();
        let mut command = Command::new(&ssh);
        command.args([&format!("deploy@{}", site.name), &attempt]);
        command.stdin(Stdio::null()).output().unwrap();
        wait_until(&attempt, || last() != before);
        assert!(
            last().contains("\troot@evil as deploy"),
            "{attempt}: {}",
            last()
        );
        assert_eq!(last().ends_with(&known), is_known, "{attempt}: {}", last());
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

#[test]
fn setup_again_says_what_it_changes_and_stops_nothing() {
    let site = deployed("again");
    let main_pid = || site.root("systemctl show --property MainPID 'app@*'");
    let pid = main_pid();
    let changes_nothing = || {
        let before = fingerprint(&site);
        let again = site.xtask("setup", &["--as", "root"]);
        assert!(again.people.contains("is set up already"), "{again:?}");
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
            &["/srv/app exists but was not created by `setup`"][..],
        ),
        (
            "rm -r /srv/app && echo '[Service]' >/etc/systemd/system/app.service",
            &["app.service was not created by `setup`"],
        ),
        (
            "rm /etc/systemd/system/app.service && printf '[Service]\\nExecStart=/srv/application/x\\n' >/etc/systemd/system/app.service",
            &["app.service was not created by `setup`"],
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
    assert!(setup().people.contains("is set up already"));
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
    assert!(exposure.parse::<f32>().unwrap() <= 1.2, "{security}");

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
