//! [`Upstream`]: the one extension trait of the delivery path.

use async_trait::async_trait;

use super::batch::Batch;
use super::outcome::Outcome;

/// A destination of batches.
///
/// `send` makes exactly one attempt. Its future may be dropped at any point, as at a stop, and it
/// may be called for several batches in parallel, up to [`Upstream::concurrency_max`].
///
/// ```
/// use async_trait::async_trait;
/// use pixelgate::custom::Failure;
/// use pixelgate::{Batch, Outcome, Upstream};
/// use tokio::sync::mpsc;
///
/// /// Passes the records on to a task of the host's.
/// struct Channel(mpsc::Sender<Batch>);
///
/// #[async_trait]
/// impl Upstream for Channel {
///     fn kind(&self) -> &'static str {
///         "channel"
///     }
///
///     async fn send(&self, batch: &Batch) -> Outcome {
///         match self.0.send(batch.clone()).await {
///             Ok(()) => Outcome::Delivered,
///             Err(_) => Outcome::Retry(Failure::new("the task has ended")),
///         }
///     }
/// }
/// ```
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// The kind's name as in the configuration, for status and logs.
    fn kind(&self) -> &'static str;

    /// Attempts to deliver `batch` and returns its outcome.
    ///
    /// [`Outcome::Delivered`] is a promise: the upstream has the batch, and it survives the death
    /// of this process.
    async fn send(&self, batch: &Batch) -> Outcome;

    /// Maximum number of batches in flight. At least 1. Default: 1.
    fn concurrency_max(&self) -> usize {
        1
    }

    /// Whether each portal's events must be delivered in the order in which they were accepted.
    /// Default: no.
    fn keeps_portal_order(&self) -> bool {
        false
    }

    /// A number that changes with the settings that say what is sent, where to, or with which
    /// credentials. A change ends all waits after earlier failures, and the next attempt begins at
    /// once. Default: always 0.
    fn settings_version(&self) -> u64 {
        0
    }

    /// Called when a stop waits no longer: each `send` under way must return at once with the
    /// outcomes that are known. A `send` that does not return is dropped, and its events are sent
    /// again after the next start.
    fn cut_off(&self) {}

    /// Called once, after the last `send` has ended.
    async fn close(&self) {}
}
