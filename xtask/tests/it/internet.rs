//! What a site on the internet meets: a certificate authority, and clients that speak TLS.
//!
//! The authority is Debian's pebble, in a server of its own under the name of Let's Encrypt,
//! so that Caddy's configuration is the one that `setup` writes.

use std::{
    fs,
    io::{self, BufReader, Read, Write},
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use crate::{
    http::{self, Answer},
    lab::{Server, image_from, server_image, server_image_of},
    place::wait_until,
    site::Site,
};

/// A server that may install Caddy: its packages are on its disk, since it has no way to
/// Debian.
const STEPS: &str = r#"
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get --option Acquire::Retries=3 update \
    && apt-get --option Acquire::Retries=3 install --yes --no-install-recommends \
        ca-certificates curl openssl pebble \
    && apt-get clean \
    && apt-get --option Acquire::Retries=3 install --yes --download-only caddy \
    && mkdir /var/packages && cd /var/packages \
    && for deb in /var/cache/apt/archives/*.deb; do \
        name=$(basename "$deb" | tr -d %) && mv "$deb" "$name" && dpkg-deb --field "$name" \
        && printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' "$name" "$(stat -c %s "$name")" \
            "$(sha256sum <"$name" | cut -d ' ' -f 1)"; \
    done >Packages \
    && rm -r /etc/apt/sources.list* /var/lib/apt/lists/* \
    && echo 'deb [trusted=yes] file:/var/packages ./' >/etc/apt/sources.list && apt-get update
"#;

/// Turns such a server into one for the authority.
const AUTHORITY_STEPS: &str = "RUN apt-get install --yes caddy";

/// Pebble's paths are not those of Let's Encrypt, so Caddy stands before it.
const AUTHORITY: &str = r#"
set -eu
mkdir /etc/acme && cd /etc/acme
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem -subj /CN=authority \
    -addext subjectAltName=DNS:acme-v02.api.letsencrypt.org,DNS:localhost 2>/dev/null
chmod 644 key.pem
cat >config.json <<END
{"pebble": {"listenAddress": "127.0.0.1:14000", "managementListenAddress": "0.0.0.0:15000",
    "certificate": "/etc/acme/cert.pem", "privateKey": "/etc/acme/key.pem",
    "httpPort": 80, "tlsPort": 443, "ocspResponderURL": "",
    "externalAccountBindingRequired": false, "certificateValidityPeriod": $validity}}
END
cat >/etc/caddy/Caddyfile <<END
{
    auto_https off
}
https://acme-v02.api.letsencrypt.org {
    tls /etc/acme/cert.pem /etc/acme/key.pem
    rewrite /directory /dir
    reverse_proxy https://127.0.0.1:14000 {
        header_up Host {host}
        transport http {
            tls_insecure_skip_verify
        }
    }
}
END
systemctl restart caddy
systemd-run --quiet --unit names pebble-challtestsrv -defaultIPv4 "$address" -defaultIPv6 '' \
    -dns01 127.0.0.1:8053 -http01 '' -https01 '' -tlsalpn01 '' -management 127.0.0.1:8055
systemd-run --quiet --unit pebble --setenv PEBBLE_VA_NOSLEEP=1 --setenv PEBBLE_WFE_NONCEREJECT=0 \
    pebble -config /etc/acme/config.json -dnsserver 127.0.0.1:8053
"#;

pub const DAY_SECS: u32 = 86_400;

/// A bare server that can get certificates for any name.
pub struct Internet {
    authority: Server,
    pub site: Site,
}

pub fn image() -> String {
    image_from("https", &server_image().unwrap(), STEPS).unwrap()
}

/// The same with another release of Debian.
pub fn image_of(release: &str) -> String {
    let base = server_image_of(release).unwrap();
    image_from(&format!("https-{release}"), &base, STEPS).unwrap()
}

/// Root there may see which program has a port, as on most servers.
pub const SEE_PROCESSES: &str = "--cap-add=SYS_PTRACE";

impl Internet {
    /// Certificates are valid for this time.
    pub fn start(name: &'static str, validity_secs: u32) -> Internet {
        Internet::start_on(&image(), name, validity_secs)
    }

    /// With a site on a server from another image.
    pub fn start_on(site_image: &str, name: &'static str, validity_secs: u32) -> Internet {
        let image = image_from("authority", &image(), AUTHORITY_STEPS).unwrap();
        let authority = Server::start_from(&image, "authority", &[]).unwrap();
        let host = format!("--add-host=acme-v02.api.letsencrypt.org:{}", authority.ip());
        let site = Site::bare_from(site_image, name, &[&host, SEE_PROCESSES]);
        let address = site.server.ip();
        let script = format!("address={address} validity={validity_secs}\n{AUTHORITY}");
        let output = authority.exec(&["sh", "-c", &script]).unwrap();
        assert!(output.status.success(), "{output:?}");
        let trusted = authority
            .exec(&["cat", "/etc/acme/cert.pem"])
            .unwrap()
            .stdout;
        site.root(&format!(
            "echo '{}' >/usr/local/share/ca-certificates/authority.crt; update-ca-certificates",
            String::from_utf8(trusted).unwrap()
        ));
        let internet = Internet { authority, site };
        internet.save_root();
        internet
    }

    /// What clients trust. Pebble makes a new one when it starts.
    fn save_root(&self) {
        let url = format!("https://{}:15000/roots/0", self.authority.ip());
        let root = self.root_certificate();
        wait_until("the authority", || {
            let curl = Command::new("curl")
                .args(["-sSk", &url, "-o"])
                .arg(&root)
                .output();
            curl.unwrap().status.success()
        });
        assert!(
            fs::read_to_string(root)
                .unwrap()
                .contains("BEGIN CERTIFICATE")
        );
    }

    pub fn root_certificate(&self) -> PathBuf {
        self.site.workspace.place.path("root.pem")
    }

    pub fn tls(&self, domain: &str) -> io::Result<Tls> {
        Tls::open(self.site.server.ip(), domain, &self.root_certificate())
    }

    pub fn get(&self, domain: &str, path: &str) -> io::Result<Answer> {
        self.tls(domain)?.request("GET", domain, path, "")
    }

    /// With what it takes to reach the domain and to trust its certificate.
    pub fn curl(&self, domain: &str) -> Command {
        let ip = self.site.server.ip();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer", "--cacert"])
            .arg(self.root_certificate())
            .args(["--resolve", &format!("{domain}:443:{ip}")]);
        curl
    }
}

/// A TLS connection that checks the certificate. It never retries, as curl does.
pub struct Tls {
    process: Child,
    input: ChildStdin,
    pub output: BufReader<ChildStdout>,
}

impl Tls {
    pub fn open(ip: Ipv4Addr, domain: &str, root: &PathBuf) -> io::Result<Tls> {
        let mut process = Command::new("openssl")
            .args([
                "s_client",
                "-quiet",
                "-verify_return_error",
                "-verify_quiet",
            ])
            .args(["-connect", &format!("{ip}:443"), "-servername", domain])
            .args(["-verify_hostname", domain, "-alpn", "http/1.1", "-CAfile"])
            .arg(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Tls {
            input: process.stdin.take().expect("it is piped"),
            output: BufReader::new(process.stdout.take().expect("it is piped")),
            process,
        })
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.input.write_all(bytes)?;
        self.input.flush()
    }

    pub fn request(
        &mut self,
        method: &str,
        domain: &str,
        path: &str,
        body: &str,
    ) -> io::Result<Answer> {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {domain}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        self.send(request.as_bytes())?;
        http::read_answer(&mut self.output)
    }

    /// Up to the end of the head.
    pub fn upgrade(&mut self, domain: &str, path: &str) -> io::Result<Answer> {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {domain}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        self.send(request.as_bytes())?;
        http::read_answer(&mut self.output)
    }

    /// A short WebSocket message, masked with zeros.
    pub fn send_message(&mut self, text: &str) -> io::Result<()> {
        let head = [0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        self.send(&[&head, text.as_bytes()].concat())
    }

    pub fn send_close(&mut self) -> io::Result<()> {
        self.send(&[0x88, 0x80, 0, 0, 0, 0])
    }

    /// A short WebSocket message, or `None` for a close frame.
    pub fn read_message(&mut self) -> io::Result<Option<String>> {
        let mut head = [0; 2];
        self.output.read_exact(&mut head)?;
        let mut payload = vec![0; head[1].into()];
        self.output.read_exact(&mut payload)?;
        let text = String::from_utf8_lossy(&payload).into_owned();
        Ok((head[0] == 0x81).then_some(text))
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
