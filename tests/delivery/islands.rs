//! SPEC 7: an upstream that hangs in a system call is felt neither by another one nor by a stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pixelgate::PixelGate;
use pixelgate::internals::event;
use pixelgate::{Batch, Outcome};
use pixelgate::{Config, Upstream};

const PATIENCE: Duration = crate::delivery::HANGS_AFTER;

/// How an attempt hangs.
#[derive(Clone, Copy, Debug)]
enum Hang {
    /// In the async thread, like a lock or a disk.
    Thread,
    /// In the blocking threads, like the lookup of a name: one more with each attempt.
    BlockingThreads,
    /// In a future that never ends.
    Future,
    /// Not in the attempt, but when it is closed.
    Close,
}

struct Hung(Hang, AtomicUsize);

#[async_trait]
impl Upstream for Hung {
    fn kind(&self) -> &'static str {
        "hung"
    }

    async fn send(&self, _: &Batch) -> Outcome {
        self.1.fetch_add(1, SeqCst);
        match self.0 {
            Hang::Thread => hang(),
            Hang::BlockingThreads => _ = tokio::task::spawn_blocking(hang).await,
            Hang::Future => std::future::pending().await,
            Hang::Close => {}
        }
        Outcome::Delivered
    }

    fn concurrency_max(&self) -> usize {
        8
    }

    async fn close(&self) {
        if matches!(self.0, Hang::Close) {
            std::future::pending().await
        }
    }
}

fn hang() {
    loop {
        std::thread::park();
    }
}

/// Takes everything.
#[derive(Default)]
struct Healthy(AtomicUsize);

#[async_trait]
impl Upstream for Healthy {
    fn kind(&self) -> &'static str {
        "healthy"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        // Uses a blocking thread, as encoding does.
        let count = batch.records().len();
        let count = tokio::task::spawn_blocking(move || count).await.unwrap();
        self.0.fetch_add(count, SeqCst);
        Outcome::Delivered
    }
}

#[test]
fn the_name_of_a_hosts_upstream_is_checked_like_a_configured_one() {
    let dir = tempfile::tempdir().unwrap();
    for (name, expect) in [("../mine", "must be"), ("", "must be"), ("file", "two upstreams")] {
        let mut config = Config::default();
        config.spool.dir = dir.path().join("spool");
        let files = format!("name = 'file'\nkind = 'file'\ndir = '{}'", dir.path().display());
        config.upstream = vec![toml::from_str(&files).unwrap()];
        let opened = PixelGate::builder(config)
            .state_dir(dir.path())
            .portals("1", pixelgate::custom::PortalFormat::Text)
            .upstream(name, Arc::<Healthy>::default())
            .open();
        let error = opened.err().expect("the name cannot be used").to_string();
        assert!(error.starts_with("upstream.name: ") && error.contains(expect), "{name}: {error}");
    }
}

#[test]
fn what_hangs_is_felt_by_no_other_upstream_and_by_no_stop() {
    for how in [Hang::Thread, Hang::BlockingThreads, Hang::Future, Hang::Close] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("portals.txt"), "1\n").unwrap();
        let mut config = Config::default();
        config.portals.source = dir.path().join("portals.txt").display().to_string();
        config.spool.dir = dir.path().join("spool");
        config.batch.linger_ms = 1;
        let files = format!("name = 'file'\nkind = 'file'\ndir = '{}'", dir.path().display());
        config.upstream = vec![toml::from_str(&files).unwrap()];
        let (hung, healthy) = (Arc::new(Hung(how, AtomicUsize::new(0))), Arc::<Healthy>::default());
        let gate = PixelGate::builder(config)
            .state_dir(dir.path())
            .upstream("hung", Arc::clone(&hung) as Arc<dyn Upstream>)
            .upstream("healthy", Arc::clone(&healthy) as Arc<dyn Upstream>)
            .open()
            .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let began = Instant::now();
        let mut sent = 0;
        while healthy.0.load(SeqCst) < 100 || hung.1.load(SeqCst) == 0 {
            assert!(began.elapsed() < PATIENCE, "{how:?}: {} delivered", healthy.0.load(SeqCst));
            sent += 1;
            let (event, id) = (crate::delivery::sample(sent), uuid::Uuid::now_v7());
            let (at, context) = (crate::delivery::RECEIVED_AT_MS, event::Context::default());
            let record = |out: &mut Vec<u8>| {
                event::encode_record(out, id.as_bytes(), at, &event, &context);
            };
            runtime.block_on(gate.spool().append(record).unwrap()).unwrap();
        }
        // What hangs is left behind; the spool is closed in what is left of the time.
        gate.close(Duration::from_secs(8)).unwrap();
    }
}
