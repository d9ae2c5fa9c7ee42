//! What each path answers.

use crate::command;
use crate::support::{Answer, Connection, Instance, NEW, address, get, request};

#[test]
fn healthz_is_not_stored() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.7"), address));

    let answer = get(address, "/healthz");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, "ok\n");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn version_is_json() {
    let address = address();
    let app = Instance::start(&mut command(&format!("{NEW}.7"), address));

    let answer = get(address, "/version");
    let pid = app.pid();
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(
        answer.body,
        format!(r#"{{"instance":"{NEW}.7","pid":{pid},"version":"{NEW}"}}"#)
    );
}

#[test]
fn events_begin_with_the_version() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.7"), address));

    let mut events = Connection::open(address);
    events
        .send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
        .unwrap();
    let head = events.read_head().unwrap();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert!(head.closes());

    let mut lines = Vec::new();
    while lines
        .last()
        .is_none_or(|line: &String| !line.starts_with("data:"))
    {
        lines.push(events.read_line().unwrap());
    }
    assert!(lines.contains(&"event: version".to_string()), "{lines:?}");
    assert!(lines.contains(&"retry: 200".to_string()), "{lines:?}");
    assert!(
        lines
            .last()
            .unwrap()
            .contains(&format!(r#""version":"{NEW}""#))
    );
}

#[test]
fn every_answer_has_the_security_headers() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.1"), address));

    for (method, path, headers, status) in [
        ("GET", "/", "", 200),
        ("GET", "/", "If-None-Match: *\r\n", 304),
        ("GET", "/healthz", "", 200),
        ("GET", "/version", "", 200),
        ("GET", "/no-such-page", "", 404),
        ("POST", "/version", "", 405),
    ] {
        let answer = request(address, method, path, headers);
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(answer.instance(), format!("{NEW}.1"), "{method} {path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'self'"), "{policy}");
        assert!(!answer.closes(), "{method} {path}");
    }
}

#[test]
fn pages_have_their_type_and_length() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.1"), address));

    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/index.html", "text/html; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ] {
        let got = get(address, path);
        assert_eq!(got.status, 200, "{path}");
        assert_eq!(got.header("content-type"), Some(content_type), "{path}");
        assert_eq!(got.header("cache-control"), Some("no-cache"), "{path}");
        let file = path.strip_suffix('/').map_or(path, |_| "/index.html");
        let file = format!("{}/pages{file}", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(got.body, std::fs::read_to_string(file).unwrap());

        // If a body followed, the next answer would not begin with a status line.
        let mut connection = Connection::open(address);
        let head = connection.request("HEAD", path, "").unwrap();
        assert_eq!(without_date(&head), without_date(&got), "{path}");
        assert_eq!(connection.get("/healthz").status, 200);
    }
}

fn without_date(answer: &Answer) -> Vec<&(String, String)> {
    let headers = answer.headers.iter();
    headers.filter(|(name, _)| name != "date").collect()
}

#[test]
fn a_page_that_the_client_has_is_not_sent_again() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.1"), address));

    let page = get(address, "/");
    let etag = page.header("etag").unwrap();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");
    assert_ne!(Some(etag), get(address, "/style.css").header("etag"));

    for known in [
        etag.to_string(),
        format!("W/{etag}"),
        format!("\"other\", {etag}"),
        format!("\"other\",W/{etag} , \"third\""),
        format!("\"other\"\r\nIf-None-Match: {etag}"),
        "*".to_string(),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = request(address, method, "/", &format!("If-None-Match: {known}\r\n"));
            assert_eq!(answer.status, 304, "{method} {known}");
            assert_eq!(answer.header("etag"), Some(etag));
            assert_eq!(answer.header("cache-control"), Some("no-cache"));
        }
    }
    for unknown in [
        "\"other\"",
        "",
        "W/\"other\", \"third\"",
        etag.trim_matches('"'),
    ] {
        let answer = request(
            address,
            "GET",
            "/",
            &format!("If-None-Match: {unknown}\r\n"),
        );
        assert_eq!(answer.status, 200, "{unknown}");
    }
}

#[test]
fn paths_outside_the_pages_are_not_found() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.1"), address));

    for path in [
        "/no-such-page",
        "/no-such-folder/",
        "/healthz/",
        "/../Cargo.toml",
        "/%2e%2e/Cargo.toml",
        "/..%2fCargo.toml",
        "//etc/passwd",
        "/%2fetc/passwd",
    ] {
        let answer = get(address, path);
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(
            answer.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
    }
}

#[test]
fn a_wrong_method_is_answered_with_the_allowed_ones() {
    let address = address();
    let _app = Instance::start(&mut command(&format!("{NEW}.1"), address));

    for path in ["/", "/healthz", "/version", "/events", "/style.css"] {
        for method in ["POST", "PUT", "DELETE"] {
            let answer = request(address, method, path, "");
            assert_eq!(answer.status, 405, "{method} {path}");
            assert_eq!(answer.header("allow"), Some("GET,HEAD"), "{method} {path}");
        }
    }
}
