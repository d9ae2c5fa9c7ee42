//! The work beside the requests ends well.

use crate::command;
use crate::support::{Instance, NEW, address, get};

#[test]
fn the_pages_sent_are_logged_before_the_end() {
    let address = address();
    let mut app = Instance::start(&mut command(&format!("{NEW}.1"), address));
    for _ in 0..2 {
        get(address, "/");
    }
    app.signal("TERM");
    assert!(app.ends().0.success());
    assert!(app.log().ends_with("2 pages sent\n"), "{}", app.log());
}
