//! Several certificates on one listener: chosen by server name, renewed without a dropped
//! connection.

use crate::harness::{Edge, Setup, wait_for};
use crate::tls_client::{Client, Stream, shown, version};
use crate::tls_origin::{certificate, write_pair};
use rcgen::{CertifiedKey, KeyPair};
use rustix::process::Signal;
use rustls::ProtocolVersion;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// An edge with two certificates on one listener, and a client that trusts them.
struct Two {
    edge: Edge,
    address: SocketAddr,
    pairs: [CertifiedKey<KeyPair>; 2],
    files: tempfile::TempDir,
}

impl Two {
    fn start() -> Two {
        let files = tempfile::tempdir().unwrap();
        let pairs = [certificate(&["one.test", "*.one.test"]), certificate(&["two.test"])];
        let mut entries = Vec::new();
        for (pair, name) in pairs.iter().zip(["one", "two"]) {
            let [cert, key] = paths(files.path(), name);
            write_pair(pair, &cert, &key);
            entries.push(format!(
                "{{ listen = \"127.0.0.1:0\", cert = \"{}\", key = \"{}\" }}",
                cert.display(),
                key.display()
            ));
        }
        let edge = Setup::default().edge(&format!("tls = [{}]", entries.join(", "))).start();
        let log = edge.log();
        let address = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
        Two { address: address.parse().unwrap(), edge, pairs, files }
    }

    fn client(&self, name: &str) -> Client {
        Client::trusting(&[&paths(self.files.path(), name)[0]])
    }

    /// The certificate that a new connection is shown, which has to be one that is in the file.
    fn shown(&self, file: &str, name: &str) -> Option<Vec<u8>> {
        self.client(file).connect(self.address, name).ok().map(|stream| shown(&stream))
    }
}

fn paths(dir: &Path, name: &str) -> [PathBuf; 2] {
    ["pem", "key"].map(|kind| dir.join(format!("{name}.{kind}")))
}

fn der(pair: &CertifiedKey<KeyPair>) -> Option<Vec<u8>> {
    Some(pair.cert.der().to_vec())
}

