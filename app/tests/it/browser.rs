//! The page in a real browser: headless Chromium, told what to do in the
//! DevTools protocol, which it speaks on two pipes (`--remote-debugging-pipe`).

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::support::{Instance, NEW, OLD, address, command, eventually};

#[test]
fn the_page_follows_a_switch() {
    let Some(program) = chromium() else {
        assert!(
            env::var("CI").is_err(),
            "there is no Chromium, and CI has to have it"
        );
        // Not with eprintln!, which is only shown when a test fails.
        let _ = writeln!(
            io::stderr(),
            "LEFT OUT, there is no Chromium: the_page_follows_a_switch"
        );
        return;
    };
    let address = address();
    let old = Instance::start(&mut command(&format!("{OLD}.1"), address));
    let mut page = Page::open(&program, address);

    eventually(|| page.strip("answers").parse::<u32>().unwrap() >= 10);
    assert_eq!(page.strip("versions"), OLD);
    assert_eq!(page.text("#name"), "1a2b3c4d5e6f");

    let mut new = Instance::start(&mut command(&format!("{NEW}.1"), address));
    old.signal("TERM");
    let both = format!("{OLD} {NEW}");
    eventually(|| page.strip("versions") == both);
    eventually(|| page.text(".count").starts_with("15 "));
    assert_eq!(page.text("#name"), "c0ffee123456");
    assert_eq!(page.text("#about"), page.text("#about").trim());
    assert!(page.text("#about").ends_with("with uncommitted changes"));

    eventually(|| page.strip("reconnects") == "1");
    assert_eq!(page.text("#stream"), "Event stream: connected");
    assert_eq!(page.strip("failed"), "0");
    assert_eq!(page.strip("switches"), "1");
    let marks = page.evaluate("document.querySelectorAll('#strip i:not(.empty)').length + ''");
    assert_eq!(marks, page.strip("answers"));
    let colours = page.evaluate(
        "'' + new Set([...document.querySelectorAll('.swatch')]
            .map((swatch) => getComputedStyle(swatch).backgroundColor)).size",
    );
    assert_eq!(colours, "2");
    // Such as a request that the content security policy forbids.
    assert_eq!(page.errors, [""; 0]);

    for (name, scheme, width, height) in [
        ("light", "light", 1100, 860),
        ("dark", "dark", 1100, 860),
        ("phone", "light", 390, 844),
    ] {
        page.show_as(scheme, width, height);
        let overflow = "'' + (document.documentElement.scrollWidth - innerWidth)";
        assert_eq!(page.evaluate(overflow), "0", "{name} scrolls sideways");
        page.screenshot(name);
    }

    // And what fails is seen to fail.
    new.signal("KILL");
    new.ends();
    eventually(|| page.strip("failed") != "0");
    assert_eq!(
        page.evaluate("'' + document.querySelectorAll('#strip .switch').length"),
        "1"
    );
    assert_ne!(
        page.evaluate("'' + document.querySelectorAll('#strip .failed').length"),
        "0"
    );
}

fn chromium() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.exists())
}

struct Page {
    browser: Child,
    profile: PathBuf,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: String,
    calls: u32,
    errors: Vec<String>,
}

