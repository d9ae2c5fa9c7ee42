use std::env;

fn main() {
    // rust-embed notices a changed page, but not a new one.
    println!("cargo::rerun-if-changed=pages");
    if env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl") {
        let_small_changes_stay_small();
    }
}

/// A binary goes to a server as a patch against the one before. A text that is a little
/// longer would move everything behind it, and so change each address of that: with
/// strings and pages last in `.rodata`, and room behind them, little is moved.
fn let_small_changes_stay_small() {
    println!("cargo::rerun-if-changed=padding.ld");
    println!("cargo::rustc-link-arg-bins=-Wl,--sort-section=alignment");
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-T,{}/padding.ld",
        env!("CARGO_MANIFEST_DIR")
    );
}
