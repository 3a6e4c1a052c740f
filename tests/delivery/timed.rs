//! An upstream on the test's clock.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::delivery::Rig;
use async_trait::async_trait;
use pixelgate::internals::event::Record;
use pixelgate::internals::upstream::{Batch, Outcome, Upstream};
use tokio::time::{Instant, sleep};

type Judge = Box<dyn Fn(usize, &Batch) -> (Duration, Outcome) + Send + Sync>;

/// Answers each attempt as `judge` says, after the time that it says.
pub struct Timed {
    judge: Judge,
    in_order: bool,
    /// When each attempt began.
    pub begun: Mutex<Vec<Instant>>,
    pub in_flight: AtomicUsize,
    pub in_flight_max: AtomicUsize,
    /// See `Upstream::settings_version`.
    pub settings: AtomicU64,
}

impl Timed {
    pub fn new(
        judge: impl Fn(usize, &Batch) -> (Duration, Outcome) + Send + Sync + 'static,
    ) -> Arc<Timed> {
        Timed::with_order(false, judge)
    }

    pub fn with_order(
        in_order: bool,
        judge: impl Fn(usize, &Batch) -> (Duration, Outcome) + Send + Sync + 'static,
    ) -> Arc<Timed> {
        Arc::new(Timed {
            judge: Box::new(judge),
            in_order,
            begun: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
            settings: AtomicU64::new(0),
        })
    }

    pub fn rig(self: &Arc<Self>, config: &str) -> Rig {
        Rig::start_with(vec![("own", Arc::clone(self) as Arc<dyn Upstream>)], config)
    }
}

/// The number that each sample event carries.
pub fn number(record: &[u8]) -> usize {
    let record = Record::decode(record).unwrap();
    let json: serde_json::Value = serde_json::from_str(record.event_json).unwrap();
    json["properties"]["n"].as_str().unwrap().parse().unwrap()
}

#[async_trait]
impl Upstream for Timed {
    fn kind(&self) -> &'static str {
        "timed"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let attempt = {
            let mut begun = self.begun.lock().unwrap();
            begun.push(Instant::now());
            begun.len() - 1
        };
        self.in_flight_max.fetch_max(self.in_flight.fetch_add(1, SeqCst) + 1, SeqCst);
        let (takes, outcome) = (self.judge)(attempt, batch);
        sleep(takes).await;
        self.in_flight.fetch_sub(1, SeqCst);
        outcome
    }

    fn concurrency_max(&self) -> usize {
        4
    }

    fn keeps_portal_order(&self) -> bool {
        self.in_order
    }

    fn settings_version(&self) -> u64 {
        self.settings.load(SeqCst)
    }
}
