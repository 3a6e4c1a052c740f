//! Connections of the edge to others: their age, proxies, and the certificates of origins.

use crate::backend::Backend;
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command, wait_for};
use crate::http::Connection;
use crate::tls_origin::{TlsOrigin, certificate};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

/// How the answer to a refused request begins.
const REFUSED: &str = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n";

/// A proxy that notes the first line of each request, and gives one answer to all.
struct Proxy {
    address: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(answer: &'static str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, lines) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let seen = Arc::clone(&lines);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut head = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
                let line = head.lines().next().unwrap_or_default().to_owned();
                seen.lock().unwrap().push(line);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Proxy { address, lines }
    }

    fn seen(&self, what: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(what))
    }
}

fn start(upstreams: &str, environment: &[(&str, &str)]) -> Edge {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let batch = "[batch]\nlinger_ms = 5\n";
    Setup::default().sections(batch).upstreams(upstreams).write(dir.path());
    Edge::start_with(dir, environment)
}

fn http(name: &str, url: &str, more: &str) -> String {
    format!("[[upstream]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"{url}\"\n{more}\n")
}

#[test]
fn the_environments_proxy_gets_what_is_encrypted_and_no_credentials_in_clear() {
    let (proxy, plain) = (Proxy::start(REFUSED), RUNTIME.block_on(Backend::playing([])));
    let url = format!("http://{}", proxy.address);
    let upstreams = http("tls", "https://collector.test:443/in", "")
        + &http("left-out", "https://left-out.test/in", "")
        + &http("with-token", &plain.url("/in"), "headers = { Authorization = \"Bearer a\" }")
        + &http("without", "http://clear.test/in", "")
        + &http("own", "http://own.test/in", &format!("proxy = \"{url}\""))
        + &http("none", "https://none.test/in", "proxy = \"\"");
    let environment = [("HTTPS_PROXY", url.as_str()), ("HTTP_PROXY", &url)];
    let edge = start(&upstreams, &[&environment[..], &[("NO_PROXY", "left-out.test")]].concat());
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    wait_for("the tunnel", || proxy.seen("CONNECT collector.test:443 "));
    wait_for("the configured proxy", || proxy.seen("POST http://own.test/in "));
    wait_for("the request with a token", || plain.taken().len() == 1);
    assert!(!proxy.seen("127.0.0.1"), "credentials in clear");
    // The variable HTTP_PROXY has no effect.
    for direct in ["left-out", "none", "without"] {
        let failed = || edge.upstream(direct)["last_error"].is_string();
        wait_for("an attempt without the proxy", failed);
        assert!(!proxy.seen(direct) && !proxy.seen("clear.test"), "{direct}");
    }
}

#[test]
fn what_a_proxy_does_instead_of_connecting_is_said_in_words() {
    let cases = [
        ("refuses", REFUSED, "the proxy refuses to connect to the upstream"),
        ("forbids", "HTTP/1.1 403 Forbidden\r\n\r\n", "its answer to CONNECT is not 200"),
        (
            "asks",
            "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "the proxy wants credentials (its answer to CONNECT is 407)",
        ),
        ("closes", "", "the proxy closed the connection instead of answering CONNECT"),
        ("is-none", "SSH-2.0-x\r\n", "its answer to CONNECT is not 200"),
    ];
    let proxies = cases.each_ref().map(|(_, answer, _)| Proxy::start(answer).address);
    let upstream = |((name, ..), address): (&(&str, &str, &str), &SocketAddr)| {
        let proxy = format!("proxy = \"http://user:password@{address}\"");
        http(name, "https://collector.test/in", &proxy)
    };
    let upstreams: String = cases.iter().zip(&proxies).map(upstream).collect();
    let edge = start(&upstreams, &[]);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    for ((name, _, expect), address) in cases.into_iter().zip(proxies) {
        wait_for("an attempt", || edge.upstream(name)["last_error"].is_string());
        let said = edge.upstream(name)["last_error"].as_str().unwrap().to_owned();
        let through = format!("cannot connect through the proxy {address}: ");
        assert!(said.starts_with(&through) && said.contains(expect), "{name}: {said}");
        assert!(!said.contains("password"), "{said}");
    }
}

