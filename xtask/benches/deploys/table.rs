//! Figures, and how they are written down.

use std::time::Duration;

use crate::report::Row;

/// The middle one.
pub fn median<T: Ord>(mut of: Vec<T>) -> T {
    of.sort();
    let middle = of.len() / 2;
    of.swap_remove(middle)
}

pub fn print(head: &[String], rows: &[Row]) {
    println!("| {} |", head.join(" | "));
    println!("|---{}|", "|--:".repeat(head.len() - 1));
    for row in rows {
        println!("| {} | {} |", row.name, row.cells.join(" | "));
    }
}

/// The first as it is, the others by how many times as much they are.
pub fn against_the_first(values: &[Option<f64>], written: impl Fn(f64) -> String) -> Vec<String> {
    let Some(first) = values.first().copied().flatten() else {
        return each(values, written);
    };
    let ratio = |value: f64| match value / first {
        ratio if !ratio.is_finite() => written(value),
        ratio if ratio < 9.95 => format!("{ratio:.1}×"),
        ratio => format!("{ratio:.0}×"),
    };
    let others = values[1..].iter().map(|it| it.map_or(NONE.into(), ratio));
    [written(first)].into_iter().chain(others).collect()
}

pub fn each(values: &[Option<f64>], written: impl Fn(f64) -> String) -> Vec<String> {
    let cell = |value: &Option<f64>| value.map_or(NONE.into(), &written);
    values.iter().map(cell).collect()
}

pub const NONE: &str = "–";

pub fn seconds(value: f64) -> String {
    format!("{value:.2} s")
}

pub fn bytes(value: f64) -> String {
    match value {
        small if small < 9_950.0 => format!("{:.1} kB", small / 1000.0),
        _ => format!("{:.0} kB", value / 1000.0),
    }
}

pub fn milliseconds(value: Duration) -> String {
    format!("{:.1}", value.as_secs_f64() * 1000.0)
}
