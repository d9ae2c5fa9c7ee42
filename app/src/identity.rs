//! Which version this is. The binary is not told: it is executed through a
//! link that is named for it, `run/app-<version>.<n>`, and reads its own name.

use std::path::Path;

/// There is one in a process, so it is leaked once and copied from then on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Identity {
    pub version: &'static str,
    /// One run of a version: `<version>.<n>`.
    pub instance: &'static str,
}

const DEV: Identity = Identity {
    version: "dev",
    instance: "dev",
};

impl Identity {
    /// Whatever is not named like an instance is "dev", as under `cargo run`.
    pub fn from_argv0(argv0: &str) -> Identity {
        instance_of(argv0).map_or(DEV, |(version, instance)| Identity {
            version: String::leak(version.to_string()),
            instance: String::leak(instance.to_string()),
        })
    }

    pub fn to_json(self) -> String {
        let Identity { version, instance } = self;
        let pid = std::process::id();
        format!(r#"{{"version":"{version}","instance":"{instance}","pid":{pid}}}"#)
    }
}

fn instance_of(argv0: &str) -> Option<(&str, &str)> {
    let name = Path::new(argv0).file_name()?.to_str()?;
    let instance = name.strip_prefix(concat!(env!("CARGO_PKG_NAME"), "-"))?;
    let (version, n) = instance.rsplit_once('.')?;

    let is_number = !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    // These go into headers and JSON as they are, so nothing that would need
    // escaping gets this far.
    let is_plain = !version.is_empty()
        && version
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-');

    (is_number && is_plain).then_some((version, instance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_to_an_instance_names_a_version() {
        let ours = "/srv/app/run/app-20261122T183012Z-1a2b3c4d5e6f-dirty-9f86d081884c.12";
        assert_eq!(
            instance_of(ours),
            Some((
                "20261122T183012Z-1a2b3c4d5e6f-dirty-9f86d081884c",
                "20261122T183012Z-1a2b3c4d5e6f-dirty-9f86d081884c.12"
            ))
        );
        for other in [
            "",
            "app",
            "target/debug/app",
            "app-1",
            "app-.1",
            "app-1.",
            "app-1.x",
            "other-1.1",
            "app-a\"b.1",
            "app-a\r\nb.1",
            "app-ü.1",
        ] {
            assert_eq!(Identity::from_argv0(other), DEV, "{other:?}");
        }
    }
}
