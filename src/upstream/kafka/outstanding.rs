//! Tracks which events of a batch still wait for their delivery report.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::Notify;

/// The end of an event's delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The report has not arrived yet.
    Open,
    /// All in-sync replicas have the event.
    Delivered,
    /// librdkafka gave up the event.
    Failed(RDKafkaErrorCode),
    /// The event was not sent: its record cannot be read.
    Unreadable,
}

/// The ends of the events of a batch. The attempt at the batch and the handles of its events share
/// it.
#[derive(Debug)]
pub struct Outstanding {
    inner: Mutex<Inner>,
    /// Notified when the last event has ended.
    closed: Notify,
}

#[derive(Debug)]
struct Inner {
    ends: Vec<End>,
    open: usize,
}

/// Passed to librdkafka with one event and returned with its delivery report.
#[derive(Debug)]
pub struct DeliveryHandle {
    outstanding: Arc<Outstanding>,
    place: usize,
}

impl Outstanding {
    /// The ends of `events` events, which are all open.
    pub fn new(events: usize) -> Arc<Outstanding> {
        let inner = Inner { ends: vec![End::Open; events], open: events };
        Arc::new(Outstanding { inner: Mutex::new(inner), closed: Notify::new() })
    }

    /// The handle of the event at `place`.
    pub fn handle(self: &Arc<Outstanding>, place: usize) -> DeliveryHandle {
        DeliveryHandle { outstanding: Arc::clone(self), place }
    }

    /// Waits until no event is open.
    pub async fn closed(&self) {
        // The last report cannot be missed: there is one waiter, and `notify_one` stores a permit.
        while self.lock().open > 0 {
            self.closed.notified().await;
        }
    }

    /// The ends so far, in the batch's order.
    pub fn ends(&self) -> Vec<End> {
        self.lock().ends.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

impl DeliveryHandle {
    /// Records the end of the event. A second end has no effect.
    pub fn end(self, end: End) {
        let mut inner = self.outstanding.lock();
        if inner.ends.get(self.place) != Some(&End::Open) || end == End::Open {
            return;
        }
        inner.ends[self.place] = end;
        inner.open -= 1;
        let last = inner.open == 0;
        drop(inner);
        if last {
            self.outstanding.closed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_closes_with_the_last_report_and_keeps_the_order() {
        let outstanding = Outstanding::new(3);
        let failed = End::Failed(RDKafkaErrorCode::MessageTimedOut);
        outstanding.handle(2).end(failed);
        outstanding.handle(0).end(End::Delivered);
        outstanding.handle(0).end(failed);
        assert_eq!(outstanding.ends(), [End::Delivered, End::Open, failed]);
        let waiting = tokio::spawn({
            let outstanding = Arc::clone(&outstanding);
            async move { outstanding.closed().await }
        });
        outstanding.handle(1).end(End::Unreadable);
        waiting.await.unwrap();
        assert_eq!(outstanding.ends(), [End::Delivered, End::Unreadable, failed]);
    }

    #[tokio::test]
    async fn one_without_events_is_closed() {
        Outstanding::new(0).closed().await;
    }
}
