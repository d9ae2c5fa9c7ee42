//! A domain by https, through Debian's Caddy, with certificates of a real authority.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle, sleep},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    app::app,
    http,
    internet::{DAY_SECS, Internet, SEE_PROCESSES, Tls, image},
    notes::notes,
    page::Page,
    place::wait_until,
    site::Site,
};

pub const DOMAIN: &str = "www.example.com";

/// For tests that make many switches, on a machine that is busy.
pub const QUICK: &str = "sed -i 's/settle=[0-9.]*/settle=0/; s/ready=10/ready=60/' /srv/*/settings
    sed -i 's/TimeoutStartSec=10/TimeoutStartSec=60/' /etc/systemd/system/*@.service
    systemctl daemon-reload";

impl Site {
    pub fn set_up_domain(&self, domain: &str) {
        self.xtask("setup", &["--as", "root", "--domain", domain])
            .succeeds();
    }

    /// The process of Caddy, and how often it has read a configuration since it started.
    pub fn caddy(&self) -> String {
        self.root(
            "pid=$(systemctl show --property MainPID --value caddy)
             echo $pid $(journalctl _PID=$pid | grep -c 'serving initial configuration\\|load complete')",
        )
    }
}

/// With the first version live.
fn live(name: &'static str) -> Internet {
    let internet = Internet::start(name, DAY_SECS);
    internet.site.set_up_domain(DOMAIN);
    deploy_notes(&internet);
    internet
}

pub fn deploy_notes(internet: &Internet) {
    let site = &internet.site;
    site.root(QUICK);
    site.set_env(&site.target(), "SECRET", "s3cret");
    site.deploy(&notes("A")).succeeds();
    wait_until("a certificate", || internet.get(DOMAIN, "/version").is_ok());
}

fn serial(internet: &Internet) -> String {
    internet
        .site
        .root("find /var/lib/caddy -name '*.crt' -exec openssl x509 -noout -serial -in {} +")
}

#[test]
fn a_bare_host_serves_by_https_after_setup_and_deploy() {
    let internet = Internet::start("bare", DAY_SECS);
    let site = &internet.site;
    let setup = site.xtask("setup", &["--as", "root", "--domain", DOMAIN]);
    assert!(setup.people.contains("has no DNS address yet"), "{setup:?}");
    setup.succeeds();
    // The app needs a variable, and its error tells how to set it.
    site.deploy(&notes("A"))
        .fails(&["SECRET", "env deploy@bare:/srv/app set NAME --as root"]);
    site.set_env(&site.target(), "SECRET", "s3cret");
    let start = Instant::now();
    let deploy = site.deploy(&notes("A"));
    assert!(
        deploy.people.contains(&format!("at https://{DOMAIN}")),
        "{deploy:?}"
    );
    let a = deploy.succeeds();
    wait_until("a certificate", || internet.get(DOMAIN, "/version").is_ok());
    println!("https {:?} after the deploy began", start.elapsed());
    assert_eq!(
        internet.get(DOMAIN, "/version").unwrap().version(),
        Some(a.trim())
    );
    assert_eq!(internet.get(DOMAIN, "/secret").unwrap().body, "s3cret");
    let redirect = http::get(site.address(), "/version").unwrap();
    assert_eq!(redirect.status, 308);
    let status = site.xtask("status", &[]).succeeds();
    assert!(
        status.contains(&format!("healthy, restarted 0 times, at https://{DOMAIN}")),
        "{status}"
    );

    let (caddy, certificate) = (site.caddy(), serial(&internet));
    let setup = site.xtask("setup", &["--as", "root"]);
    assert!(setup.people.contains("is set up already"), "{setup:?}");
    site.deploy(&notes("B")).succeeds();
    site.xtask("rollback", &[]).succeeds();
    assert_eq!(site.caddy(), caddy, "only a changed file makes Caddy read");

    site.root("systemctl restart caddy");
    assert_eq!(
        internet.get(DOMAIN, "/version").unwrap().version(),
        Some(a.trim())
    );
    site.server.kill().unwrap();
    site.server.boot().unwrap();
    wait_until("a boot", || {
        internet
            .get(DOMAIN, "/version")
            .is_ok_and(|it| it.version() == Some(a.trim()))
    });
    assert_eq!(serial(&internet), certificate, "it was kept");
}

#[test]
fn a_certificate_is_renewed_before_it_expires() {
    let internet = Internet::start("renewal", 90);
    let site = &internet.site;
    site.set_up_domain(DOMAIN);
    // Caddy looks every ten minutes. Before the deploy, because that may take longer than
    // a certificate is valid: the app has to be built for it.
    site.root("sed -i 's/^{$/{\\nrenew_interval 5s/' /etc/caddy/Caddyfile");
    site.root("caddy reload --config /etc/caddy/Caddyfile --force");
    deploy_notes(&internet);
    let first = serial(&internet);
    // What a user adds to Caddy's configuration stays.
    let caddy = site.caddy();
    site.xtask("setup", &["--as", "root"]).succeeds();
    assert_eq!(site.caddy(), caddy);
    assert!(
        site.root("cat /etc/caddy/Caddyfile")
            .contains("renew_interval")
    );
    let deadline = Instant::now() + Duration::from_secs(150);
    while serial(&internet) == first {
        assert!(Instant::now() < deadline, "it was not renewed");
        assert!(
            internet.get(DOMAIN, "/version").is_ok(),
            "the old one expired"
        );
        sleep(Duration::from_secs(1));
    }
    assert!(internet.get(DOMAIN, "/version").is_ok());
}

/// What each curl process asks for, and how. Each is one client, but for the parallel one.
const LOADS: [(&str, &[&str]); 5] = [
    (
        "GET, new connections",
        &["--http1.1", "--header", "Connection: close", "/version"],
    ),
    ("GET, a kept connection", &["--http1.1", "/version"]),
    (
        "POST, new connections",
        &[
            "--http1.1",
            "--header",
            "Connection: close",
            "--data",
            "hello",
            "/echo",
        ],
    ),
    (
        "POST, a kept connection",
        &["--http1.1", "--data", "hello", "/echo"],
    ),
    (
        "HTTP/2, ten at once",
        &["--http2", "--parallel", "--parallel-max", "10", "/version"],
    ),
];

/// What curl says when a kept connection ends without an answer. Other clients would have
/// lost the request.
const SENT_AGAIN: &str = "retrying a fresh connect";

pub struct Load {
    curl: Child,
    lines: Option<JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(internet: &Internet, domain: &str, args: &[&str]) -> Load {
        let (path, args) = args.split_last().unwrap();
        let mut curl = internet.curl(domain);
        curl.args(args)
            .args(["--verbose", "--no-progress-meter", "--output", "/dev/null"])
            .args([
                "--write-out",
                // Not to stdout, which is a buffer that is lost when curl is killed.
                "%{stderr}%{http_code} %{exitcode} %{num_connects} %{http_version}\\n",
            ])
            .arg(format!("https://{domain}{path}?[1-9999999]"))
            .stderr(Stdio::piped());
        let mut curl = curl.spawn().unwrap();
        let output = BufReader::new(curl.stderr.take().unwrap());
        let tells = |it: &String| {
            it.starts_with(|first: char| first.is_ascii_digit()) || it.contains(SENT_AGAIN)
        };
        let lines = move || output.lines().map_while(Result::ok).filter(tells).collect();
        let lines = Some(thread::spawn(lines));
        Load { curl, lines }
    }

    /// What became of each request: status, curl's own exit status, new connections and
    /// version of HTTP. A line of its own tells that curl sent one again.
    fn stop(mut self) -> Vec<String> {
        self.curl.kill().unwrap();
        let mut lines = self.lines.take().unwrap().join().unwrap();
        // curl may have been killed while it wrote the last line.
        lines.pop();
        lines
    }
}

/// What is not the line of a request that got a whole answer.
fn lost(lines: &[String]) -> Vec<&String> {
    lines
        .iter()
        .filter(|it| !it.starts_with("200 0 "))
        .collect()
}

/// Also ends curl when the test fails.
impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}

/// One of each kind.
pub fn start_loads(internet: &Internet) -> [Load; 5] {
    LOADS.map(|(_, args)| Load::start(internet, DOMAIN, args))
}

pub fn none_is_lost(loads: [Load; 5]) {
    for ((what, _), load) in LOADS.iter().zip(loads) {
        let lines = load.stop();
        let lost = lost(&lines);
        println!("{what}: {} sent, {} lost", lines.len(), lost.len());
        assert!(lost.is_empty() && lines.len() > 200, "{what}: {lost:?}");
        // Caddy closes no kept connection at a switch, not even one that is idle.
        let connections = lines
            .iter()
            .filter(|line| line.split(' ').nth(2) != Some("0"))
            .count();
        assert!(
            connections <= 1 || what.ends_with("new connections"),
            "{what}: {connections}"
        );
        let http2 = lines.iter().filter(|line| line.ends_with(" 2")).count();
        assert_eq!(http2 == lines.len(), what.starts_with("HTTP/2"));
    }
}

#[test]
fn no_request_through_caddy_is_lost() {
    let internet = live("through");
    let site = &internet.site;
    let b = site.deploy(&notes("B")).succeeds();
    let a = site.xtask("rollback", &[]).succeeds();
    let caddy = site.caddy();
    let stop = Arc::new(AtomicBool::new(false));
    let streams = [follow_events, keep_socket].map(|client| {
        let (connect, stop) = (Connect::new(&internet), Arc::clone(&stop));
        thread::spawn(move || client(&connect, &stop))
    });
    let loads = start_loads(&internet);
    for n in 0..20 {
        let to = [&b, &a][n % 2].trim();
        let said = site.xtask("rollback", &["--to", to]);
        assert_eq!(said.code, 0, "{n}: {said:?}");
    }
    assert_eq!(
        site.caddy(),
        caddy,
        "no switch makes Caddy read its configuration"
    );
    stop.store(true, Relaxed);
    for (what, stream) in ["events", "socket"].into_iter().zip(streams) {
        let report = stream.join().unwrap();
        println!(
            "{what}: {} messages, {} reconnections, longest gap {:?}",
            report.messages, report.reconnections, report.gap
        );
        assert!(
            report.reconnections >= 10 && report.gap < Duration::from_secs(3),
            "{what}"
        );
    }
    none_is_lost(loads);
}

#[derive(Default)]
struct Report {
    messages: usize,
    reconnections: usize,
    gap: Duration,
}

/// How a thread connects.
struct Connect {
    curl: Vec<String>,
    ip: std::net::Ipv4Addr,
    root: std::path::PathBuf,
}

impl Connect {
    fn new(internet: &Internet) -> Connect {
        let curl = internet.curl(DOMAIN);
        Connect {
            curl: curl
                .get_args()
                .map(|arg| arg.to_str().unwrap().to_owned())
                .collect(),
            ip: internet.site.server.ip(),
            root: internet.root_certificate(),
        }
    }
}

/// An event stream ends cleanly when its instance drains, and the client asks again.
fn follow_events(connect: &Connect, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        let mut curl = Command::new("curl")
            .args(&connect.curl)
            .arg(format!("https://{DOMAIN}/events"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        for line in BufReader::new(curl.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
        {
            if line.starts_with("data:") {
                report.gap = report.gap.max(last.elapsed());
                last = Instant::now();
                report.messages += 1;
            }
            if stop.load(Relaxed) {
                let _ = curl.kill();
            }
        }
        let status = curl.wait().unwrap();
        assert!(
            status.success() || stop.load(Relaxed),
            "an event stream was cut: {status}"
        );
        report.reconnections += 1;
    }
    report
}

/// A WebSocket is told to close when its instance drains, and the client connects again.
fn keep_socket(connect: &Connect, stop: &AtomicBool) -> Report {
    let mut report = Report::default();
    let mut last = Instant::now();
    while !stop.load(Relaxed) {
        let mut socket = Tls::open(connect.ip, DOMAIN, &connect.root).unwrap();
        assert_eq!(socket.upgrade(DOMAIN, "/socket").unwrap().status, 101);
        while !stop.load(Relaxed) {
            let _ = socket.send_message("hello");
            match socket.read_message() {
                Ok(Some(text)) => assert_eq!(text, "hello"),
                Ok(None) => {
                    socket.send_close().unwrap();
                    break;
                }
                Err(error) => panic!("a socket was cut without a close frame: {error}"),
            }
            report.gap = report.gap.max(last.elapsed());
            last = Instant::now();
            report.messages += 1;
            sleep(Duration::from_millis(20));
        }
        report.reconnections += 1;
    }
    report
}

#[test]
fn a_post_never_meets_a_connection_that_the_app_closes() {
    let internet = live("aimed");
    let site = &internet.site;
    site.root("sed -i '/keepalive 2s/d' /etc/caddy/sites/app.caddy; systemctl reload caddy");
    let (sent, lost) = aim_posts(&internet, 12);
    println!("Caddy's defaults: {lost} of {sent} POSTs lost");
    assert!(lost > 0, "posts that are not aimed well prove nothing");
    let setup = site.xtask("setup", &["--as", "root"]);
    assert!(setup.people.contains("keepalive 2s"), "{setup:?}");
    let (sent, lost) = aim_posts(&internet, 12);
    println!("our site: {lost} of {sent} POSTs lost");
    assert!(sent >= 300 && lost == 0, "{lost} of {sent}");
}

/// How many connections Caddy keeps open to the app by default.
const KEPT_IDLE: usize = 32;

/// How long after SIGTERM the app closes silent connections.
const GRACE: Duration = Duration::from_secs(5);

/// In each round Caddy has idle connections to an instance that drains, and as many POSTs
/// come just as that closes them. Returns how many were sent and lost.
fn aim_posts(internet: &Internet, rounds: usize) -> (usize, usize) {
    let site = &internet.site;
    let (mut sent, mut lost) = (0, 0);
    for round in 0..rounds {
        let mut clients: Vec<Tls> = (0..KEPT_IDLE)
            .map(|_| internet.tls(DOMAIN).unwrap())
            .collect();
        // At once, so that each takes a connection of its own.
        post_at(&mut clients, |_| UNIX_EPOCH, "/slow");
        site.xtask("restart", &[]).succeeds();
        let closes = draining_since(site) + GRACE;
        let answers = post_at(
            &mut clients,
            |n| closes + Duration::from_micros(300 * n as u64) - Duration::from_millis(4),
            "/echo",
        );
        sent += answers.len();
        let bad = answers
            .iter()
            .filter(|status| **status != Some(200))
            .count();
        println!("round {round}: {bad} of {} lost", answers.len());
        lost += bad;
    }
    (sent, lost)
}

/// Each client sends its POST at its moment.
fn post_at(
    clients: &mut [Tls],
    moment: impl Fn(usize) -> SystemTime + Sync,
    path: &str,
) -> Vec<Option<u16>> {
    thread::scope(|scope| {
        let moment = &moment;
        let posts: Vec<_> = clients
            .iter_mut()
            .enumerate()
            .map(|(n, client)| {
                scope.spawn(move || {
                    if let Ok(wait) = moment(n).duration_since(SystemTime::now()) {
                        sleep(wait);
                    }
                    client
                        .request("POST", DOMAIN, path, "hello")
                        .ok()
                        .map(|answer| answer.status)
                })
            })
            .collect();
        posts.into_iter().map(|post| post.join().unwrap()).collect()
    })
}

/// The moment at which the last instance that was told to stop began to drain. The server
/// has this machine's clock.
fn draining_since(site: &Site) -> SystemTime {
    let read = || {
        let log = site.root("journalctl --output short-unix | grep draining | tail -n 1");
        let (seconds, _) = log.split_once(' ')?;
        let since = UNIX_EPOCH + Duration::from_secs_f64(seconds.parse().ok()?);
        (since.elapsed().ok()? < Duration::from_secs(4)).then_some(since)
    };
    let mut since = None;
    wait_until("an instance that drains", || {
        since = read();
        since.is_some()
    });
    since.unwrap()
}

#[test]
fn nobody_but_caddy_reaches_the_app_and_nobody_forges_an_address() {
    let internet = live("forged");
    let site = &internet.site;
    // Each as another user, and as the app's own; a unix socket and Caddy's two admin ways.
    site.root("useradd --create-home visitor");
    let mut attempts = 0;
    for user in ["visitor", "deploy", "app"] {
        for way in [
            "--unix-socket /run/app/http.sock http://app/client",
            "--unix-socket /run/caddy/admin.sock http://caddy/config/",
            "http://127.0.0.1:2019/config/",
        ] {
            let command = format!(
                "setpriv --reuid {user} --regid {user} --init-groups curl -s -m 5 {way}; echo $?"
            );
            let said = site.root(&command);
            assert!(said.trim().ends_with('7'), "{user} by {way}: {said}");
            attempts += 1;
        }
    }
    let ours = internet.get(DOMAIN, "/client").unwrap().body;
    let ours = ours.split(' ').next().unwrap().to_owned();
    for header in [
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: evil.example",
        "X-Real-IP: 192.0.2.1",
        "Forwarded: for=192.0.2.1;proto=http",
        "X-Forwarded-Port: 1",
    ] {
        let curl = internet
            .curl(DOMAIN)
            .args(["--header", header, &format!("https://{DOMAIN}/client")])
            .output();
        let said = String::from_utf8(curl.unwrap().stdout).unwrap();
        assert!(
            said.starts_with(&format!("{ours} https ")),
            "{header}: {said}"
        );
        for name in ["x-real-ip", " forwarded", "x-forwarded-port"] {
            assert!(!said.contains(name), "{header}: {said}");
        }
        attempts += 1;
    }
    println!("{attempts} attempts, all refused");
}

const SHOP: &str = "shop.example.org";

#[test]
fn two_domains_on_one_host_do_not_touch_each_other() {
    let internet = live("two-sites");
    let site = &internet.site;
    let shop = |command: &str, args: &[&str]| site.xtask_for("shop", command, args);
    shop("setup", &["--as", "root", "--domain", DOMAIN])
        .fails(&["www.example.com is already in /etc/caddy/sites/app.caddy"]);
    shop("setup", &["--as", "root", "--domain", SHOP]).succeeds();
    site.root(QUICK);
    let target = format!("deploy@{}:/srv/shop", site.name);
    site.set_env(&target, "SECRET", "of the shop");
    site.deploy_for("shop", &notes("shop-A")).succeeds();
    site.deploy_for("shop", &notes("shop-B")).succeeds();
    site.deploy(&notes("B")).succeeds();
    wait_until("a certificate", || internet.get(SHOP, "/version").is_ok());
    let secret = |domain: &str| internet.get(domain, "/secret").unwrap().body;
    assert_eq!(
        (secret(DOMAIN), secret(SHOP)),
        ("s3cret".into(), "of the shop".into())
    );

    let caddy = site.caddy();
    let live = |domain: &str| {
        let answer = internet.get(domain, "/version").unwrap();
        answer.version().unwrap().to_owned()
    };
    for (service, domain, other) in [("app", DOMAIN, SHOP), ("shop", SHOP, DOMAIN)] {
        let before = (live(domain), live(other));
        let loads = [domain, other].map(|it| Load::start(&internet, it, LOADS[0].1));
        site.xtask_for(service, "rollback", &[]).succeeds();
        sleep(Duration::from_secs(3));
        for load in loads {
            let answers = load.stop();
            let lost = lost(&answers).len();
            println!("{service}: {} sent, {lost} lost", answers.len());
            assert!(lost == 0 && answers.len() > 20, "{answers:?}");
        }
        assert_ne!(live(domain), before.0);
        assert_eq!(live(other), before.1);
    }
    assert_eq!(site.caddy(), caddy);

    // The domain that is taken away takes only its own site along.
    shop("stop", &[]).succeeds();
    shop("setup", &["--as", "root", "--listen", "0.0.0.0:81"]).succeeds();
    shop("start", &[]).succeeds();
    wait_until("its site to be gone", || {
        internet.get(SHOP, "/version").is_err()
    });
    assert!(http::get((site.server.ip(), 81).into(), "/version").is_ok());
    assert_eq!(secret(DOMAIN), "s3cret");
}

#[test]
fn the_page_in_a_browser_follows_a_switch() {
    let internet = Internet::start("browser", DAY_SECS);
    let site = &internet.site;
    site.set_up_domain(DOMAIN);
    let a = site.deploy(&app("A")).succeeds();
    wait_until("a certificate", || internet.get(DOMAIN, "/version").is_ok());
    let mut page = Page::open(
        &format!("https://{DOMAIN}/"),
        &[
            format!("--host-resolver-rules=MAP {DOMAIN} {}", site.server.ip()),
            format!(
                "--ignore-certificate-errors-spki-list={}",
                key_hash(&internet)
            ),
        ],
    );
    wait_until("answers", || {
        page.strip("answers").parse::<u32>().unwrap() >= 10
    });
    assert_eq!(page.strip("versions"), a.trim());
    let protocol = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(page.evaluate(protocol), "h2");

    let b = site.deploy(&app("B")).succeeds();
    let both = format!("{} {}", a.trim(), b.trim());
    wait_until("the new version", || page.strip("versions") == both);
    wait_until("its answers", || page.answers_of_newest() >= 10);
    wait_until("the stream", || {
        page.strip("reconnects") != "0" && page.text("#stream") == "Event stream: connected"
    });
    assert_eq!(
        (page.strip("switches"), page.strip("failed")),
        ("1".into(), "0".into())
    );
    println!("{} answers, 0 failed", page.strip("answers"));
    assert_eq!(page.errors, [""; 0]);
}

/// What the browser trusts instead of the authority, which it does not know.
fn key_hash(internet: &Internet) -> String {
    let script = format!(
        "openssl s_client -connect localhost:443 -servername {DOMAIN} </dev/null 2>/dev/null |
            openssl x509 -pubkey -noout | openssl pkey -pubin -outform der |
            openssl dgst -sha256 -binary | base64"
    );
    internet.site.root(&script).trim().to_owned()
}

#[test]
fn setup_says_what_is_in_the_way_of_a_domain() {
    let site = Site::bare_from(&image(), "inway", &[SEE_PROCESSES]);
    let setup = |args: &[&str]| site.xtask("setup", &[&["--as", "root"], args].concat());
    setup(&["--domain", "not a domain"]).ends_as_wrong_usage("not a domain");
    setup(&["--domain", DOMAIN, "--listen", "0.0.0.0:80"]).ends_as_wrong_usage("both");

    site.root("systemd-run --quiet --unit other --socket-property ListenStream=443 true");
    setup(&["--domain", DOMAIN]).fails(&["443 is taken by other.socket"]);
    assert!(
        !site.root("ls /srv /etc/caddy 2>&1").contains("app"),
        "nothing was changed"
    );
    site.root("systemctl stop other.socket");

    site.root("mkdir -p /etc/caddy/sites; echo 'foo.org {' >/etc/caddy/Caddyfile; echo '}' >>/etc/caddy/Caddyfile");
    setup(&["--domain", DOMAIN]).fails(&["somebody else's", "import /etc/caddy/sites/*.caddy"]);
    site.root("rm /etc/caddy/Caddyfile");
    site.root(&format!(
        "echo 'a.org, {DOMAIN} {{' >/etc/caddy/sites/shop.caddy"
    ));
    setup(&["--domain", DOMAIN]).fails(&["is already in /etc/caddy/sites/shop.caddy"]);
    site.root("rm /etc/caddy/sites/shop.caddy");

    site.set_up_domain(DOMAIN);
    setup(&["--listen", "127.0.0.1:3001"]).succeeds();
    assert_eq!(site.root("ls /etc/caddy/sites"), "");
    wait_until("the ports to be free", || are_ports_free(&site));
}

fn are_ports_free(site: &Site) -> bool {
    let listening = site.root("ss -ltn");
    ![":80 ", ":443 "].iter().any(|it| listening.contains(it))
}

/// On the disk and in force.
#[test]
fn what_caddy_refuses_leaves_the_old_site() {
    let site = Site::bare_from(&image(), "refused", &[SEE_PROCESSES]);
    let setup = |args: &[&str]| site.xtask("setup", &[&["--as", "root"], args].concat());
    site.set_up_domain(DOMAIN);
    let caddy = site.caddy();
    let files =
        "cat /etc/caddy/Caddyfile /etc/caddy/sites/* /srv/app/settings /etc/systemd/system/app*";
    let before = site.root(files);
    site.root("echo ':81 {' >/etc/caddy/sites/broken.caddy");
    setup(&["--domain", "other.example.com"]).fails(&["Caddy rejects it"]);
    assert_eq!(site.caddy(), caddy);
    site.root("printf ':81 {\\nbind 203.0.113.5\\n}\\n' >/etc/caddy/sites/broken.caddy");
    // Several times, because Caddy begins with the sites in any order.
    for _ in 0..4 {
        setup(&["--domain", "other.example.com"]).fails(&["Caddy does not load it", "203.0.113.5"]);
    }
    site.root("rm /etc/caddy/sites/broken.caddy");
    assert_eq!(site.root(files), before);
    // That file was on the disk before, so Caddy could not start again until it went.
    let in_force =
        "curl -sS --header 'Host;' --unix-socket /run/caddy/admin.sock http://caddy/config/";
    wait_until("the old site to be in force", || {
        let in_force = site.root(in_force);
        in_force.contains(&format!("\"{DOMAIN}\"")) && !in_force.contains("other")
    });

    setup(&["--listen", "127.0.0.1:3001"]).succeeds();
    // A server of a refused configuration would hold them for ever.
    wait_until("the ports to be free", || are_ports_free(&site));
}
