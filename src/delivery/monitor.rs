//! What can be seen of a delivery worker while it runs: its status, its lag and its faults.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use prometheus::{IntCounterVec, IntGauge};
use tokio::time::Instant;

use super::health::{Health, State};
use super::options::{Options, Route};
use super::status::Status;
use super::tracker::Tracker;
use crate::clock::Clock;
use crate::plural::counted;
use crate::spool::{Acknowledger, RUNS_MAX};
use crate::telemetry::faults::{FaultKind, Faults};

const OUTCOMES: [&str; 7] =
    ["delivered", "retry", "too_large", "rejected", "fault", "dead", "mixed"];

/// An upstream that has taken nothing for this long is a fault, in seconds.
pub const STUCK_SECONDS: u64 = 60;

/// The value of [`Monitor::unreadable_ms`] that stands for no moment.
const NEVER: u64 = u64::MAX;

/// Most bytes of records that wait in memory for another attempt, for their queue or for their
/// dead letter, before no more is read from the spool.
pub const HELD_BYTES_MAX: usize = 64 << 20;

/// A bound at which no more events are read for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// [`RUNS_MAX`] runs of delivered events lie between events that are stuck.
    Runs,
    /// [`HELD_BYTES_MAX`] bytes wait in memory, most of them after a failure.
    Bytes,
}

/// What other threads see of a delivery worker while it runs.
pub struct Monitor {
    pub name: String,
    pub health: Health,
    pub tracker: Arc<Tracker>,
    pub clock: Arc<dyn Clock>,
    kind: &'static str,
    batches: IntCounterVec,
    lag: IntGauge,
    faults: Faults,
    /// Says which events wait in lanes of the spool that are not held.
    acknowledger: Acknowledger,
    /// Since when events cannot be read from the spool or wait for an older process, in
    /// milliseconds since 1970.
    unreadable_ms: AtomicU64,
    /// When the oldest event that waits was received, in milliseconds since 1970, and since when
    /// it is the oldest one.
    oldest: Mutex<Option<(u64, Instant)>>,
    /// When the worker ran last.
    ticked_at: Mutex<Instant>,
}

impl Monitor {
    pub fn new(route: &Route, options: &Options) -> Monitor {
        let name = route.name.as_str();
        let meters = &options.meters;
        for outcome in OUTCOMES {
            // A scrape shows zeros before the first batch.
            meters.batches.with_label_values(&[name, outcome]);
        }
        Monitor {
            name: name.to_owned(),
            health: Health::new(name),
            tracker: Arc::default(),
            clock: Arc::clone(&options.clock),
            kind: route.upstream.kind(),
            batches: meters.batches.clone(),
            lag: meters.lag_seconds.with_label_values(&[name]),
            faults: options.faults.clone(),
            acknowledger: route.reader.acknowledger(),
            unreadable_ms: AtomicU64::new(NEVER),
            oldest: Mutex::default(),
            ticked_at: Mutex::new(Instant::now()),
        }
    }

    /// Counts an attempt by the label of its outcome.
    pub fn count_attempt(&self, outcome: &str) {
        self.batches.with_label_values(&[self.name.as_str(), outcome]).inc();
    }

    /// Age in seconds of the oldest event that waits; 0 if none waits. A clock that is set back
    /// makes no event younger than the time for which this process has seen it wait.
    pub fn lag_seconds(&self) -> u64 {
        let unreadable_ms = Some(self.unreadable_ms.load(Relaxed)).filter(|ms| *ms != NEVER);
        let unread_ms = unreadable_ms.into_iter().chain(self.acknowledger.unheld_ms());
        let oldest_ms = self.tracker.oldest_ms().into_iter().chain(unread_ms).min();
        let mut oldest = self.oldest.lock();
        if oldest_ms != oldest.map(|(received_ms, _)| received_ms) {
            *oldest = oldest_ms.map(|received_ms| (received_ms, Instant::now()));
        }
        let Some((received_ms, seen_at)) = *oldest else { return 0 };
        let age_ms = self.clock.unix_ms().saturating_sub(received_ms);
        seen_at.elapsed().as_secs().max(age_ms / 1000)
    }

    pub fn status(&self) -> Status {
        self.note_hanging();
        let (state, last_error) = self.health.read();
        let labels = |outcome| [self.name.as_str(), outcome];
        let count = |outcome| (outcome, self.batches.with_label_values(&labels(outcome)).get());
        self.set_lag();
        Status {
            name: self.name.clone(),
            kind: self.kind,
            state,
            trouble_seconds: self.health.trouble_seconds(),
            lag_seconds: self.lag_seconds(),
            last_error,
            outcomes: OUTCOMES.map(count).to_vec(),
        }
    }

    /// Sets the gauge of the lag.
    pub fn set_lag(&self) {
        self.lag.set(i64::try_from(self.lag_seconds()).unwrap_or(i64::MAX));
    }

    /// Sets whether the events of the spool can be read at present, and need not wait for an older
    /// process.
    pub fn set_readable(&self, readable: bool) {
        let before = self.unreadable_ms.load(Relaxed);
        match (readable, before == NEVER) {
            (true, false) => self.unreadable_ms.store(NEVER, Relaxed),
            (false, true) => self.unreadable_ms.store(self.clock.unix_ms(), Relaxed),
            _ => {}
        }
    }