#[test]
fn a_proxy_that_cannot_be_reached_is_named_without_its_credentials() {
    let closed = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (own, of_environment) = (closed(), closed());
    let proxy = format!("proxy = \"http://user:password@{own}\"");
    let upstreams = http("own", "http://collector.test/in", &proxy)
        + &http("of-environment", "https://collector.test/in", "")
        + &http("direct", &format!("https://{own}/in"), "");
    let url = format!("http://user:password@{of_environment}");
    let edge = start(&upstreams, &[("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "127.0.0.1")]);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    for (name, expect) in [
        ("own", format!("cannot connect through the proxy {own}: Connection refused")),
        ("of-environment", format!("cannot connect through the proxy {of_environment}: Conn")),
        ("direct", "cannot connect: Connection refused".to_owned()),
    ] {
        wait_for("an attempt", || edge.upstream(name)["last_error"].is_string());
        let said = edge.upstream(name)["last_error"].as_str().unwrap().to_owned();
        assert!(said.starts_with(&expect), "{name}: {said}");
    }
    assert!(!edge.log().contains("password") && !edge.status().to_string().contains("password"));

    let list = "https://lists.test/portals.txt?token=password";
    let edge = start("", &[("HTTPS_PROXY", &url), ("PIXELGATE__PORTALS__SOURCE", list)]);
    edge.wait_log(&format!("https://lists.test/portals.txt: through the proxy {of_environment}: "));
    assert!(!edge.log().contains("password"), "{}", edge.log());
}

#[test]
fn a_proxy_of_the_environment_that_cannot_be_used_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().upstreams(&http("a", "https://a.test/", "")).write(dir.path());
    for mistake in ["junk junk", "socks5://127.0.0.1:1", "http://127.0.0.1:1/path"] {
        for arguments in [["check"], ["run"]] {
            let output = command(&config, &arguments).env("https_proxy", mistake).output().unwrap();
            let printed = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{printed}");
            assert!(printed.contains(": upstream.a.proxy: "), "{printed}");
            assert!(printed.contains("HTTPS_PROXY of the environment"), "{printed}");
        }
    }
}

#[test]
fn a_connection_to_an_upstream_is_not_used_for_longer_than_configured() {
    let backend = RUNTIME.block_on(Backend::playing([]));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "connection_seconds_max = 1"));
    let edge = edge.start();
    wait_for("a second connection, and a third", || {
        assert_eq!(edge.event("_a=62515&_n=a").status, 200);
        edge.wait_delivered("collector");
        backend.connections() >= 3
    });
    assert!(backend.taken().len() as u64 > backend.connections(), "connections are reused");
}

/// An origin that counts connections.
fn origin() -> (SocketAddr, Arc<Mutex<(usize, usize)>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, counts) =
        (listener.local_addr().unwrap(), Arc::<Mutex<(usize, usize)>>::default());
    let counted = Arc::clone(&counts);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            counted.lock().unwrap().0 += 1;
            let counted = Arc::clone(&counted);
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let mut head = String::new();
                    while reader.read_line(&mut head).is_ok_and(|n| n > 2) {}
                    if head.is_empty() {
                        return;
                    }
                    counted.lock().unwrap().1 += 1;
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, counts)
}

#[test]
fn a_connection_to_an_origin_is_not_used_for_longer_than_configured() {
    let (address, counts) = origin();
    let edge = Setup::default().origin(address).edge("connection_seconds_max = 1").start();
    let mut client = edge.connect();
    wait_for("a third connection", || {
        assert_eq!(client.get("/page", "").status, 200);
        counts.lock().unwrap().0 >= 3
    });
    let (connections, requests) = *counts.lock().unwrap();
    assert!(requests > connections, "connections are reused");
}

#[test]
fn certificates_of_origins_are_read_again() {
    let (first, second) = (certificate(&["localhost"]), certificate(&["localhost"]));
    let origin = TlsOrigin::start(&second);
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, first.cert.pem()).unwrap();
    let lines = format!(
        "origin = \"https://localhost:{}\"\norigin_ca = \"{}\"",
        origin.address.port(),
        ca.display()
    );
    let edge = Setup::default().edge(&lines).start();
    assert_eq!(edge.get("/page").status, 502, "signed by another authority");
    std::fs::write(&ca, "no certificate").unwrap();
    edge.wait_log("edge.origin_ca: ");
    wait_for("the fault", || edge.status().to_string().contains("the certificates in use stay"));
    std::fs::write(dir.path().join("new"), second.cert.pem()).unwrap();
    std::fs::rename(dir.path().join("new"), &ca).unwrap();
    edge.wait_log("is in use from now on");
    let status = |mut connection: Connection| connection.get("/page", "").status;
    wait_for("the new authority", || status(edge.connect()) == 200);
    assert!(!edge.status().to_string().contains("config_reload"));
}
