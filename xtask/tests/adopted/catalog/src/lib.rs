//! What the shop sells.

/// The names of all goods, one a line.
#[must_use]
pub fn names() -> String {
    "bread\nbutter\n".to_owned()
}
