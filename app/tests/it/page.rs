//! The page in headless Chromium, driven by the DevTools protocol over two pipes
//! (`--remote-debugging-pipe`). The tests of the xtask use it, too.

#![allow(dead_code)] // each of the two uses a part of it

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn chromium() -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.exists())
}

pub struct Page {
    browser: Child,
    profile: PathBuf,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: String,
    calls: u32,
    pub errors: Vec<String>,
}

impl Drop for Page {
    fn drop(&mut self) {
        // The whole process group, because the browser starts helpers.
        let group = format!("-{}", self.browser.id());
        let _ = Command::new("kill")
            .args(["-s", "KILL", "--", &group])
            .status();
        let _ = self.browser.wait();
        let _ = fs::remove_dir_all(&self.profile);
    }
}

impl Page {
    /// `flags` are the browser's.
    pub fn open(url: &str, flags: &[String]) -> Page {
        let program =
            chromium().expect("Chromium is installed: the page is tested in a real browser");
        let profile = env::temp_dir().join(format!("app-test-browser-{}", std::process::id()));
        let mut browser = Command::new("sh")
            // The browser reads commands on descriptor 3 and answers on 4.
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
            .args(flags)
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
        page.call("Page.navigate", &format!(r#"{{"url":"{url}"}}"#));
        let start = Instant::now();
        while page.evaluate("'' + !!document.getElementById('strip')") != "true" {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "no page at {url}"
            );
            thread::sleep(Duration::from_millis(20));
        }
        page
    }

    /// Messages are JSON and end with a zero byte. Events come between a call and its answer;
    /// this keeps those that report errors.
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

    /// The value of an expression: a string that holds no quotes.
    pub fn evaluate(&mut self, expression: &str) -> String {
        let expression = expression.replace('\n', " ").replace('"', "\\\"");
        let answer = self.call(
            "Runtime.evaluate",
            &format!(r#"{{"expression":"{expression}","returnByValue":true}}"#),
        );
        string(&answer, "value")
    }

    pub fn strip(&mut self, data: &str) -> String {
        self.evaluate(&format!("document.getElementById('strip').dataset.{data}"))
    }

    pub fn answers_of_newest(&mut self) -> u32 {
        let text = self.text(".count");
        text.split(' ').next().unwrap().parse().unwrap()
    }

    pub fn text(&mut self, selector: &str) -> String {
        self.evaluate(&format!("document.querySelector('{selector}').textContent"))
    }

    pub fn show_as(&mut self, scheme: &str, width: u32, height: u32) {
        let scheme = format!(r#"[{{"name":"prefers-color-scheme","value":"{scheme}"}}]"#);
        self.call(
            "Emulation.setEmulatedMedia",
            &format!(r#"{{"features":{scheme}}}"#),
        );
        let size = format!(r#""width":{width},"height":{height},"deviceScaleFactor":2"#);
        let metrics = format!(r#"{{{size},"mobile":{}}}"#, width < 500);
        self.call("Emulation.setDeviceMetricsOverride", &metrics);
    }

    pub fn screenshot(&mut self, file: &Path) {
        let answer = self.call("Page.captureScreenshot", "{}");
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
