//! Who sent a request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};

use crate::connections::Peer;

/// The headers that the proxy sets itself, whatever the client sent.
const SET_BY_PROXY: [&str; 3] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

/// Who sent a request, also when it came through the proxy. A handler takes it as an
/// argument:
///
/// ```
/// async fn whoami(client: cutover::Client) -> String {
///     format!("{} over {}", client.ip, client.scheme)
/// }
/// # let _: axum::Router = axum::Router::new().route("/", axum::routing::get(whoami));
/// ```
///
/// Only a proxy that connects to a unix socket is believed. On TCP, where anybody can write
/// these headers, `X-Forwarded-*` is removed from the request; `Forwarded` and `X-Real-IP`
/// always are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Client {
    /// The client's address.
    pub ip: IpAddr,
    /// `http` or `https`, as the client sees it.
    pub scheme: &'static str,
}

impl Client {
    /// Removes the headers that can be forged.
    pub(crate) fn identify(peer: Peer, headers: &mut HeaderMap) -> Client {
        let believed: &[&str] = match peer {
            Peer::Client(_) => &[],
            Peer::Proxy => &SET_BY_PROXY,
        };
        let forged: Vec<HeaderName> = headers
            .keys()
            .filter(|name| is_forwarding(name.as_str()) && !believed.contains(&name.as_str()))
            .cloned()
            .collect();
        for name in forged {
            headers.remove(name);
        }
        match peer {
            Peer::Client(address) => Client {
                ip: address.ip(),
                scheme: "http",
            },
            Peer::Proxy => Client::as_the_proxy_says(headers),
        }
    }

    /// Without these headers, the request is from this machine: nobody else can open the
    /// socket.
    fn as_the_proxy_says(headers: &HeaderMap) -> Client {
        let ip = last_value(headers, "x-forwarded-for").and_then(|ip| ip.parse().ok());
        let is_https = last_value(headers, "x-forwarded-proto") == Some("https");
        Client {
            ip: ip.unwrap_or(Ipv4Addr::LOCALHOST.into()),
            scheme: if is_https { "https" } else { "http" },
        }
    }

    /// A proxy does not tell the client's port.
    pub(crate) fn address(self, peer: Peer) -> SocketAddr {
        match peer {
            Peer::Client(address) => address,
            Peer::Proxy => (self.ip, 0).into(),
        }
    }
}

fn is_forwarding(name: &str) -> bool {
    name == "forwarded" || name == "x-real-ip" || name.starts_with("x-forwarded-")
}

/// Proxies append to these headers, so the last value is from the one next to us.
fn last_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    value.rsplit(',').next().map(str::trim)
}

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = (StatusCode, &'static str);

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Client, Self::Rejection> {
        let client = parts.extensions.get::<Client>().copied();
        client.ok_or((
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request did not come through `cutover::serve`\n",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: [(&str, &str); 7] = [
        ("x-forwarded-for", "192.0.2.1, 192.0.2.2"),
        ("x-forwarded-for", "198.51.100.1,2001:db8::1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "example.com"),
        ("x-forwarded-port", "1"),
        ("x-real-ip", "192.0.2.3"),
        ("forwarded", "for=192.0.2.4"),
    ];

    fn sent() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in SENT {
            headers.append(name, value.parse().unwrap());
        }
        headers.insert("accept", "*/*".parse().unwrap());
        headers
    }

    #[test]
    fn headers_of_a_tcp_client_are_not_believed() {
        let mut headers = sent();
        let peer = Peer::Client("203.0.113.7:5".parse().unwrap());
        let client = Client::identify(peer, &mut headers);
        assert_eq!(
            (client.ip.to_string(), client.scheme),
            ("203.0.113.7".into(), "http")
        );
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["accept"]);
    }

    #[test]
    fn headers_of_the_proxy_are_believed_if_it_sets_them_itself() {
        let mut headers = sent();
        let client = Client::identify(Peer::Proxy, &mut headers);
        assert_eq!(
            (client.ip.to_string(), client.scheme),
            ("2001:db8::1".into(), "https")
        );
        for removed in ["x-forwarded-port", "x-real-ip", "forwarded"] {
            assert!(!headers.contains_key(removed), "{removed}");
        }
        assert_eq!(headers["x-forwarded-host"], "example.com");
    }

    #[test]
    fn a_proxy_that_says_nothing_is_this_machine() {
        let client = Client::identify(Peer::Proxy, &mut HeaderMap::new());
        assert_eq!((client.ip.is_loopback(), client.scheme), (true, "http"));
    }
}
