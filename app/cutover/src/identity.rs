//! Which version this process runs. A binary is the same on every server, so it is not
//! told: it is executed through a link that ends in `-VERSION.N`, and reads its own name.

use std::sync::LazyLock;

/// A version's name: when it was built, its commit, its hash. `9` stands for a digit, `f`
/// for a hexadecimal digit.
const SHAPES: [&str; 2] = [
    "99999999T999999Z-ffffffffffff-ffffffffffff",
    "99999999T999999Z-ffffffffffff-dirty-ffffffffffff",
];

static ARGV0: LazyLock<String> = LazyLock::new(|| {
    let argv0 = std::env::args_os().next().unwrap_or_default();
    argv0.to_string_lossy().into_owned()
});

/// The version that this process runs, such as
/// `20261122T183012Z-1a2b3c4d5e6f-9f86d081884c`, or `dev` if it was not deployed.
pub fn version() -> &'static str {
    instance()
        .and_then(|instance| instance.rsplit_once('.'))
        .map_or("dev", |(version, _)| version)
}

/// This run of the version, `VERSION.N`. `None` if the process was not deployed, as under
/// `cargo run`.
pub fn instance() -> Option<&'static str> {
    instance_of(&ARGV0)
}

/// Only the end of the name counts: what stands before it is the service's, and may hold
/// dashes of its own.
fn instance_of(argv0: &str) -> Option<&str> {
    let (before, number) = argv0.rsplit_once('.')?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let version = SHAPES.iter().find_map(|shape| {
        let start = before.len().checked_sub(shape.len())?;
        let (service, version) = before.split_at_checked(start)?;
        (service.ends_with('-') && has_shape(version, shape)).then_some(start)
    })?;
    is_number.then_some(&argv0[version..])
}

fn has_shape(text: &str, shape: &str) -> bool {
    text.bytes()
        .zip(shape.bytes())
        .all(|(byte, kind)| match kind {
            b'9' => byte.is_ascii_digit(),
            b'f' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
            literal => byte == literal,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c.12";
    const DIRTY: &str = "20261122T183012Z-1a2b3c4d5e6f-dirty-9f86d081884c.1";

    #[test]
    fn the_end_of_the_name_is_the_instance_whatever_the_service_is_called() {
        for service in ["app", "pastebin", "app-staging", "my.app", "ü"] {
            for instance in [CLEAN, DIRTY] {
                let link = format!("/srv/{service}/run/{service}-{instance}");
                assert_eq!(instance_of(&link), Some(instance), "{link}");
            }
        }
    }

    #[test]
    fn other_names_are_no_instance() {
        for name in [
            "",
            "app",
            "target/debug/app",
            "app-1.1",
            "app-20261122T183012Z-1a2b3c4d5e6f-9f86d081884c",
            "app-20261122T183012Z-1a2b3c4d5e6f-9f86d081884c.",
            "app-20261122T183012Z-1a2b3c4d5e6f-9f86d081884c.x",
            "app-20261122T183012Z-1a2b3c4d5e6f-9f86d081884C.1",
            "app-20261122T183012Z-1a2b3c4d5e6f-clean-9f86d081884c.1",
            "app-20261122T183012Z-1a2b3c4d5e6f-9f86d0818\r\n.1",
            "20261122T183012Z-1a2b3c4d5e6f-9f86d081884c.1",
            "app20261122T183012Z-1a2b3c4d5e6f-9f86d081884c.1",
            "app-üü261122T183012Z-1a2b3c4d5e6f-9f86d081884c.1",
        ] {
            assert_eq!(instance_of(name), None, "{name:?}");
        }
    }
}
