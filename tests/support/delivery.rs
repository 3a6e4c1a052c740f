//! Delivery without the edge: a spool, upstreams from a configuration, and a record of each
//! accepted event. The `delivery_*` tests use it beside `backend.rs`.
#![allow(dead_code)] // Each test uses a part of this file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{self, Waker};
use std::time::Duration;

use bytesize::ByteSize;
use pixelgate::internals::delivery;
use pixelgate::internals::delivery::dead_letters::Filter;
use pixelgate::internals::delivery::{Backoff, Forwarder, Meters, Options, Route, dead_letters};
use pixelgate::internals::event::{self, Context, Event, Revenue};
use pixelgate::internals::spool::{self, Durability, Env, Spool};
use pixelgate::internals::telemetry::faults::Faults;
use pixelgate::internals::upstream::{self, BatchConfig, Upstream};
use serde_json::Value;
use uuid::Uuid;

/// The time of acceptance in every event, in milliseconds since 1970.
pub const RECEIVED_AT_MS: u64 = 1_750_000_000_000;

/// How long attempts under way may take at a stop.
pub const STOP_WITHIN: Duration = Duration::from_secs(1);

/// After this time a wait counts as one without end, on a machine with any load.
pub const HANGS_AFTER: Duration = Duration::from_secs(600);

/// A spool and delivery from it (see the module).
pub struct Rig {
    pub dir: Arc<tempfile::TempDir>,
    pub spool: Spool,
    pub forwarder: Option<Forwarder>,
    /// The metrics of delivery.
    pub meters: Meters,
    /// The present faults.
    pub faults: Faults,
    /// The wire form of each accepted event, by id.
    pub accepted: BTreeMap<String, Value>,
    names: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Whole {
    /// Attempts after which an event is a dead letter, at upstreams that the test defines; 0:
    /// never.
    #[serde(default)]
    attempts_max: u32,
    /// The part of its upper bound that each wait after a failure lasts, 0 to 1; none: at random.
    waits: Option<f64>,
    #[serde(default)]
    batch: BatchConfig,
    #[serde(default)]
    upstream: Vec<upstream::Config>,
}

impl Rig {
    /// Opens a spool in a new folder and starts delivery by this configuration.
    pub fn start(config: &str) -> Rig {
        Rig::start_in(Arc::new(tempfile::tempdir().unwrap()), config, Vec::new())
    }

    /// The same, with upstreams that the test defines.
    pub fn start_with(own: Vec<(&str, Arc<dyn Upstream>)>, config: &str) -> Rig {
        Rig::start_in(Arc::new(tempfile::tempdir().unwrap()), config, own)
    }

    /// The same, in the folder of an earlier rig.
    pub fn start_in(
        dir: Arc<tempfile::TempDir>,
        config: &str,
        own: Vec<(&str, Arc<dyn Upstream>)>,
    ) -> Rig {
        let whole: Whole = toml::from_str(config).unwrap_or_else(|e| panic!("{e}"));
        let mut all: Vec<(String, Arc<dyn Upstream>, BatchConfig, u32)> = Vec::new();
        for c in upstream::Config::validate_all(&whole.upstream).unwrap() {
            let batch = c.batch.over(&whole.batch);
            all.push((c.name.clone(), c.build().unwrap(), batch, c.attempts_max));
        }
        for (name, upstream) in own {
            all.push((name.to_owned(), upstream, whole.batch.clone(), whole.attempts_max));
        }
        let names: Vec<String> = all.iter().map(|(name, ..)| name.clone()).collect();
        let spool = open_spool(dir.path(), &names);
        let routes = all.into_iter().map(|(name, upstream, batch, attempts_max)| {
            let reader = spool.reader(&name).unwrap();
            Route { name, upstream, batch, attempts_max, reader }
        });
        let mut options = Options::new(dir.path().join("dead"));
        if let Some(part) = whole.waits {
            options.backoff = Backoff::new(move || part);
        }
        let faults = options.faults.clone();
        let meters = options.meters.clone();
        let forwarder = Some(delivery::start(routes.collect(), options));
        let accepted = BTreeMap::new();
        Rig { dir, spool, forwarder, meters, faults, accepted, names }
    }

