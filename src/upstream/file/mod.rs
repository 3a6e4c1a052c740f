//! `file`: rotated NDJSON files, one event per line, in the wire form of SPEC 7.
//!
//! The open file is `<dir>/<time>-<random>.ndjson.part`. It holds whole lines, can be read at any
//! time, and is on disk when a batch counts as delivered. After `rotate_bytes` or
//! `rotate_seconds`, and at a stop, it is renamed to `*.ndjson` and never changes again, so that a
//! collector of `*.ndjson` reads complete files only. Names sort by time. pixelgate never deletes a
//! finished file.
//!
//! A dedicated thread does the disk work, so that a slow disk does not block async tasks.

mod writer;

use crate::config_error::ConfigError;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use async_trait::async_trait;
use bytesize::ByteSize;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::batch::Batch;
use super::batch::Body;
use super::contract::Upstream;
use super::encode::{Format, encode};
use super::outcome::{Failure, Outcome};
use writer::Writer;

/// Minimum of `rotate_bytes`: 1 KiB.
pub const ROTATE_BYTES_MIN: u64 = 1 << 10;
/// Maximum of `rotate_bytes`: 16 GiB.
pub const ROTATE_BYTES_MAX: u64 = 16 << 30;
/// Maximum of `rotate_seconds`: one day.
pub const ROTATE_SECONDS_MAX: u64 = 86_400;

/// Maximum number of batches in flight. One is synced while the others wait for the next sync.
const CONCURRENCY_MAX: usize = 4;
/// Maximum number of batches in the thread's queue. More than [`CONCURRENCY_MAX`], because the
/// batch of a dropped `send` stays in the queue.
const QUEUE_BATCHES_MAX: usize = 64;
/// Maximum number of batches that one sync covers.
const GROUP_BATCHES_MAX: usize = 16;

/// The settings of an `[[upstream]]` of kind `file`.
///
/// ```
/// use pixelgate::config::FileUpstream;
///
/// let mut files = FileUpstream::new("/var/lib/pixelgate/events");
/// files.rotate_seconds = 3600;
/// assert!(files.validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The folder. It is created if it is missing, and several processes may share it. Default:
    /// `data/events`.
    pub dir: PathBuf,
    /// The size beyond which a file does not grow, 1 KiB to 16 GiB: a file is finished before a
    /// batch that would exceed this size. A larger batch gets a file of its own. Default: 64 MiB.
    pub rotate_bytes: ByteSize,
    /// The seconds after its first event when a file is finished, with or without traffic, 1 to
    /// 86,400. Default: 60.
    pub rotate_seconds: u64,
}

/// The upstream of kind `file`: see the [module](self).
#[derive(Debug)]
pub struct File {
    orders: SyncSender<Order>,
}

/// A request to the writing thread.
enum Order {
    Write(Batch, oneshot::Sender<Outcome>),
    Finish(oneshot::Sender<()>),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("data/events"),
            rotate_bytes: ByteSize::mib(64),
            rotate_seconds: 60,
        }
    }
}

impl Config {
    /// Files in this folder, otherwise with the defaults.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), ..Self::default() }
    }

    /// Checks the limits.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.dir.as_os_str().is_empty() {
            return Err(ConfigError::new("dir", "is empty"));
        }
        let bytes = self.rotate_bytes.as_u64();
        if !(ROTATE_BYTES_MIN..=ROTATE_BYTES_MAX).contains(&bytes) {
            let reason = "must be 1KiB to 16GiB";
            return Err(ConfigError::new("rotate_bytes", reason));
        }
        super::limits::check_within("rotate_seconds", self.rotate_seconds, ROTATE_SECONDS_MAX)
    }

    /// Creates the folder, finishes files that a crash left open, and starts the writing thread.
    pub(in crate::upstream) fn build(&self) -> Result<File, ConfigError> {
        let rotate_after = Duration::from_secs(self.rotate_seconds);
        let writer =
            Writer::open(&self.dir, self.rotate_bytes.as_u64(), rotate_after).map_err(|e| {
                let reason = format!("the folder {} cannot be used", self.dir.display());
                ConfigError::caused("dir", reason, e)
            })?;
        let (orders, inbox) = sync_channel(QUEUE_BATCHES_MAX);
        std::thread::Builder::new()
            .name("pixelgate-file".into())
            .spawn(move || work(writer, &inbox))
            .map_err(|e| ConfigError::caused("dir", "its writing thread cannot be started", e))?;
        Ok(File { orders })
    }
}

