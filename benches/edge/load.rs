//! A load generator that costs little: one thread, one runtime, requests written as they are.

use crate::client::Client;
use crate::server::Server;
use crate::workload::Workload;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections that are opened at once: fewer than a listener's queue holds.
const OPENED_AT_ONCE: usize = 64;
/// Longest time for a load and its last answers; after it a request was lost.
const PATIENCE: Duration = Duration::from_secs(120);
/// Fewest connections for which memory per connection is measured.
const MANY: usize = 1000;

/// When a load ends.
#[derive(Clone, Copy)]
pub enum Until {
    Over(Duration),
    Answered(u64),
}

/// The figures of one round.
pub struct Sample {
    pub per_second: f64,
    /// The server's CPU time, in microseconds per request.
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// Growth of the server's resident memory per connection, in KiB, until all connections are
    /// open and answered once; from [`MANY`] connections on.
    pub connection_kib: Option<f64>,
}

/// Loads a server. Its CPU time is measured until it has no work left for what it has answered.
pub fn run(workload: &Workload, server: &mut Server, until: Until) -> Sample {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let resident_kib = server.resident_kib();
    let clients = runtime.block_on(open(workload, server));
    let grown_kib = server.resident_kib() - resident_kib;
    server.settle();
    let cpu = server.cpu();
    let began = Instant::now();
    let (clients, mut latencies) = runtime.block_on(ask(workload.pace, clients, until));
    let elapsed = began.elapsed();
    assert!(!latencies.is_empty(), "the server answered nothing in {elapsed:?}");
    server.answered += latencies.len() as u64;
    server.settle();
    let cpu = server.cpu() - cpu;
    // Only now, because closing persistent connections is not part of a request's cost.
    drop(clients);
    latencies.sort_unstable();
    let at = |share: f64| f64::from(latencies[(latencies.len() as f64 * share) as usize]);
    Sample {
        per_second: latencies.len() as f64 / elapsed.as_secs_f64(),
        cpu_us: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
        p50_us: at(0.5),
        p99_us: at(0.99),
        p999_us: at(0.999),
        connection_kib: (workload.connections >= MANY)
            .then_some(grown_kib / workload.connections as f64),
    }
}

/// Opens all persistent connections and sends one request on each.
async fn open(workload: &Workload, server: &mut Server) -> Vec<Client> {
    let clients = Client::all(workload, server.address).await;
    server.answered += clients.len() as u64;
    let room = Arc::new(Semaphore::new(OPENED_AT_ONCE));
    let open = |mut client: Client| {
        let room = Arc::clone(&room);
        tokio::spawn(async move {
            let _room = room.acquire().await;
            client.ask().await;
            client
        })
    };
    answered(clients.into_iter().map(open).collect()).await
}

/// Sends requests until the end; returns the latencies in microseconds.
async fn ask(pace: Option<u32>, clients: Vec<Client>, until: Until) -> (Vec<Client>, Vec<u32>) {
    let turns = Arc::new(Turns::new(pace, until));
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while let Some(due) = turns.next().await {
                    client.ask().await;
                    let took = due.elapsed().as_micros();
                    latencies.push(u32::try_from(took).unwrap_or(u32::MAX));
                }
                (client, latencies)
            })
        })
        .collect();
    turns.keep_pace().await;
    let (clients, latencies): (Vec<_>, Vec<_>) = answered(tasks).await.into_iter().unzip();
    (clients, latencies.concat())
}

/// Waits for all tasks, at most [`PATIENCE`].
async fn answered<T>(tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    let all = async {
        let mut all = Vec::with_capacity(tasks.len());
        for task in tasks {
            all.push(task.await.expect("the answers are right"));
        }
        all
    };
    tokio::time::timeout(PATIENCE, all).await.expect("a request was never answered")
}

/// Gives out the requests of a load to its clients, at once or at a constant pace.
struct Turns {
    began: Instant,
    until: Until,
    taken: AtomicU64,
    /// Seconds between two requests, where their pace is set.
    interval: Option<f64>,
    due: Semaphore,
}

impl Turns {
    fn new(pace: Option<u32>, until: Until) -> Turns {
        let interval = pace.map(|pace| 1.0 / f64::from(pace));
        let (taken, due) = (AtomicU64::new(0), Semaphore::new(0));
        Turns { began: Instant::now(), until, taken, interval, due }
    }

    fn is_over(&self, turn: u64) -> bool {
        match self.until {
            Until::Over(time) => self.began.elapsed() >= time,
            Until::Answered(count) => turn >= count,
        }
    }

    /// Waits for a turn and returns the time at which it was due. Latency counts from that time, so
    /// it includes the wait for a free connection: otherwise a slow server would get fewer requests
    /// and look better.
    async fn next(&self) -> Option<Instant> {
        if self.interval.is_some() {
            self.due.acquire().await.ok()?.forget();
        }
        let turn = self.taken.fetch_add(1, Relaxed);
        if self.is_over(turn) {
            return None;
        }
        let due = |interval| self.began + Duration::from_secs_f64(interval * turn as f64);
        Some(self.interval.map_or_else(Instant::now, due))
    }

    /// Gives out turns one by one as they fall due. Never sleeps: a timer's tick is a
    /// millisecond, in which ten would gather.
    async fn keep_pace(&self) {
        let Some(interval) = self.interval else { return };
        let mut given = 0;
        while !self.is_over(given) {
            let due = (self.began.elapsed().as_secs_f64() / interval) as u64 + 1;
            self.due.add_permits((due - given) as usize);
            given = due;
            tokio::task::yield_now().await;
        }
        self.due.close();
    }
}
