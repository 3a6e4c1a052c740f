//! Processes: how they start, are killed and stop.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use parking_lot::Mutex;
use pixelgate::internals::clock::Clock;
use pixelgate::internals::delivery::{
    self, Backoff, CLOSE_MS_MAX, CUT_OFF_MS_MAX, Forwarder, Options, Route,
};
use pixelgate::internals::spool::{Config, Durability, Env, Spool};
use pixelgate::internals::telemetry::faults::Faults;
use pixelgate::internals::upstream::Upstream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::script::Random;
use super::{NAMES, QUIET_MAX, World};
use crate::spool_sim::SimFs;

/// A process of the edge: its spool and its delivery.
pub struct Process {
    pub fs: SimFs,
    pub spool: Spool,
    pub forwarder: Forwarder,
    pub workers: JoinSet<()>,
    pub faults: Faults,
    pub started: Instant,
    /// The upstreams that are configured, by their places in [`NAMES`].
    pub routes: Vec<usize>,
}

impl World {
    pub fn start(&mut self) {
        let config = Config {
            dir: "/spool".into(),
            durability: Durability::Interval,
            linger_ms: 0,
            sync_ms: 1_000,
            segment_bytes: self.segment_bytes,
            bytes_max: ByteSize::mib(64),
            ..Config::default()
        };
        let routes: Vec<usize> = (0..NAMES.len()).filter(|at| self.is_configured[*at]).collect();
        let names: Vec<String> = routes.iter().map(|at| NAMES[*at].to_owned()).collect();
        let (fs, faults) = (self.disk.process(), Faults::unregistered());
        let env = Env { fs: Arc::new(fs.clone()), faults: faults.clone(), ..Env::system() };
        let spool = Spool::open(&config, &names, env).expect("opens");
        let random = Mutex::new(Random(self.random.next()));
        let options = Options {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            faults: faults.clone(),
            backoff: Backoff::new(move || random.lock().unit()),
            ..Options::new(self.dead_dir.path().join("dead"))
        };
        let options = match self.tick_every {
            Some(tick_every) => Options { tick_every, ..options },
            None => options,
        };
        let route = |at: &usize| Route {
            name: NAMES[*at].to_owned(),
            upstream: Arc::clone(&self.upstreams[*at]) as Arc<dyn Upstream>,
            batch: self.batch.clone(),
            attempts_max: self.attempts_max,
            reader: spool.reader(NAMES[*at]).expect("configured"),
        };
        self.upstreams.iter().for_each(|upstream| upstream.started());
        let (forwarder, all) = delivery::prepare(routes.iter().map(route).collect(), &options);
        let mut workers = JoinSet::new();
        all.into_iter().for_each(|worker| _ = workers.spawn(worker.run()));
        let started = Instant::now();
        self.process = Some(Process { fs, spool, forwarder, workers, faults, started, routes });
        self.check_removed();
    }

    pub fn spool(&self) -> &Spool {
        &self.process.as_ref().expect("runs").spool
    }

    /// The process is killed, and another one starts.
    pub async fn crash(&mut self) {
        let mut process = self.process.take().expect("runs");
        self.upstreams.iter().for_each(|upstream| upstream.crashed());
        process.workers.shutdown().await;
        self.disk.kill(&process.fs);
        drop(process);
        self.start();
    }

    /// A graceful stop, and another process starts.
    pub async fn restart(&mut self) {
        let within = Duration::from_millis(self.random.below(20_000));
        let mut process = self.process.take().expect("runs");
        let began = Instant::now();
        process.forwarder.begin_stop(within);
        while process.workers.join_next().await.is_some() {}
        let limit = within + Duration::from_millis(CUT_OFF_MS_MAX + CLOSE_MS_MAX + 100);
        assert!(began.elapsed() <= limit, "the stop took {:?} of {limit:?}", began.elapsed());
        self.check_cut_off(began.elapsed() < within);
        for (counts, at) in process.spool.status().upstreams.iter().zip(&process.routes) {
            self.pending_at_stop[*at] = counts.pending;
        }
        process.spool.close(Duration::from_secs(60)).expect("closes");
        drop(process);
        for at in 0..NAMES.len() {
            if self.plot.replays && self.random.once_in(2) {
                self.replay(at).await;
            }
        }
        if self.plot.removes && self.random.once_in(2) {
            self.configure_other();
        }
        self.start();
    }

    /// Checks that the stop left attempts their time. What it has cut off may come again, unless it
    /// counts money: then it is a dead letter, if one can be written.
    fn check_cut_off(&self, is_early: bool) {
        for upstream in &self.upstreams {
            let (left, cut_off) = (upstream.in_flight(), upstream.take_cut_off());
            let is_cut = left > 0 || !cut_off.is_empty();
            assert!(!(is_early && is_cut), "attempts were cut off before their time");
            let counts_money = upstream.script.counts_money;
            assert!(left == 0 || !counts_money, "{left} attempts with money were left behind");
            if self.dead_fails || self.dead_changed.elapsed() < QUIET_MAX {
                upstream.allow_again(cut_off);
            }
            upstream.crashed();
        }
    }
}
