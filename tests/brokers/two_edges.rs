//! Many edges, one log: two real edges behind a real load balancer feed one stream, and share
//! nothing else. One of them is killed under load, and comes back on its folder.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;

use crate::harness::{self, Edge, Setup, wait_for};
use crate::http::Connection;
use crate::nats_server::Server;
use rustix::process::Signal;

/// Clients that send events at once.
const SENDERS: usize = 4;
/// Answers before the kill, while one edge is gone, and after its return.
const EACH_ACT: u64 = 400;

/// nginx, which spreads requests over two edges and tries the other where one is gone.
struct Balancer {
    child: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Balancer {
    fn start(edges: [SocketAddr; 2]) -> Balancer {
        // As in the edge's own tests: a port may be taken from under us.
        (0..10).find_map(|_| Balancer::try_start(edges)).expect("nginx runs (is it installed?)")
    }

    fn try_start(edges: [SocketAddr; 2]) -> Option<Balancer> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("nginx.conf");
        std::fs::write(&config, configuration(dir.path(), address, edges)).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(dir.path().join("error.log"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        let mut balancer = Balancer { child, address, _dir: dir };
        let mut ended = false;
        wait_for("nginx to listen", || {
            ended = balancer.child.try_wait().unwrap().is_some();
            ended || TcpStream::connect(address).is_ok()
        });
        (!ended).then_some(balancer)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        harness::kill(&self.child, Signal::TERM);
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, address: SocketAddr, [one, other]: [SocketAddr; 2]) -> String {
    let at = dir.display();
    format!(
        r#"
daemon off;
worker_processes 1;
pid {at}/pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    upstream edges {{
        server {one} max_fails=1 fail_timeout=1s;
        server {other} max_fails=1 fail_timeout=1s;
        keepalive 16;
    }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://edges;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream error timeout;
        }}
    }}
}}
"#
    )
}

/// Clients that send one event after another through the balancer until `stop` is set.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    senders: Vec<JoinHandle<Vec<u64>>>,
}

impl Load {
    fn start(balancer: SocketAddr) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (answered, next) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let sender = |_| {
            let (stop, answered, next) = (stop.clone(), answered.clone(), next.clone());
            std::thread::spawn(move || send(balancer, &stop, &answered, &next))
        };
        let senders = (0..SENDERS).map(sender).collect();
        Load { stop, answered, senders }
    }

    /// Waits for so many more answers.
    fn go_on(&self, answers: u64) {
        let goal = self.answered.load(Relaxed) + answers;
        wait_for("answers through the balancer", || self.answered.load(Relaxed) >= goal);
    }

    /// The numbers of the events that were answered 200.
    fn end(self) -> BTreeSet<u64> {
        self.stop.store(true, Relaxed);
        self.senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    }
}

fn send(to: SocketAddr, stop: &AtomicBool, answered: &AtomicU64, next: &AtomicU64) -> Vec<u64> {
    let mut connection = Connection::open(to);
    let mut accepted = Vec::new();
    while !stop.load(Relaxed) {
        let n = next.fetch_add(1, Relaxed);
        let head = format!("GET /v1/event/?_a=62515&_n=load&id={n} HTTP/1.1\r\nHost: a\r\n\r\n");
        let sent = connection.try_send(head.as_bytes());
        match sent.and_then(|()| connection.read_one("GET")).map(|response| response.status) {
            Ok(200) => {
                accepted.push(n);
                answered.fetch_add(1, Relaxed);
            }
            // Both edges seemed gone at once, or the balancer has closed after a thousand requests:
            // the client does not know whether the event counts.
            Ok(502 | 504) | Err(_) => connection = Connection::open(to),
            Ok(status) => panic!("answered {status}"),
        }
    }
    accepted
}

fn table(server: &Server) -> String {
    format!(
        "[[upstream]]\nname = \"log\"\nkind = \"nats\"\nurls = [\"{}\"]\nstream = \"EVENTS\"\n\
         subject = \"events\"\n[upstream.batch]\nevents_max = 50\nlinger_ms = 20\n",
        server.url("")
    )
}

/// The same folder and the same port again, as the balancer knows it.
fn start_again(dir: Arc<tempfile::TempDir>, address: SocketAddr) -> Edge {
    let config = dir.path().join("edge.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("127.0.0.1:0", &address.to_string(), 1)).unwrap();
    Edge::start_in(dir)
}

#[test]
fn what_two_edges_accepted_is_in_one_log_once_whatever_becomes_of_one_of_them() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = Server::start("");
    runtime.block_on(server.create_stream("EVENTS", &["events"]));
    let setup = Setup::default().upstreams(&table(&server));
    let (one, other) = (setup.clone().start(), setup.start());
    let balancer = Balancer::start([one.address, other.address]);

    let load = Load::start(balancer.address);
    load.go_on(EACH_ACT);
    let address = other.address;
    let dir = other.kill();
    load.go_on(EACH_ACT);
    let other = start_again(dir, address);
    load.go_on(EACH_ACT);
    wait_for("the edge that came back to take its share", || {
        other.status()["verdicts"]["accepted"].as_u64().unwrap() > 0
    });
    let answered = load.end();

    let accepted = |edge: &Edge| edge.wait_delivered("log")["accepted"].as_u64().unwrap();
    let accepted = accepted(&one) + accepted(&other);
    let stored = runtime.block_on(server.read_stream("EVENTS"));
    let ids: BTreeSet<&str> = stored.iter().map(|m| m.message_id.as_str()).collect();
    assert_eq!(accepted, ids.len() as u64, "accepted on both is what the log holds");
    assert_eq!(ids.len(), stored.len(), "and holds once");
    let number =
        |m: &crate::nats_server::Stored| m.value["external_id"].as_str().unwrap().parse().unwrap();
    let numbers: BTreeSet<u64> = stored.iter().map(number).collect();
    assert_eq!(answered.difference(&numbers).count(), 0, "every event answered 200 is there");
    println!("{} answered, {accepted} accepted by two edges and in the log", answered.len());
}
