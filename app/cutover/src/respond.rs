//! What is done to every request and answer around the user's router.

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderValue, Request, StatusCode};
use axum::response::Response;
use futures_util::StreamExt;
use tower::ServiceExt;

use crate::client::Client;
use crate::connections::Peer;
use crate::drain::{draining, is_draining};
use crate::identity::instance;

/// The header in which every answer of a deployed server carries its
/// [`instance`](crate::instance).
pub const INSTANCE_HEADER: &str = "cutover-instance";

pub async fn respond(router: Router, peer: Peer, mut request: Request<Body>) -> Response {
    let client = Client::identify(peer, request.headers_mut());
    let extensions = request.extensions_mut();
    extensions.insert(client);
    extensions.insert(ConnectInfo(client.address(peer)));

    let Ok(mut response) = router.oneshot(request).await;
    if let Some(instance) = instance() {
        let instance = HeaderValue::from_static(instance);
        response.headers_mut().insert(INSTANCE_HEADER, instance);
    }
    if is_event_stream(&response) {
        close_after(&mut response);
        response.map(end_when_draining)
    } else {
        if is_draining() {
            close_after(&mut response);
        }
        response
    }
}

/// The client opens its next connection anew, and so to the next instance.
fn close_after(response: &mut Response) {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
}

fn is_event_stream(response: &Response) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE);
    content_type.is_some_and(|it| it.as_bytes().starts_with(b"text/event-stream"))
}

/// An event stream would last until the deadline; its client reconnects by itself.
fn end_when_draining(body: Body) -> Body {
    Body::from_stream(body.into_data_stream().take_until(Box::pin(draining())))
}
