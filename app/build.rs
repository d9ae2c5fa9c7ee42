use std::env;

fn main() {
    // rust-embed notices a changed page, but not a new one.
    println!("cargo::rerun-if-changed=pages");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") && !has_own_linker() {
        keep_patches_small();
    }
}

/// mold, for one, stops at a script that names sections.
fn has_own_linker() -> bool {
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    ["-fuse-ld=", "--ld-path="]
        .iter()
        .any(|it| flags.contains(it))
}

/// A binary goes to a server as a patch against the one before. Where a longer page
/// moves what stands behind it, each reference to that changes, too.
fn keep_patches_small() {
    println!("cargo::rerun-if-changed=layout.ld");
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-T,{}/layout.ld",
        env!("CARGO_MANIFEST_DIR")
    );
}