impl Drop for Page {
    fn drop(&mut self) {
        // Its whole process group, since it has helpers.
        let group = format!("-{}", self.browser.id());
        let _ = Command::new("kill")
            .args(["-s", "KILL", "--", &group])
            .status();
        let _ = self.browser.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

impl Page {
    fn open(program: &Path, address: SocketAddr) -> Page {
        let profile = env::temp_dir().join(format!("app-test-browser-{}", std::process::id()));
        let mut browser = Command::new("sh")
            // It reads commands on descriptor 3 and answers on 4.
            .args([
                "-c",
                r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#,
            ])
            .arg(program)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .args(["--no-first-run", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut page = Page {
            to: browser.stdin.take().unwrap(),
            from: BufReader::new(browser.stdout.take().unwrap()),
            browser,
            profile,
            session: String::new(),
            calls: 0,
            errors: Vec::new(),
        };
        let created = page.call("Target.createTarget", r#"{"url":"about:blank"}"#);
        let target = string(&created, "targetId");
        let attach = format!(r#"{{"targetId":"{target}","flatten":true}}"#);
        let attached = page.call("Target.attachToTarget", &attach);
        page.session = format!(r#""sessionId":"{}","#, string(&attached, "sessionId"));

        page.call("Log.enable", "{}");
        page.call("Runtime.enable", "{}");
        page.call(
            "Page.navigate",
            &format!(r#"{{"url":"http://{address}/"}}"#),
        );
        eventually(|| page.evaluate("'' + !!document.getElementById('strip')") == "true");
        page
    }

    /// Messages are JSON and end with a zero byte. Between a call and its answer
    /// come events; those that tell of errors are kept.
    fn call(&mut self, method: &str, params: &str) -> String {
        self.calls += 1;
        let (id, session) = (self.calls, &self.session);
        let call = format!(r#"{{"id":{id},{session}"method":"{method}","params":{params}}}"#);
        self.to.write_all(call.as_bytes()).unwrap();
        self.to.write_all(b"\0").unwrap();
        loop {
            let mut message = Vec::new();
            self.from.read_until(0, &mut message).unwrap();
            let message = String::from_utf8(message).unwrap();
            assert!(!message.is_empty(), "the browser is gone");
            if message.starts_with(&format!(r#"{{"id":{id},"#)) {
                assert!(message.contains(r#""result""#), "{call}: {message}");
                return message;
            }
            if message.contains("exceptionThrown") || message.contains(r#""level":"error""#) {
                self.errors.push(message);
            }
        }
    }

    /// An expression whose value is a string without quotes in it.
    fn evaluate(&mut self, expression: &str) -> String {
        let expression = expression.replace('\n', " ").replace('"', "\\\"");
        let answer = self.call(
            "Runtime.evaluate",
            &format!(r#"{{"expression":"{expression}","returnByValue":true}}"#),
        );
        string(&answer, "value")
    }

    fn strip(&mut self, data: &str) -> String {
        self.evaluate(&format!("document.getElementById('strip').dataset.{data}"))
    }

    fn text(&mut self, selector: &str) -> String {
        self.evaluate(&format!("document.querySelector('{selector}').textContent"))
    }

    fn show_as(&mut self, scheme: &str, width: u32, height: u32) {
        let scheme = format!(r#"[{{"name":"prefers-color-scheme","value":"{scheme}"}}]"#);
        self.call(
            "Emulation.setEmulatedMedia",
            &format!(r#"{{"features":{scheme}}}"#),
        );
        let size = format!(r#""width":{width},"height":{height},"deviceScaleFactor":2"#);
        let metrics = format!(r#"{{{size},"mobile":{}}}"#, width < 500);
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
    }

    fn screenshot(&mut self, name: &str) {
        let answer = self.call("Page.captureScreenshot", "{}");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png"));
        fs::write(file, base64(&string(&answer, "data"))).unwrap();
    }
}

/// The first string of this name in a message.
fn string(json: &str, name: &str) -> String {
    let start = format!(r#""{name}":""#);
    let (_, rest) = json
        .split_once(&start)
        .unwrap_or_else(|| panic!("no {name}: {json}"));
    rest.split('"').next().unwrap().to_string()
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |byte: &u8| DIGITS.iter().position(|digit| digit == byte);
    let bits: Vec<usize> = text.as_bytes().iter().map_while(digit).collect();
    bits.chunks(4)
        .flat_map(|chunk| {
            let bits = chunk.iter().fold(0, |sum, bits| sum << 6 | bits) << (6 * (4 - chunk.len()));
            let bytes = [(bits >> 16) as u8, (bits >> 8) as u8, bits as u8];
            bytes.into_iter().take(chunk.len() - 1)
        })
        .collect()
}
