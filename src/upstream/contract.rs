//! [`Upstream`]: the one extension trait of the delivery path.

use async_trait::async_trait;

use super::batch::Batch;
use super::outcome::Outcome;

/// Something that takes batches.
///
/// `send` makes exactly one attempt. It may be dropped at any point (a stop does that), and it
/// may be called for several batches at once, up to [`Upstream::concurrency_max`].
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// The kind's name as in the configuration, for status and logs.
    fn kind(&self) -> &'static str;

    /// Attempts to hand over `batch`, and returns only once it is known how that ended.
    ///
    /// [`Outcome::Delivered`] is a promise: the batch is out of our hands and survives the
    /// death of this process.
    async fn send(&self, batch: &Batch) -> Outcome;

    /// How many batches may be in flight at once. At least 1.
    fn concurrency_max(&self) -> usize {
        1
    }

    /// Whether each portal's events must be handed over in the order in which they came.
    fn keeps_portal_order(&self) -> bool {
        false
    }

    /// Called once, after the last `send` has ended.
    async fn close(&self) {}
}
