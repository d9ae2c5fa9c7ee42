//! The same job for several hosts at once.

use std::thread;

use anyhow::{Result, anyhow};

/// Runs the job for all items at the same time; the results are in the items' order.
pub fn parallel_map<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    job: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let job = &job;
        let threads: Vec<_> = items
            .into_iter()
            .map(|item| scope.spawn(move || job(item)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a job does not panic"))
            .collect()
    })
}

/// All values, or one error that lists all errors.
pub fn collect_errors<R>(results: Vec<Result<R>>) -> Result<Vec<R>> {
    let (values, errors): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let mut errors = errors.into_iter().filter_map(Result::err);
    match errors.next() {
        None => values.into_iter().collect(),
        Some(first) => Err(errors.fold(first, |all, next| anyhow!("{all:#}\n{next:#}"))),
    }
}
