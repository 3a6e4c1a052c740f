//! The corpus of framing against real origins at once: nginx, Apache, Node, Python and Go.
//!
//! Each origin says in a header what it was asked. After each request of the corpus, further
//! requests of another client use the connections to the origin that are open; a connection that
//! lost step would answer one of them with the answer to another request, or with a refusal.

use crate::fleet::origins::{Fleet, write};
use crate::harness::{Edge, Setup};
use crate::smuggling::{all_answers, attacks, corpus};
use std::path::Path;
use std::process::Command;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security/desync");
/// Requests of other clients after each request of the corpus; the edge may have this many
/// connections to the origin open.
const PROBES: usize = 3;

fn nginx(at: &Path, port: u16) -> Command {
    let dir = at.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/nginx-{name};\n"))
        .concat();
    let content = format!(
        "daemon off; worker_processes 1; pid {dir}/nginx.pid;
         events {{ worker_connections 256; }}
         http {{ access_log off; {paths}
         server {{ listen 127.0.0.1:{port};
         location / {{
             add_header X-Asked '$request_method $request_uri' always; return 200 ok;
         }} }} }}\n"
    );
    let mut command = Command::new("nginx");
    command.arg("-c").arg(write(at, "nginx.conf", content));
    command.arg("-e").arg(at.join("nginx.log"));
    command
}

fn apache(at: &Path, port: u16) -> Command {
    let dir = at.display();
    let modules: String = ["mpm_event", "authz_core", "headers"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let content = format!(
        "ServerName origin
         Listen 127.0.0.1:{port}
         PidFile {dir}/apache.pid
         ErrorLog {dir}/apache.log
         {modules}
         User www-data
         Group www-data
         DocumentRoot {dir}
         KeepAlive On
         MaxKeepAliveRequests 0
         RegisterHttpMethod SMUGGLE get
         Header always set X-Asked \"expr=%{{THE_REQUEST}}\"\n"
    );
    let mut command = Command::new("apache2");
    command.arg("-DFOREGROUND").arg("-f").arg(write(at, "apache.conf", content));
    command
}

fn origins() -> Fleet {
    Fleet::of(|fleet, at| {
        let mut node = Command::new("node");
        node.arg(format!("{SOURCES}/node.cjs"));
        let mut python = Command::new("/usr/bin/python3");
        python.arg(format!("{SOURCES}/origin.py"));
        let programs = [Some(node), Some(python), fleet.build_go(&format!("{SOURCES}/main.go"))];
        for program in programs.into_iter().flatten() {
            fleet.start_program(program);
        }
        fleet.serve(&["nginx"], |ports| nginx(at, ports[0]));
        fleet.serve(&["Apache"], |ports| apache(at, ports[0]));
    })
}

/// Asserts that an honest request is answered as what it is.
fn probe(edge: &Edge, name: &str, after: &str) {
    for number in 0..PROBES {
        let target = format!("/probe?{number}");
        let answer = edge.get(&target);
        let asked = answer.header("x-asked").unwrap_or("nothing");
        let asked = asked.strip_suffix(" HTTP/1.1").unwrap_or(asked);
        assert_eq!(asked, format!("GET {target}"), "{name}, {}, after {after}", answer.status);
    }
}

#[test]
fn no_request_brings_a_real_origin_out_of_step() {
    let fleet = origins();
    std::thread::scope(|scope| {
        for origin in &fleet.origins {
            scope.spawn(|| {
                let edge = Setup::default().origin(origin.address).start();
                probe(&edge, &origin.name, "the start");
                for attack in attacks() {
                    all_answers(edge.address, &attack.send);
                    probe(&edge, &origin.name, &attack.what);
                }
                for request in corpus().iter().filter(|r| r.expect == "passed") {
                    let (line, method) = request.line();
                    let mut connection = edge.connect();
                    connection.send(&request.send);
                    // Node resets the connection behind a refusal if bytes of the body arrive
                    // after it. Then the edge cuts the refusal's body, whose end it never saw.
                    let answer = connection.try_read(&method).ok();
                    if let Some(asked) = answer.as_ref().and_then(|answer| answer.header("x-asked"))
                    {
                        let target = line.split(' ').nth(1).unwrap();
                        assert!(
                            asked.starts_with(&format!("{method} {target}")),
                            "{asked}: {line}"
                        );
                    }
                    probe(&edge, &origin.name, &request.what);
                }
                assert_eq!(crate::accepted(&edge), 0, "no event was smuggled in");
                println!("{}: in step after each request", origin.name);
            });
        }
    });
}