#[async_trait]
impl Upstream for File {
    fn kind(&self) -> &'static str {
        "file"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let (done, outcome) = oneshot::channel();
        match self.orders.try_send(Order::Write(batch.clone(), done)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                return Outcome::Retry(Failure::new("the disk is too slow: the queue is full"));
            }
            Err(TrySendError::Disconnected(_)) => return gone(),
        }
        outcome.await.unwrap_or_else(|_| gone())
    }

    fn concurrency_max(&self) -> usize {
        CONCURRENCY_MAX
    }

    async fn close(&self) {
        let (done, finished) = oneshot::channel();
        if self.orders.try_send(Order::Finish(done)).is_ok() {
            // An error means that the thread has ended. The next start then finishes the file.
            let _ = finished.await;
        }
    }
}

fn gone() -> Outcome {
    Outcome::Retry(Failure::new("the writing thread has ended"))
}

/// The writing thread: writes the queued batches, syncs once for all, and rotates files on time.
fn work(mut writer: Writer, inbox: &Receiver<Order>) {
    loop {
        let mut next = match inbox.recv_timeout(writer.until_rotation()) {
            Ok(order) => Some(order),
            Err(RecvTimeoutError::Timeout) => {
                writer.rotate_if_due();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return writer.finish(),
        };
        let mut group = Vec::new();
        let mut finished = Vec::new();
        while let Some(order) = next.take() {
            match order {
                Order::Write(batch, done) => write(&mut writer, &batch, done, &mut group),
                Order::Finish(done) => finished.push(done),
            }
            if group.len() < GROUP_BATCHES_MAX {
                next = inbox.try_recv().ok();
            }
        }
        let_others_run();
        let outcome = match writer.sync() {
            Ok(()) => Outcome::Delivered,
            Err(e) => Outcome::Retry(Failure::new(format!("the file cannot be synced: {e}"))),
        };
        for done in group {
            // An error means that the `send` was dropped. Delivery sends its events again, with the
            // same ids.
            let _ = done.send(outcome.clone());
        }
        if !finished.is_empty() {
            writer.finish();
        }
        for done in finished {
            let _ = done.send(());
        }
        writer.rotate_if_due();
    }
}

/// Yields the core between encoding, writing and syncing, each of which takes long, because a
/// thread that answers requests may wait for the core.
fn let_others_run() {
    std::thread::yield_now();
}

/// Writes one batch. After a success, `done` joins `group`, which gets its outcome after the sync;
/// after a failure, `done` gets it at once.
fn write(
    writer: &mut Writer,
    batch: &Batch,
    done: oneshot::Sender<Outcome>,
    group: &mut Vec<oneshot::Sender<Outcome>>,
) {
    let lines = |records: &[bytes::Bytes]| {
        let plain = encode(records, Format::Ndjson)?;
        let plain_bytes = plain.len();
        Some(Body { bytes: plain.into(), plain_bytes })
    };
    let Some(body) = batch.body_or_encode(lines) else {
        let _ = done.send(Outcome::unreadable());
        return;
    };
    let_others_run();
    match writer.append(&body.bytes) {
        Ok(()) => group.push(done),
        Err(e) => {
            let failure = Failure::new(format!("the file cannot be written: {e}"));
            let _ = done.send(Outcome::Retry(failure));
        }
    }
}
