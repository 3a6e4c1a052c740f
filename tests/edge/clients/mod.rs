//! Clients that others wrote, against the event path and pass-through, with nginx beside the edge.
//!
//! Each client runs the same checks against both; a table shows what came of each. What the edge
//! fails is an error of this test. A client that is not installed is left out, and a line says so:
//! `.ci/need-clients` installs them.

mod commands;
mod h2spec;

use crate::harness::{Edge, Setup, kill, wait_for};
use crate::tls_origin::{certificate, write_pair};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/edge/clients");
/// The checks of one client: each by its name, with `ok` or what went wrong.
type Results = Vec<(String, String)>;

/// A program that is killed in the end.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        kill(&self.0, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

/// A server under test.
struct Peer {
    clear: SocketAddr,
    tls: SocketAddr,
    judges: bool,
}

impl Peer {
    fn arguments(&self) -> Vec<String> {
        let judges = self.judges.then(|| "events".to_owned());
        [format!("http://{}", self.clear), format!("https://{}", self.tls)]
            .into_iter()
            .chain(judges)
            .collect()
    }
}

/// The edge and nginx, both in front of the same origin.
struct Field {
    edge: Edge,
    peers: Vec<Peer>,
    certificate: PathBuf,
    _programs: Vec<Program>,
    _dir: tempfile::TempDir,
}

/// Node, where it is installed, with Debian's packages.
fn node(script: &str) -> Option<Command> {
    let found = Command::new("node").arg("--version").output().is_ok();
    if !found {
        println!("node is not installed: left out");
    }
    let mut command = Command::new("node");
    command.env("NODE_PATH", "/usr/share/nodejs").arg(format!("{SOURCES}/{script}"));
    found.then_some(command)
}

impl Field {
    /// `None`: Node is not installed, which the origin runs on.
    fn start() -> Option<Field> {
        let mut child = node("origin.cjs")?.stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let origin: SocketAddr = format!("127.0.0.1:{}", port.trim()).parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| dir.path().join(name));
        write_pair(&certificate(&["127.0.0.1"]), &cert, &key);
        let (shown, key_shown) = (cert.display(), key.display());
        let tls = format!(
            "tls = [{{ listen = \"127.0.0.1:0\", cert = \"{shown}\", key = \"{key_shown}\" }}]"
        );
        let edge = Setup::default().origin(origin).edge(&tls).start();
        let log = edge.log();
        let address = log.split("listening on https://").nth(1).unwrap();
        let address = address.split(' ').next().unwrap().parse().unwrap();
        let mut peers = vec![Peer { clear: edge.address, tls: address, judges: true }];
        let mut programs = vec![Program(child)];
        if let Some((program, clear, tls)) = nginx(dir.path(), origin) {
            peers.push(Peer { clear, tls, judges: false });
            programs.push(program);
        }
        Some(Field { edge, peers, certificate: cert, _programs: programs, _dir: dir })
    }

    /// Prints what came of each check, and fails if the edge passes fewer than `least`.
    fn compare(&self, client: impl Fn(&Peer) -> Results, least: usize) {
        let all: Vec<Results> = self.peers.iter().map(client).collect();
        let mut failed = Vec::new();
        for (name, edge) in &all[0] {
            let beside = all.get(1).and_then(|results| results.iter().find(|(n, _)| n == name));
            let beside = beside.map_or("-", |(_, result)| result);
            println!("{name}: edge {edge}, nginx {beside}");
            if edge != "ok" && !edge.starts_with("left out") {
                failed.push(format!("{name}: {edge}"));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
        assert!(all[0].len() >= least, "{} checks", all[0].len());
        let log = self.edge.log();
        assert!(!log.contains("ERROR"), "{log}");
    }

    /// The lines that a script prints, as results.
    fn script(&self, mut command: Command, peer: &Peer) -> Results {
        command.args(peer.arguments()).env("CERTIFICATE", &self.certificate);
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let results = lines.lines().filter_map(|line| line.split_once(": "));
        results.map(|(name, result)| (name.to_owned(), result.to_owned())).collect()
    }
}

/// An nginx that passes everything on, and its addresses in clear and over TLS.
fn nginx(dir: &Path, origin: SocketAddr) -> Option<(Program, SocketAddr, SocketAddr)> {
    for _ in 0..10 {
        // Both are open at once, so that their ports differ.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [clear, tls] = listeners.map(|l| l.local_addr().unwrap());
        let config = dir.join("nginx.conf");
        std::fs::write(&config, nginx_config(dir, origin, clear, tls)).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&config).arg("-e").arg(dir.join("nginx.log"));
        let Ok(mut child) = command.spawn() else {
            println!("nginx is not installed: left out");
            return None;
        };
        let mut has_ended = false;
        wait_for("nginx to listen", || {
            has_ended = child.try_wait().unwrap().is_some();
            has_ended || TcpStream::connect(tls).is_ok()
        });
        if !has_ended {
            return Some((Program(child), clear, tls));
        }
    }
    panic!("nginx does not start");
}

fn nginx_config(dir: &Path, origin: SocketAddr, clear: SocketAddr, tls: SocketAddr) -> String {
    let at = dir.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {at}/nginx-{name};\n"))
        .concat();
    format!(
        "daemon off; pid {at}/nginx.pid; worker_processes 1;
         events {{ worker_connections 1024; }}
         http {{
             access_log off; {paths}
             map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
             upstream origin {{ server {origin}; keepalive 16; }}
             server {{
                 listen {clear};
                 listen {tls} ssl http2;
                 ssl_certificate {at}/cert.pem;
                 ssl_certificate_key {at}/key.pem;
                 client_max_body_size 0;
                 location / {{
                     proxy_pass http://origin;
                     proxy_http_version 1.1;
                     proxy_set_header Host $http_host;
                     proxy_set_header Upgrade $http_upgrade;
                     proxy_set_header Connection $connection_upgrade;
                     proxy_request_buffering off;
                     proxy_buffering off;
                 }}
             }}
         }}\n"
    )
}

#[test]
fn nodes_clients_are_served() {
    let Some(field) = Field::start() else { return };
    field.compare(|peer| field.script(node("client.cjs").unwrap(), peer), 30);
}

#[test]
fn pythons_clients_are_served() {
    let Some(field) = Field::start() else { return };
    // Debian's packages are installed for this interpreter.
    let python = "/usr/bin/python3";
    if !Path::new(python).exists() {
        println!("{python} is not installed: left out");
        return;
    }
    let script = format!("{SOURCES}/client.py");
    let run = |peer: &Peer| {
        let mut command = Command::new(python);
        command.arg(&script);
        field.script(command, peer)
    };
    field.compare(run, 3);
}
