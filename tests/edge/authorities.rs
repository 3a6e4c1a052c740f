//! The authorities of the machine and of `edge.origin_ca`: whatever is wrong with them, the edge
//! starts or says why not, and a reload panics over none of them.

use crate::harness::{Edge, Setup, command, wait_for};
use crate::tls_origin::{TlsOrigin, certificate, write_pair};
use crate::wire::Origin;
use rustix::process::Signal;
use std::path::Path;
use std::sync::Arc;

/// A certificate in PEM whose content is none.
const BROKEN: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

/// The environment in which this file, and no folder, holds the machine's authorities.
fn machine(file: &Path) -> [(&str, &str); 2] {
    [("SSL_CERT_FILE", file.to_str().unwrap()), ("SSL_CERT_DIR", "/nonexistent")]
}

#[test]
fn an_edge_that_asks_no_origin_over_tls_needs_no_authorities() {
    let (origin, other) = (Origin::start(), Origin::start());
    // Two origins, because the only one is not checked without a path.
    let two = format!("origin = [\"http://{}\", \"http://{}\"]", origin.address, other.address);
    let alone = format!("origin = \"http://{}\"", origin.address);
    let by_path = format!("{alone}\norigin_health_path = \"/health\"");
    for lines in [&alone, &two, &by_path] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let missing = dir.path().join("missing.pem");
        let config = Setup::default().edge(lines).write(dir.path());
        let edge = Edge::start_with(dir, &machine(&missing));
        assert_eq!(edge.get("/page").status, 204);
        let text = std::fs::read_to_string(&config).unwrap();
        let text = text.replace("[portals]", "origin_timeout_seconds = 7\n[portals]");
        std::fs::write(&config, text).unwrap();
        edge.signal(Signal::HUP);
        edge.wait_log("in force from now on: edge.origin_timeout_seconds");
        assert_eq!(edge.get("/page").status, 204);
        assert!(!edge.log().contains("panicked"), "{}", edge.log());
    }
}

#[test]
fn an_authority_of_the_machine_that_cannot_be_used_is_left_out() {
    let pair = certificate(&["localhost"]);
    let origin = TlsOrigin::start(&pair);
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let roots = dir.path().join("roots.pem");
    std::fs::write(&roots, format!("{BROKEN}{}", pair.cert.pem())).unwrap();
    let url = format!("origin = \"https://localhost:{}\"", origin.address.port());
    let config = Setup::default().edge(&url).write(dir.path());
    let edge = Edge::start_with(Arc::clone(&dir), &machine(&roots));
    assert_eq!(edge.get("/page").status, 200, "{}", edge.log());
    // Without any, a reload changes nothing and says why.
    std::fs::remove_file(&roots).unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("[portals]", "origin_timeout_seconds = 7\n[portals]");
    std::fs::write(&config, text).unwrap();
    edge.signal(Signal::HUP);
    let why = "edge.origin: this machine has no root certificates";
    wait_for("the fault", || edge.status()["faults"].to_string().contains(why));
    assert_eq!(edge.get("/page").status, 200);
    assert!(!edge.log().contains("panicked"), "{}", edge.log());
}

#[test]
fn an_origin_over_tls_on_a_machine_without_authorities_is_told_by_run_and_by_check() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.pem");
    let config = Setup::default().edge("origin = \"https://localhost\"").write(dir.path());
    for argument in ["check", "run"] {
        let mut run = command(&config, &[argument]);
        let output = run.envs(machine(&missing)).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let expect = "edge.origin: this machine has no root certificates: install ca-certificates";
        assert!(said.contains(expect), "{said}");
    }
}

#[test]
fn origin_ca_may_hold_a_key_or_a_revocation_list_beside_its_certificates() {
    let pair = certificate(&["localhost"]);
    let origin = TlsOrigin::start(&pair);
    let dir = tempfile::tempdir().unwrap();
    let [cert, key, all] = ["cert.pem", "key.pem", "all.pem"].map(|name| dir.path().join(name));
    write_pair(&pair, &cert, &key);
    let [cert, key] = [cert, key].map(|path| std::fs::read_to_string(path).unwrap());
    let list = BROKEN.replace("CERTIFICATE", "X509 CRL");
    std::fs::write(&all, format!("{list}{key}{cert}")).unwrap();
    let lines = format!(
        "origin = \"https://localhost:{}\"\norigin_ca = \"{}\"",
        origin.address.port(),
        all.display()
    );
    let edge = Setup::default().edge(&lines).start();
    assert_eq!(edge.get("/page").status, 200, "{}", edge.log());
}
