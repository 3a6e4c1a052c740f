//! A NATS server with JetStream, on a port that the kernel chooses, which can be killed and started
//! again on its folder; and a reader of its streams that knows nothing of pixelgate.
#![allow(dead_code)] // No test uses all of it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, stream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Messages that a reader of a stream asks for at once.
const ASKED_AT_ONCE: usize = 64;

/// A running server.
pub struct Server {
    child: Child,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

/// A message as it lies in a stream.
#[derive(Debug, Clone)]
pub struct Stored {
    pub subject: String,
    pub message_id: String,
    pub value: Value,
}

impl Server {
    /// Starts a server with these lines in its configuration.
    pub fn start(lines: &str) -> Server {
        // The port is free when the kernel names it; if another process takes it before the
        // server does, the server ends, and another port is tried.
        (0..10).find_map(|_| Server::try_start(lines)).expect("nats-server runs (is it installed?)")
    }

    fn try_start(lines: &str) -> Option<Server> {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let config = format!(
            "listen: \"{address}\"\njetstream {{\n  store_dir: \"{at}/store\"\n}}\n{lines}\n"
        );
        std::fs::write(dir.path().join("nats.conf"), config).unwrap();
        let child = spawn(dir.path());
        let mut server = Server { child, address, dir };
        server.listens().then_some(server)
    }

    fn listens(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "nats-server neither listens nor ends");
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after [`Server::kill`]: same port, same folder.
    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path());
        assert!(self.listens(), "nats-server does not start again");
    }

    /// Sends it a signal: `STOP` makes a server that takes everything and answers nothing.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its URL, with `login` before the address: empty, or credentials with their `@`.
    pub fn url(&self, login: &str) -> String {
        format!("nats://{login}{}", self.address)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A client of the test's own.
    pub async fn jetstream(&self, options: ConnectOptions) -> jetstream::Context {
        jetstream::new(options.connect(self.url("")).await.unwrap())
    }

    /// Makes a stream that takes these subjects.
    pub async fn create_stream(&self, name: &str, subjects: &[&str]) {
        let config = stream::Config {
            name: name.to_owned(),
            subjects: subjects.iter().map(ToString::to_string).collect(),
            ..stream::Config::default()
        };
        self.create(config).await;
    }

    /// Makes a stream.
    pub async fn create(&self, config: stream::Config) {
        self.jetstream(ConnectOptions::new()).await.create_stream(config).await.unwrap();
    }

    /// Everything in a stream, from its first message to its present last one.
    pub async fn read_stream(&self, name: &str) -> Vec<Stored> {
        read_stream(&self.jetstream(ConnectOptions::new()).await, name).await
    }
}

/// Everything in a stream, from its first message to its present last one.
pub async fn read_stream(jetstream: &jetstream::Context, name: &str) -> Vec<Stored> {
    let mut stream = jetstream.get_stream(name).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let stream = Arc::new(stream);
    let places = Arc::new(Semaphore::new(ASKED_AT_ONCE));
    let mut asking = JoinSet::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let place = Arc::clone(&places).acquire_owned().await.unwrap();
        let stream = Arc::clone(&stream);
        asking.spawn(async move {
            let message = stream.get_raw_message(sequence).await.unwrap();
            drop(place);
            Stored {
                subject: message.subject.to_string(),
                message_id: message.headers.get("Nats-Msg-Id").unwrap().to_string(),
                value: serde_json::from_slice(&message.payload).unwrap(),
            }
        });
    }
    let stored = asking.join_all().await;
    assert_eq!(stored.len() as u64, state.messages);
    stored
}

/// The events among these messages.
pub fn events(stored: &[Stored]) -> Vec<Value> {
    stored.iter().map(|message| message.value.clone()).collect()
}

fn spawn(dir: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("nats.log"));
    Command::new(program())
        .arg("-c")
        .arg(dir.join("nats.conf"))
        .stdout(Stdio::null())
        .stderr(log.unwrap())
        .spawn()
        .expect("nats-server is installed")
}

/// The path of the program: distributions put it in a folder that is not in the `PATH` of users.
fn program() -> PathBuf {
    let at = Path::new("/usr/sbin/nats-server");
    if at.exists() { at.to_owned() } else { "nats-server".into() }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("nats.log"));
            eprintln!("--- the server's log:\n{}", log.unwrap_or_default());
        }
    }
}
