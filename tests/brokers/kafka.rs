//! The `kafka` upstream against librdkafka's mock cluster, which fails in the ways a test asks
//! for, and against a real broker where there is one: `PIXELGATE_TEST_KAFKA=host:port`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use crate::authority::Authority;
use crate::cluster::{Stored, events, read_topic};
use crate::delivery::{RECEIVED_AT_MS, Rig, sample};
use crate::harness::{self, Setup, wait_for};
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::event::Event;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsAcceptor;

const BROKERS: i32 = 3;
const PARTITIONS: i32 = 4;

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> Cluster {
    let cluster = MockCluster::new(BROKERS).unwrap();
    cluster.create_topic("events", PARTITIONS, BROKERS).unwrap();
    cluster
}

fn upstream(brokers: &str, rest: &str) -> String {
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'log'\nkind = 'kafka'\nbrokers = ['{brokers}']\ntopic = 'events'\n\
         {rest}\n"
    )
}

fn start(cluster: &Cluster, rest: &str) -> Rig {
    Rig::start(&upstream(&cluster.bootstrap_servers(), rest))
}

/// Waits for 300 events to arrive, none of them as a dead letter; gives what lies in the topic.
async fn check_all_arrive(cluster: &Cluster, mut rig: Rig) -> (Vec<Stored>, usize) {
    rig.accept(300);
    rig.settled("log").await;
    let stored = read_topic(&cluster.bootstrap_servers(), "events");
    let duplicates = rig.check("log", &events(&stored));
    assert_eq!(rig.counts("log").dead, 0);
    rig.stop().await;
    (stored, duplicates)
}

fn fail_produce(cluster: &Cluster, error: RDKafkaRespErr, times: usize) {
    cluster.request_errors(RDKafkaApiKey::Produce, &vec![error; times]);
}

fn all_brokers(each: impl Fn(i32)) {
    (1..=BROKERS).for_each(each);
}

/// An address that refuses connections until `open`, and leads to the first broker of a cluster
/// from then on. The mock's own way to stop a broker gives its port back for a moment and aborts
/// the process if another one takes it meanwhile.
struct Door(TcpSocket);

impl Door {
    fn closed() -> (Door, String) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        (Door(socket), address)
    }

    fn open(self, cluster: &Cluster) {
        let listener = self.0.listen(16).unwrap();
        let broker = cluster.bootstrap_servers().split(',').next().unwrap().to_owned();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let broker = broker.clone();
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(broker).await.unwrap();
                    // The end of either side is the end of the connection.
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
    }
}

#[tokio::test]
async fn an_event_is_a_message_with_its_id_its_time_and_its_portal_as_key() {
    let cluster = cluster();
    let (stored, duplicates) = check_all_arrive(&cluster, start(&cluster, "")).await;
    assert_eq!((stored.len(), duplicates), (300, 0));
    let mut partitions: BTreeMap<Vec<u8>, BTreeSet<i32>> = BTreeMap::new();
    for message in &stored {
        assert_eq!(message.headers["id"], message.value["id"].as_str().unwrap().as_bytes());
        assert_eq!(message.headers.len(), 1);
        assert_eq!(message.timestamp_ms, Some(i64::try_from(RECEIVED_AT_MS).unwrap()));
        let key = message.key.clone().unwrap();
        assert_eq!(key, message.value["portal"].to_string().into_bytes());
        partitions.entry(key).or_default().insert(message.partition);
    }
    assert!(partitions.values().all(|p| p.len() == 1), "a portal has one partition");
    assert!(stored.iter().map(|m| m.partition).collect::<BTreeSet<_>>().len() > 1);
}

#[tokio::test]
async fn the_key_is_what_was_asked_for() {
    let cluster = cluster();
    let mut rig = start(&cluster, "key = 'email'");
    rig.accept(20);
    rig.accept_event(&Event { email: None, ..sample(20) });
    rig.settled("log").await;
    for message in read_topic(&cluster.bootstrap_servers(), "events") {
        let email = message.value.get("email").map(|e| e.as_str().unwrap().as_bytes().to_vec());
        assert_eq!(message.key, email);
    }
    rig.stop().await;

    let cluster = self::cluster();
    let (stored, _) = check_all_arrive(&cluster, start(&cluster, "key = 'none'")).await;
    assert!(stored.iter().all(|message| message.key.is_none()));
}

