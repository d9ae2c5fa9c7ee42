//! Your configuration. `cargo xtask setup` applies a change of it to a server.

#[allow(unused_imports)] // for a target on a cluster
use crate::{kubernetes::Kubernetes, target::Target};

/// The Cargo package of the app, which is also the name of its binary.
pub const NAME: &str = "app";

/// `cargo xtask deploy TARGET` deploys to the target of that name, and without a name to
/// the first one.
pub const TARGETS: &[Target] = &[
    Target {
        name: "local",
        directory: Some("target/local"),
        listen: Some("127.0.0.1:3000"),
        profile: "quick",
        settle_secs: 0.3,
        ..DEFAULTS
    },
    // Target {
    //     name: "production",
    //     hosts: &["deploy@web1.example.com"],
    //     domain: Some("www.example.com"), // by https; or listen: Some("0.0.0.0:80")
    //     ..DEFAULTS
    // },
    // Target {
    //     name: "cluster",
    //     kubernetes: Some(Kubernetes {
    //         context: "production",
    //         namespace: "default",
    //         image: "registry.example.com/team/app",
    //         replicas: 2,
    //     }),
    //     ..DEFAULTS
    // },
];

/// The fields are explained in `target.rs`.
pub const DEFAULTS: Target = Target {
    name: "",
    hosts: &[],
    service: Some(NAME),
    directory: None,
    listen: None,
    domain: None,
    profile: "release",
    overlap: true,
    settle_secs: 1.0,
    batch: None,
    kubernetes: None,
};

/// The container engine that builds for servers: `docker` or `podman`.
pub const ENGINE: &str = "docker";

/// The image that builds static binaries with musl. `{arch}` is the host's architecture.
pub const BUILDER: &str = "ghcr.io/rust-cross/rust-musl-cross:{arch}-musl";

/// A new version has to be ready within this time, in seconds, or its activation fails.
pub const READY_TIMEOUT_SECS: u32 = 10;

/// With `batch`, the first host serves the new version for this time, in seconds, before
/// the others follow.
pub const CANARY_SECS: u32 = 30;

/// An old version has this time to finish its open requests, in seconds. It is killed
/// five seconds later.
pub const DRAIN_SECS: u32 = 30;

/// A host keeps this many versions that were once live, for a rollback.
pub const KEEP_VERSIONS: u32 = 5;