    /// Raises the faults that last and clears the others. `bound`: why no more events are read
    /// although the upstream may take them.
    pub fn note_faults(&self, bound: Option<Bound>) {
        let name = &self.name;
        let error = self.health.read().1.unwrap_or_default();
        let poison = self.tracker.troubles().poison_events;
        self.note(
            FaultKind::Poison,
            poison > 0,
            || {
                let events = counted(poison as u64, "event");
                format!("{events} of upstream {name} failed often while it took others: {error}.")
            },
            "Look at what the upstream logs about these events. Their batch is tried again and \
             halved, and an event that fails alone attempts_max times becomes a dead letter.",
        );
        self.note_stuck();
        self.note(
            FaultKind::DeadLetters,
            self.health.read().0 == State::DeadLettersFailing,
            || format!("The dead letters of upstream {name} cannot be written: {error}."),
            "Their events wait on disk, and the write is tried again by itself. If the file has \
             reached its bound, send its letters again or drop them (pixelgate dead).",
        );
        self.note(
            FaultKind::RunAheadBound,
            bound.is_some(),
            || {
                let why = match bound {
                    Some(Bound::Bytes) => format!(
                        "{} MiB of them have failed and wait for another attempt",
                        HELD_BYTES_MAX >> 20
                    ),
                    _ => format!("{RUNS_MAX} of them are stuck, each between delivered ones"),
                };
                format!("No more events are read for upstream {name}: {why}.")
            },
            "The last error of the upstream says why they fail. New events wait on disk until some \
             of the stuck ones have ended.",
        );
    }

    fn note_stuck(&self) {
        let (state, last_error) = self.health.read();
        let waits = state != State::Ok && state != State::Stopped;
        let stuck = self.health.trouble_seconds().filter(|s| waits && *s >= STUCK_SECONDS);
        self.note(
            FaultKind::UpstreamStuck,
            stuck.is_some(),
            || {
                let (name, error) = (&self.name, last_error.unwrap_or_default());
                format!("Upstream {name} has taken nothing for {} s: {error}.", stuck.unwrap_or(0))
            },
            "Repair the upstream. Its events wait on disk, and delivery goes on by itself.",
        );
    }

    /// Notes that the worker runs, which calls this in each tick.
    pub fn ticked(&self) {
        *self.ticked_at.lock() = Instant::now();
    }

    /// Notes that the upstream takes nothing if the worker has not run for [`STUCK_SECONDS`],
    /// because its thread hangs in a call of the system, as on a disk that does not answer.
    fn note_hanging(&self) {
        let since = *self.ticked_at.lock();
        let seconds = since.elapsed().as_secs();
        if seconds < STUCK_SECONDS || self.health.read().0 == State::Stopped {
            return;
        }
        let why = format!("its thread has hung in a call of the system for {seconds} seconds");
        self.health.hangs(since, why);
        self.health.set(State::Down);
        self.note_stuck();
    }

    fn note(&self, kind: FaultKind, lasts: bool, text: impl FnOnce() -> String, advice: &str) {
        match lasts {
            true => self.faults.raise(kind, &self.name, text(), advice),
            false => self.faults.clear(kind, &self.name),
        }
    }

    /// Notes that the worker has ended.
    pub fn stopped(&self) {
        self.health.stopped();
        for kind in [
            FaultKind::Poison,
            FaultKind::UpstreamStuck,
            FaultKind::DeadLetters,
            FaultKind::RunAheadBound,
        ] {
            self.faults.clear(kind, &self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Config, Env, Spool};
    use crate::upstream::{Batch, BatchConfig, Outcome, Upstream};
    use async_trait::async_trait;
    use std::time::Duration;

    struct Own;

    #[async_trait]
    impl Upstream for Own {
        fn kind(&self) -> &'static str {
            "own"
        }

        async fn send(&self, _: &Batch) -> Outcome {
            Outcome::Delivered
        }
    }

    fn start() -> (tempfile::TempDir, Spool, Options, Monitor) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { dir: dir.path().join("spool"), ..Config::default() };
        let spool = Spool::open(&config, &["a".to_owned()], Env::system()).unwrap();
        let (upstream, batch) = (Arc::new(Own), BatchConfig::default());
        let reader = spool.reader("a").unwrap();
        let route = Route { name: "a".to_owned(), upstream, batch, attempts_max: 0, reader };
        let options = Options::new(dir.path().join("dead"));
        let monitor = Monitor::new(&route, &options);
        (dir, spool, options, monitor)
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_back_hides_no_event_that_waits() {
        let (_dir, spool, options, monitor) = start();
        assert_eq!(monitor.lag_seconds(), 0);
        let an_hour_ahead = options.clock.unix_ms() + 3_600_000;
        monitor.tracker.set_aside(an_hour_ahead);
        assert_eq!(monitor.lag_seconds(), 0);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(monitor.lag_seconds(), 90);
        // An older one is younger to this process.
        monitor.tracker.set_aside(an_hour_ahead - 1);
        assert_eq!(monitor.lag_seconds(), 0);
        spool.close(Duration::from_secs(10)).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_hangs_is_down_and_a_fault_until_it_runs_again() {
        let (_dir, spool, options, monitor) = start();
        tokio::time::advance(Duration::from_secs(STUCK_SECONDS - 1)).await;
        assert_eq!((monitor.status().state, options.faults.list().len()), (State::Ok, 0));
        tokio::time::advance(Duration::from_secs(2)).await;
        let status = monitor.status();
        let why = "its thread has hung in a call of the system for 61 seconds";
        assert_eq!((status.state, status.last_error.as_deref()), (State::Down, Some(why)));
        let [fault] = &options.faults.list()[..] else { panic!("one fault") };
        let text = format!("Upstream a has taken nothing for 61 s: {why}.");
        assert_eq!((fault.what, &fault.text), (FaultKind::UpstreamStuck, &text));
        monitor.ticked();
        monitor.health.delivered();
        monitor.health.set(State::Ok);
        monitor.note_faults(None);
        assert_eq!((monitor.status().state, options.faults.list().len()), (State::Ok, 0));
        spool.close(Duration::from_secs(10)).unwrap();
    }
}