#[tokio::test]
async fn what_a_broker_refuses_for_now_is_sent_again_and_is_there_once() {
    use RDKafkaRespErr::*;
    for error in [
        RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
    ] {
        let cluster = cluster();
        fail_produce(&cluster, error, 3);
        let (_, duplicates) = check_all_arrive(&cluster, start(&cluster, "")).await;
        assert_eq!(duplicates, 0, "{error:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_costs_no_event() {
    let cluster = cluster();
    // The mock closes the connection instead of answering. It does not look at sequence numbers, as
    // a broker does, so what was in other requests on it may be there twice.
    fail_produce(&cluster, RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT, 3);
    check_all_arrive(&cluster, start(&cluster, "")).await;
}

#[tokio::test]
async fn a_cluster_that_is_down_gets_everything_when_it_is_back() {
    let cluster = cluster();
    let (door, address) = Door::closed();
    let mut rig = Rig::start(&upstream(&address, "timeout_seconds = 1"));
    rig.accept(100);
    rig.until("log", |s| s.last_error.is_some()).await;
    assert_eq!(rig.counts("log").delivered, 0);
    let error = rig.status("log").last_error.unwrap();
    assert!(error.contains("no broker can be reached"), "{error}");
    door.open(&cluster);
    check_all_arrive(&cluster, rig).await;
}

#[tokio::test]
async fn a_broker_that_is_too_slow_costs_an_attempt_and_no_event() {
    let cluster = cluster();
    all_brokers(|n| cluster.broker_round_trip_time(n, Duration::from_secs(3)).unwrap());
    let mut rig = start(&cluster, "timeout_seconds = 1");
    rig.accept(100);
    rig.until("log", |s| s.last_error.is_some()).await;
    all_brokers(|n| cluster.broker_round_trip_time(n, Duration::ZERO).unwrap());
    check_all_arrive(&cluster, rig).await;
}

#[tokio::test]
async fn an_event_that_is_too_large_is_a_dead_letter_and_the_others_arrive() {
    let cluster = cluster();
    let mut rig = start(&cluster, "properties = { 'message.max.bytes' = 2000 }");
    rig.accept(30);
    let mut large = sample(30);
    large.properties.push(("note".into(), "x".repeat(3000).into()));
    rig.accept_event(&large);
    rig.accept(30);
    rig.settled("log").await;
    let stored = read_topic(&cluster.bootstrap_servers(), "events");
    assert_eq!((stored.len(), rig.check("log", &events(&stored))), (60, 0));
    let dead = rig.dead("log");
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].reason, Reason::TooLarge);
    rig.stop().await;
}

#[tokio::test]
async fn a_request_that_is_too_large_says_nothing_about_one_event() {
    let cluster = cluster();
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    // As many as there may be requests for the first batch: one for each partition.
    fail_produce(&cluster, too_large, PARTITIONS as usize);
    check_all_arrive(&cluster, start(&cluster, "")).await;

    let cluster = self::cluster();
    let mut rig = start(&cluster, "");
    fail_produce(&cluster, too_large, 1);
    rig.accept(1);
    rig.settled("log").await;
    assert_eq!(rig.counts("log").dead, 0, "no other batch is sent while it is tried");
    rig.stop().await;

    let mut rig = start(&cluster, "");
    fail_produce(&cluster, too_large, 2);
    rig.accept(1);
    rig.settled("log").await;
    assert_eq!(rig.dead("log")[0].reason, Reason::TooLarge);
    rig.stop().await;
}

#[tokio::test]
async fn what_only_an_operator_can_set_right_waits_for_it() {
    use RDKafkaRespErr::*;
    for error in [
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED,
        RD_KAFKA_RESP_ERR_INVALID_REQUIRED_ACKS,
    ] {
        let cluster = cluster();
        fail_produce(&cluster, error, 200);
        let mut rig = start(&cluster, "");
        rig.accept(10);
        rig.until("log", |s| s.state.as_str() == "misconfigured").await;
        assert_eq!(rig.counts("log").dead, 0);
        cluster.clear_request_errors(RDKafkaApiKey::Produce);
        check_all_arrive(&cluster, rig).await;
    }
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_a_wrong_configuration() {
    let cluster = cluster();
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.topic_error("events", unknown).unwrap();
    let mut rig = start(&cluster, "properties = { 'topic.metadata.propagation.max.ms' = 100 }");
    rig.accept(10);
    rig.until("log", |s| s.state.as_str() == "misconfigured").await;
    cluster.topic_error("events", RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap();
    check_all_arrive(&cluster, rig).await;
}

async fn check_misconfigured(config: &str, word: &str) {
    let mut rig = Rig::start(config);
    rig.accept(10);
    rig.until("log", |s| s.state.as_str() == "misconfigured").await;
    let error = rig.status("log").last_error.unwrap();
    assert!(error.contains(word) && !error.contains("s3cret"), "{error}");
    assert_eq!((rig.counts("log").delivered, rig.counts("log").dead), (0, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_broker_that_is_not_trusted_is_a_wrong_configuration() {
    let (certificate, key) = Authority::new().sign("localhost");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broker = format!("localhost:{}", listener.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    let rest = "timeout_seconds = 2\nproperties = { security.protocol = 'ssl' }";
    check_misconfigured(&upstream(&broker, rest), "TLS").await;
}

/// As much of a broker as refuses a password: it answers `ApiVersions` (18), `SaslHandshake` (17)
/// and `SaslAuthenticate` (36) after the Kafka protocol guide, and returns the error of each
/// refused user.
async fn refuse_passwords(mut stream: tokio::net::TcpStream) -> std::io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        let mut request = vec![0; length as usize];
        stream.read_exact(&mut request).await?;
        let number = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
        let (api, version) = (number(0), number(2));
        // The correlation id comes back.
        let mut answer = request[4..8].to_vec();
        match api {
            // In any version but 0: that the version is not known (35), and which ones are.
            18 => {
                answer.extend_from_slice(if version == 0 { b"\0\0" } else { b"\0\x23" });
                let known = [(0, 3), (3, 4), (17, 1), (18, 0), (22, 1), (36, 0)];
                answer.extend_from_slice(&[0, 0, 0, known.len() as u8]);
                answer.extend(known.iter().flat_map(|(api, max)| [0, *api, 0, 0, 0, *max]));
            }
            17 => answer.extend_from_slice(b"\0\0\0\0\0\x01\0\x05PLAIN"),
            36 => answer.extend_from_slice(b"\0\x3a\0\x0es3cret unknown\0\0\0\0"),
            other => panic!("asked for {other}"),
        }
        stream.write_u32(answer.len() as u32).await?;
        stream.write_all(&answer).await?;
    }
}

#[tokio::test]
async fn a_password_that_is_refused_is_a_wrong_configuration() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let broker = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(refuse_passwords(stream));
        }
    });
    let rest = "timeout_seconds = 2\n[upstream.properties]\nsecurity.protocol = 'sasl_plaintext'\n\
                sasl.mechanism = 'PLAIN'\nsasl.username = 'edge'\nsasl.password = 's3cret'\n";
    check_misconfigured(&upstream(&broker, rest), "authentication").await;
}