/// Sends one event on an open connection.
fn event(stream: &mut BufReader<Stream>) -> String {
    stream
        .get_mut()
        .write_all(b"GET /v1/event/?_a=62515&_n=a HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut status = String::new();
    stream.read_line(&mut status).unwrap();
    let mut line = String::new();
    while stream.read_line(&mut line).unwrap() > 2 {
        line.clear();
    }
    stream.read_exact(&mut [0; 43]).unwrap();
    status
}

#[test]
fn the_certificate_is_the_one_for_the_name_that_is_asked_for() {
    let two = Two::start();
    assert_eq!(two.shown("one", "one.test"), der(&two.pairs[0]));
    assert_eq!(two.shown("one", "www.one.test"), der(&two.pairs[0]));
    assert_eq!(two.shown("two", "two.test"), der(&two.pairs[1]));
    // A client that asks for another name, or for none, gets the first certificate.
    assert_eq!(two.shown("one", "other.test"), None, "it is not for that name");
    assert_eq!(two.shown("two", "other.test"), None);
}

#[test]
fn both_versions_of_tls_and_of_http_are_spoken() {
    let two = Two::start();
    let [file, _] = paths(two.files.path(), "one");
    for (versions, expect) in [
        (&[&rustls::version::TLS12][..], ProtocolVersion::TLSv1_2),
        (&[&rustls::version::TLS13], ProtocolVersion::TLSv1_3),
        (rustls::ALL_VERSIONS, ProtocolVersion::TLSv1_3),
    ] {
        for (offered, agreed) in [
            (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
            (&["http/1.1", "h2"], Some(b"h2")),
            (&["http/1.1"], Some(b"http/1.1")),
            (&[], None),
        ] {
            let client = Client::with(&[&file], versions, offered);
            let stream = client.connect(two.address, "one.test").unwrap();
            assert_eq!(version(&stream), expect);
            assert_eq!(stream.conn.alpn_protocol(), agreed);
        }
        let client = Client::with(&[&file], versions, &["spdy/3"]);
        assert!(client.connect(two.address, "one.test").is_err(), "nothing in common");
    }
}

#[test]
fn a_renewed_pair_is_shown_to_new_connections_and_open_ones_go_on() {
    let two = Two::start();
    let [cert, key] = paths(two.files.path(), "one");
    let mut open = BufReader::new(two.client("one").connect(two.address, "one.test").unwrap());
    assert_eq!(event(&mut open), "HTTP/1.1 200 OK\r\n");

    // A certificate without its key: the pair in use stays, and one line says so.
    let renewed = certificate(&["one.test"]);
    std::fs::write(cert.with_extension("new"), renewed.cert.pem()).unwrap();
    let old = std::fs::read(&cert).unwrap();
    std::fs::rename(cert.with_extension("new"), &cert).unwrap();
    two.edge.wait_log("the certificate in use stays");
    two.edge.wait_log("one.key");
    let client = {
        let trusted = two.files.path().join("old.pem");
        std::fs::write(&trusted, old).unwrap();
        Client::trusting(&[&trusted])
    };
    let still = client.connect(two.address, "one.test").unwrap();
    assert_eq!(Some(shown(&still)), der(&two.pairs[0]));

    // The other certificate of the same listener is renewed all the same.
    let other = certificate(&["two.test"]);
    let [other_cert, other_key] = paths(two.files.path(), "two");
    write_pair(&other, &other_cert, &other_key);
    wait_for("the other pair", || two.shown("two", "two.test") == der(&other));
    let lines = two.edge.log().matches("the certificate in use stays").count();
    assert!(lines <= 2, "logged {lines} times");

    std::fs::write(&key, renewed.signing_key.serialize_pem()).unwrap();
    wait_for("the renewed pair", || two.shown("one", "one.test") == der(&renewed));
    assert_eq!(event(&mut open), "HTTP/1.1 200 OK\r\n", "the open connection goes on");
    two.edge.wait_log("one.pem is in use from now on");
}

#[test]
fn a_symlink_that_points_elsewhere_is_a_renewal() {
    // As Kubernetes does it: the files are links into `..data`, which is itself exchanged.
    let dir = tempfile::tempdir().unwrap();
    let link = |from: &str, to: &str| {
        std::os::unix::fs::symlink(from, dir.path().join("making")).unwrap();
        std::fs::rename(dir.path().join("making"), dir.path().join(to)).unwrap();
    };
    let pairs = [certificate(&["edge.test"]), certificate(&["edge.test"])];
    for (version, pair) in ["v1", "v2"].iter().zip(&pairs) {
        std::fs::create_dir(dir.path().join(version)).unwrap();
        let [cert, key] = paths(&dir.path().join(version), "tls");
        write_pair(pair, &cert, &key);
    }
    link("v1", "..data");
    link("..data/tls.pem", "tls.pem");
    link("..data/tls.key", "tls.key");
    let [cert, key] = paths(dir.path(), "tls");
    let tls = format!(
        "tls = [{{ listen = \"127.0.0.1:0\", cert = \"{}\", key = \"{}\" }}]",
        cert.display(),
        key.display()
    );
    let edge = Setup::default().edge(&tls).start();
    let log = edge.log();
    let address = log.split("listening on https://").nth(1).unwrap().split(' ').next().unwrap();
    let address = address.parse().unwrap();
    let shows = |pair: &CertifiedKey<KeyPair>, version: &str| {
        let client = Client::trusting(&[&dir.path().join(version).join("tls.pem")]);
        client.connect(address, "edge.test").ok().map(|stream| shown(&stream)) == der(pair)
    };
    assert!(shows(&pairs[0], "v1"));
    link("v2", "..data");
    wait_for("the new one", || shows(&pairs[1], "v2"));
}

#[test]
fn a_hang_up_reads_them_at_once_and_says_what_is_wrong() {
    let two = Two::start();
    let [cert, _] = paths(two.files.path(), "one");
    let good = std::fs::read(&cert).unwrap();
    std::fs::write(&cert, &good[..good.len() / 2]).unwrap();
    two.edge.signal(Signal::HUP);
    two.edge.wait_log("the certificate in use stays");
    std::fs::write(&cert, &good).unwrap();
    assert_eq!(two.shown("one", "one.test"), der(&two.pairs[0]));
}
