//! A stream of server-sent events: the version that answers, then silence. The stream ends
//! when the version is replaced, and the browser reconnects to the next one.

use std::future::ready;
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, StreamExt};

use crate::health::this_process;

/// How long a browser waits before it reconnects; its own default is seconds.
const RETRY: Duration = Duration::from_millis(200);

/// Often enough for proxies to see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

pub async fn events() -> impl IntoResponse {
    let first = Event::default()
        .event("version")
        .retry(RETRY)
        .json_data(this_process());
    let stream = stream::once(ready(first)).chain(stream::pending());
    Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}