#[tokio::test]
async fn a_producer_that_has_lost_its_place_is_replaced() {
    let cluster = cluster();
    let mut rig = start(&cluster, "");
    rig.accept(20);
    rig.settled("log").await;
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
    fail_produce(&cluster, lost, 1);
    rig.accept(20);
    rig.until("log", |s| s.last_error.is_some()).await;
    check_all_arrive(&cluster, rig).await;
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let cluster = cluster();
    let rest = "properties = { queue.buffering.max.messages = 7 }";
    let rig = start(&cluster, rest);
    let (_, duplicates) = check_all_arrive(&cluster, rig).await;
    assert_eq!(duplicates, 0);
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_cluster_that_is_down() {
    let (_door, address) = Door::closed();
    let mut rig = Rig::start(&upstream(&address, "timeout_seconds = 300"));
    rig.accept(10);
    let stop = tokio::time::timeout(Duration::from_secs(60), rig.stop());
    stop.await.expect("it does not wait for five minutes");
}

#[test]
fn a_check_asks_no_broker() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = listener.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let table = format!(
        "[[upstream]]\nname = \"log\"\nkind = \"kafka\"\nbrokers = [\"{broker}\"]\n\
         topic = \"events\"\nproperties = {{ sasl.username = \"u\" }}\n"
    );
    let config = Setup::default().upstreams(&table).write(dir.path());
    let output = harness::command(&config, &["check"]).output().unwrap();
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(said.contains("upstream log: kafka"), "{said}");
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "a client connected");
}

#[test]
fn a_log_line_holds_neither_an_address_nor_a_secret() {
    let cluster = cluster();
    let table = format!(
        "[[upstream]]\nname = \"log\"\nkind = \"kafka\"\nbrokers = [\"{}\", \"127.0.0.1:1\"]\n\
         topic = \"events\"\nkey = \"email\"\ntimeout_seconds = 1\n\
         properties = {{ debug = \"all\", sasl.password = \"c2VjcmV0\" }}\n\
         [upstream.batch]\nlinger_ms = 5\n",
        cluster.bootstrap_servers()
    );
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().upstreams(&table).write(dir.path());
    let edge = harness::Edge::start_with(dir, &[("RUST_LOG", "debug")]);
    let event =
        |n: i32| edge.event(&format!("_a=62515&_n=a&email=person{n}@company.com&note=n0te"));
    assert_eq!(event(0).status, 200);
    edge.wait_delivered("log");
    // Each request is a connection that breaks, which librdkafka logs with the broker's address.
    fail_produce(&cluster, RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT, 100_000);
    assert_eq!(event(1).status, 200);
    wait_for("an attempt to fail", || !edge.upstream("log")["last_error"].is_null());
    cluster.clear_request_errors(RDKafkaApiKey::Produce);
    edge.wait_delivered("log");
    let log = edge.log();
    assert!(log.contains("librdkafka"), "{log}");
    for secret in ["person", "company.com", "n0te", "c2VjcmV0"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// The same on a broker that is no mock: `PIXELGATE_TEST_KAFKA=host:port`, where topics are made
/// when they are written to.
#[tokio::test]
async fn a_real_broker_keeps_every_event() {
    let Ok(brokers) = std::env::var("PIXELGATE_TEST_KAFKA") else {
        println!("skipped: PIXELGATE_TEST_KAFKA=host:port names no broker");
        return;
    };
    let topic = format!("pixelgate-{}", uuid::Uuid::now_v7());
    let config = upstream(&brokers, "").replace("'events'", &format!("'{topic}'"));
    let mut rig = Rig::start(&config);
    rig.accept(2000);
    rig.settled("log").await;
    let stored = read_topic(&brokers, &topic);
    assert_eq!(rig.check("log", &events(&stored)), 0);
    println!("topic {topic} holds {} events", stored.len());
    rig.stop().await;
}
