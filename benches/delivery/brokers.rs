//! Drains the same events into brokers, and compares with a producer that only produces.
//!
//! Kafka is `PIXELGATE_TEST_KAFKA=host:port`, else librdkafka's mock cluster in a process of its
//! own; NATS is a `nats-server` that is started here. The yardstick is confluent-kafka's producer
//! (Python) with the same library, settings and events, where it is installed
//! (`PIXELGATE_BENCH_PYTHON` names the interpreter): its events are in memory, and it neither reads
//! a spool nor makes JSON. Every run checks that the broker holds each event once.

use std::time::Duration;

use super::drain;

/// Fewer events than for the receiver, since a broker keeps them all.
const EVENTS_MAX: usize = 200_000;

/// Measures each broker that the build supports, and prints a line for it.
pub fn run(events: usize) {
    let events = events.min(EVENTS_MAX);
    println!("\n{events} events\nbroker                       events/s   us CPU/event");
    #[cfg(feature = "kafka")]
    kafka::run(events);
    #[cfg(feature = "nats")]
    nats::run(events);
}

#[cfg(feature = "kafka")]
pub use kafka::mock;

fn print(what: &str, events: usize, wall: Duration, cpu_us: f64) {
    let rate = events as f64 / wall.as_secs_f64();
    println!("{what:<26} {rate:>10.0} {:>14.2}", cpu_us / events as f64);
}

#[cfg(feature = "kafka")]
mod kafka {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use pixelgate::internals::event::Record;
    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::mocking::MockCluster;
    use uuid::Uuid;

    const PATIENCE: Duration = Duration::from_secs(60);
    const TOPICS: [&str; 2] = ["pixelgate", "yardstick"];
    const YARDSTICK: &str = r#"
import resource, sys, time
from confluent_kafka import Producer
brokers, topic, path = sys.argv[1:]
lines = open(path, 'rb').read().splitlines()
keys = [line.split(b'"portal":', 1)[1].split(b',', 1)[0] for line in lines]
failed = []
def report(error, message):
    if error is not None:
        failed.append(error)
producer = Producer({'bootstrap.servers': brokers, 'acks': 'all', 'enable.idempotence': True,
    'compression.type': 'zstd', 'partitioner': 'murmur2_random',
    'queue.buffering.max.messages': 100000})
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
start, used = time.monotonic(), cpu()
for key, line in zip(keys, lines):
    while True:
        try:
            producer.produce(topic, line, key, on_delivery=report, headers={'id': line[7:43]})
            break
        except BufferError:
            producer.poll(0.01)
    producer.poll(0)
assert producer.flush(60) == 0 and not failed, failed[:1]
print(time.monotonic() - start, cpu() - used)
"#;

    /// librdkafka's mock cluster, as a process: prints its address and lives until its input ends.
    pub fn mock() {
        let cluster = MockCluster::new(1).unwrap();
        for topic in TOPICS {
            cluster.create_topic(topic, 4, 1).unwrap();
        }
        println!("{}", cluster.bootstrap_servers());
        let _ = std::io::stdin().read(&mut [0]);
    }

    pub fn run(events: usize) {
        let real = std::env::var("PIXELGATE_TEST_KAFKA").ok();
        let mut mock: Option<Child> = None;
        let (brokers, topics, whose) = match real {
            Some(brokers) => {
                let fresh = |name: &str| format!("{name}-{}", Uuid::now_v7());
                (brokers, TOPICS.map(fresh), "kafka")
            }
            None => {
                let child = mock.insert(start_mock());
                let mut address = String::new();
                let out = child.stdout.take().unwrap();
                BufReader::new(out).read_line(&mut address).unwrap();
                (address.trim().to_owned(), TOPICS.map(str::to_owned), "kafka (mock)")
            }
        };
        let kind = format!("kind = 'kafka'\nbrokers = ['{brokers}']\ntopic = '{}'", topics[0]);
        let drained = super::drain(events, &kind);
        super::print(whose, events, drained.wall, drained.cpu_ns as f64 / 1000.0);
        check(&brokers, &topics[0], events);
        match yardstick(&brokers, &topics[1], events) {
            Some((wall, cpu_us)) => {
                super::print("  confluent-kafka", events, wall, cpu_us);
                check(&brokers, &topics[1], events);
            }
            None => println!("  confluent-kafka is not installed: not measured"),
        }
        if let Some(mut mock) = mock {
            drop(mock.stdin.take());
            mock.wait().unwrap();
        }
    }

    fn start_mock() -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("--mock").stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Checks that the broker holds each event once.
    fn check(brokers: &str, topic: &str, events: usize) {
        let reader: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).create().unwrap();
        let metadata = reader.fetch_metadata(Some(topic), PATIENCE).unwrap();
        let end = |partition: i32| reader.fetch_watermarks(topic, partition, PATIENCE).unwrap().1;
        let ends = metadata.topics()[0].partitions().iter().map(|p| end(p.id()));
        assert_eq!(ends.sum::<i64>(), events as i64, "each event arrives exactly once");
    }

    /// Time and CPU of confluent-kafka, where it is installed.
    fn yardstick(brokers: &str, topic: &str, events: usize) -> Option<(Duration, f64)> {
        let python = std::env::var("PIXELGATE_BENCH_PYTHON").unwrap_or("python3".into());
        let found = Command::new(&python).args(["-c", "import confluent_kafka"]).output().ok()?;
        if !found.status.success() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.ndjson");
        write_events(&path, events);
        let output = Command::new(&python)
            .args(["-c", YARDSTICK, brokers, topic])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().unwrap());
        let wall = Duration::from_secs_f64(numbers.next().unwrap());
        Some((wall, numbers.next().unwrap() * 1e6))
    }

    fn write_events(path: &Path, events: usize) {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
        let mut json = Vec::new();
        for n in 0..events {
            json.clear();
            Record::decode(&crate::record(n)).unwrap().write_json(&mut json, false);
            json.push(b'\n');
            file.write_all(&json).unwrap();
        }
        file.flush().unwrap();
    }
}

#[cfg(feature = "nats")]
mod nats {
    use async_nats::jetstream::{self, stream};

    use crate::nats as server;

    pub fn run(events: usize) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let server = server::Server::start("");
        runtime.block_on(server.create_stream("EVENTS", &["events"]));
        let kind = format!(
            "kind = 'nats'\nurls = ['{}']\nstream = 'EVENTS'\nsubject = 'events'",
            server.url("")
        );
        let drained = super::drain(events, &kind);
        super::print("nats", events, drained.wall, drained.cpu_ns as f64 / 1000.0);
        let held = runtime.block_on(async {
            let client = async_nats::connect(server.url("")).await.unwrap();
            let mut stream = jetstream::new(client).get_stream("EVENTS").await.unwrap();
            let state: stream::State = stream.info().await.unwrap().state.clone();
            state.messages
        });
        assert_eq!(held, events as u64, "each event arrives exactly once");
    }
}
