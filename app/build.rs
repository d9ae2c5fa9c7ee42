//! rust-embed notices a changed page, but not a new one.

fn main() {
    println!("cargo::rerun-if-changed=pages");
}
