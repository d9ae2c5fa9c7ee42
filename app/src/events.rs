//! A stream of server-sent events: which version answers, then silence until
//! it drains, when the stream ends and the browser reconnects to the next one.

use std::convert::Infallible;
use std::future::ready;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::CONNECTION;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, StreamExt};

use crate::drain::Phase;
use crate::routes::App;

/// How long a browser waits before it reconnects; on its own it takes seconds.
const RETRY: Duration = Duration::from_millis(200);

/// Often enough for any proxy to see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

pub async fn events(State(mut app): State<App>) -> impl IntoResponse {
    let mut first = Event::default().retry(RETRY);
    // A browser that still has a connection to a draining instance comes back
    // on it. That is no stream to tell anything on; it ends at once.
    if !app.phase.has_reached(Phase::Draining) {
        first = first.event("version").data(app.identity.to_json());
    }
    let draining = async move { app.phase.reaches(Phase::Draining).await };

    let stream = stream::once(ready(Ok::<_, Infallible>(first)))
        .chain(stream::pending().take_until(Box::pin(draining)));
    let events = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
    // Whoever reconnects shall make a new connection, which the next instance
    // takes.
    ([(CONNECTION, "close")], events)
}