    /// Accepts `count` events of a thousand portals.
    pub fn accept(&mut self, count: usize) {
        let first = self.accepted.len();
        self.accept_all((first..first + count).map(sample));
    }

    /// Accepts these events.
    pub fn accept_all<'a>(&mut self, events: impl IntoIterator<Item = Event<'a>>) {
        let commits: Vec<_> = events.into_iter().map(|event| self.append(&event)).collect();
        commits.into_iter().for_each(wait);
    }

    /// Waits until `done` holds for the spool's counts. Panics after [`HANGS_AFTER`].
    pub async fn until_counts(
        &self,
        upstream: &str,
        done: impl Fn(&spool::UpstreamStatus) -> bool,
    ) {
        let wait = async {
            while !done(&self.counts(upstream)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(HANGS_AFTER, wait).await;
        waited.unwrap_or_else(|_| panic!("{:?}", self.counts(upstream)));
    }

    /// How many events were accepted.
    pub fn accepted_count(&self) -> usize {
        self.accepted.len()
    }

    /// Accepts one event.
    pub fn accept_event(&mut self, event: &Event<'_>) {
        wait(self.append(event));
    }

    /// Accepts one event that came in this context.
    pub fn accept_event_in(&mut self, event: &Event<'_>, context: &Context<'_>) {
        wait(self.append_in(event, context));
    }

    fn append(&mut self, event: &Event<'_>) -> spool::Commit {
        self.append_in(event, &context())
    }

    fn append_in(&mut self, event: &Event<'_>, context: &Context<'_>) -> spool::Commit {
        let id = Uuid::now_v7();
        let mut record = Vec::new();
        event::encode_record(&mut record, id.as_bytes(), RECEIVED_AT_MS, event, context);
        let mut json = Vec::new();
        event::Record::decode(&record).unwrap().write_json(&mut json, false);
        self.accepted.insert(id.to_string(), serde_json::from_slice(&json).unwrap());
        self.spool.append(|out| out.extend_from_slice(&record)).unwrap()
    }

    /// Waits until each accepted event is delivered or a dead letter at this upstream. Panics after
    /// [`HANGS_AFTER`].
    pub async fn settled(&self, upstream: &str) {
        let wait = async {
            let ended = |c: spool::UpstreamStatus| c.delivered + c.dead;
            while ended(self.counts(upstream)) < self.accepted.len() as u64 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(HANGS_AFTER, wait).await;
        waited.unwrap_or_else(|_| panic!("{upstream}: {:?}", self.counts(upstream)));
    }

    /// The spool's counts for an upstream. Checks the identity of SPEC 7.
    pub fn counts(&self, upstream: &str) -> spool::UpstreamStatus {
        let status = self.spool.status();
        let counts = status.upstreams.into_iter().find(|u| u.name == upstream).unwrap();
        let sum = counts.delivered + counts.dead + counts.pending + counts.lost;
        assert_eq!(counts.accepted, sum, "{counts:?}");
        assert_eq!(counts.lost, 0);
        counts
    }

    pub fn status(&self, upstream: &str) -> delivery::Status {
        let all = self.forwarder.as_ref().unwrap().status();
        all.into_iter().find(|s| s.name == upstream).unwrap()
    }

    /// Waits until `done` holds for the upstream's status. Panics after [`HANGS_AFTER`].
    pub async fn until(&self, upstream: &str, done: impl Fn(&delivery::Status) -> bool) {
        let wait = async {
            while !done(&self.status(upstream)) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let waited = tokio::time::timeout(HANGS_AFTER, wait).await;
        waited.unwrap_or_else(|_| panic!("{:?}", self.status(upstream)));
    }

    pub fn dead_dir(&self) -> PathBuf {
        self.dir.path().join("dead")
    }

    /// The dead letters of an upstream.
    pub fn dead(&self, upstream: &str) -> Vec<dead_letters::Letter> {
        let mut letters = Vec::new();
        let show = |letter: &dead_letters::Letter| letters.push(letter.clone());
        let summary =
            dead_letters::list(&self.dead_dir(), upstream, &Filter::default(), show).unwrap();
        assert_eq!(summary.damaged, 0);
        letters
    }

    /// Replays all dead letters of an upstream.
    pub async fn replay(
        &self,
        name: &str,
        upstream: &dyn Upstream,
        batch: &BatchConfig,
    ) -> dead_letters::Progress {
        let (_stop, stopping) = tokio::sync::watch::channel(false);
        let filter = Filter::default();
        dead_letters::replay(&self.dead_dir(), name, upstream, batch, &filter, stopping, |_| ())
            .await
            .unwrap()
    }

    /// Compares the events that an upstream took, and its dead letters, with the accepted events:
    /// no event is missing, none was never accepted, and every payload is unchanged. Returns the
    /// number of duplicates among the events taken.
    pub fn check(&self, upstream: &str, taken: &[Value]) -> usize {
        let mut delivered = BTreeSet::new();
        let mut duplicates = 0;
        for event in taken {
            let id = self.check_payload(event);
            duplicates += usize::from(!delivered.insert(id));
        }
        let mut ended = delivered;
        for letter in self.dead(upstream) {
            let event: Value = serde_json::from_str(letter.event.as_ref().unwrap().get()).unwrap();
            let id = self.check_payload(&event);
            assert_eq!(letter.id().unwrap().to_string(), id);
            ended.insert(id);
        }
        let missing = self.accepted.len() - ended.len();
        assert_eq!(missing, 0, "accepted events that are neither delivered nor dead letters");
        assert_eq!(self.counts(upstream).pending, 0);
        duplicates
    }

    fn check_payload(&self, event: &Value) -> String {
        let id = event["id"].as_str().expect("an event has an id").to_owned();
        let expect = self.accepted.get(&id).expect("an event that was never accepted");
        assert_eq!(event, expect);
        id
    }

    /// Stops delivery and closes the spool, as a graceful stop does. Returns the folder.
    pub async fn stop(mut self) -> Arc<tempfile::TempDir> {
        self.forwarder.take().unwrap().stop(STOP_WITHIN).await;
        self.spool.close(Duration::from_secs(10)).unwrap();
        self.dir
    }
}

/// Waits in real time, as the spool's own threads work: paused time would run ahead of them. The
/// readers of a spool are woken before it answers, so its workers read the event before a test on
/// paused time goes on.
fn wait(commit: spool::Commit) {
    let mut context = task::Context::from_waker(Waker::noop());
    let mut commit = pin!(commit);
    let until = std::time::Instant::now() + HANGS_AFTER;
    while commit.as_mut().poll(&mut context).map(Result::unwrap).is_pending() {
        assert!(std::time::Instant::now() < until, "the spool does not answer");
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn open_spool(dir: &Path, names: &[String]) -> Spool {
    let config = spool::Config {
        dir: dir.join("spool"),
        durability: Durability::Interval,
        linger_ms: 0,
        sync_ms: 1_000,
        // However loaded the machine is.
        commit_seconds_max: 60,
        bytes_max: ByteSize::mib(256),
        free_bytes_min: ByteSize::mib(1),
        segment_bytes: ByteSize::mib(4),
        ..spool::Config::default()
    };
    Spool::open(&config, names, Env::system()).unwrap()
}

/// The nth event: of one of a thousand portals, some with revenue, some with awkward text.
pub fn sample(n: usize) -> Event<'static> {
    let mut properties = event::Properties::new();
    properties.push(("favorite_color".into(), "orange \"and\"\nblue".into()));
    properties.push(("n".into(), n.to_string().into()));
    Event {
        portal: 1 + (n % 1000) as u64,
        name: "000000001625".into(),
        email: Some(format!("person{n}@company.com").into()),
        revenue: n.is_multiple_of(5).then(|| Revenue::parse("20.5").unwrap()),
        external_id: n.is_multiple_of(3).then(|| format!("ext-{n}").into()),
        properties,
    }
}

/// The context of every sample event.
pub fn context() -> Context<'static> {
    Context {
        ip: Some("203.0.113.7".parse().unwrap()),
        user_agent: Some("Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101".into()),
        referer: Some("https://shop.example/\u{e9}?a=\"b\"".into()),
        gpc: true,
        ..Context::default()
    }
}
