//! The page in a real browser.
//!
//! `SCREENSHOT=FILE.png` saves a picture of the page during a switch.

use std::env;
use std::path::Path;

use crate::command;
use crate::page::Page;
use crate::support::{Instance, NEW, OLD, address, eventually};

#[test]
fn the_page_follows_a_switch() {
    let address = address();
    let old = Instance::start(&mut command(&format!("{OLD}.1"), address));
    let mut page = Page::open(&format!("http://{address}/"), &[]);

    // A picture shows more of them.
    let screenshot = env::var_os("SCREENSHOT");
    let answers = if screenshot.is_some() { 90 } else { 10 };
    eventually(|| page.strip("answers").parse::<u32>().unwrap() >= answers);
    assert_eq!(page.strip("versions"), OLD);
    assert_eq!(page.text("#name"), "1a2b3c4d5e6f");

    let mut new = Instance::start(&mut command(&format!("{NEW}.1"), address));
    old.signal("TERM");
    let both = format!("{OLD} {NEW}");
    eventually(|| page.strip("versions") == both);
    eventually(|| page.answers_of_newest() >= answers);
    assert_eq!(page.text("#name"), "c0ffee123456");
    assert_eq!(page.text("#about"), page.text("#about").trim());
    assert!(page.text("#about").ends_with("with uncommitted changes"));

    eventually(|| page.strip("reconnects") == "1");
    assert_eq!(page.text("#stream"), "Event stream: connected");
    assert_eq!(page.strip("failed"), "0");
    assert_eq!(page.strip("switches"), "1");
    let marks = "document.querySelectorAll('#strip i:not(.empty)').length";
    let answers = "document.getElementById('strip').dataset.answers";
    assert_eq!(page.evaluate(&format!("{marks} - {answers} + ''")), "0");
    let colours = page.evaluate(
        "'' + new Set([...document.querySelectorAll('.swatch')]
            .map((swatch) => getComputedStyle(swatch).backgroundColor)).size",
    );
    assert_eq!(colours, "2");
    // An error could be a request that the content security policy forbids.
    assert_eq!(page.errors, [""; 0]);
    if let Some(file) = screenshot {
        page.show_as("light", 1100, 860);
        page.screenshot(Path::new(&file));
    }

    for (name, scheme, width, height) in [
        ("light", "light", 1100, 860),
        ("dark", "dark", 1100, 860),
        ("phone", "light", 390, 844),
    ] {
        page.show_as(scheme, width, height);
        let overflow = "'' + (document.documentElement.scrollWidth - innerWidth)";
        assert_eq!(page.evaluate(overflow), "0", "{name} scrolls sideways");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        page.screenshot(&folder.join(format!("page-{name}.png")));
    }

    // A request that fails is shown as failed.
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
