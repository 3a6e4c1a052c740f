//! Which events of a batch still wait for their delivery report.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::Notify;

/// How an event's delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// There is no report yet.
    Open,
    /// All replicas in sync have it.
    Delivered,
    /// It was given up.
    Failed(RDKafkaErrorCode),
    /// It was never handed over: its record cannot be read.
    Unreadable,
}

/// See the module. Shared by a batch and the handles of its events.
#[derive(Debug)]
pub struct Outstanding {
    inner: Mutex<Inner>,
    /// Woken when the last event has come to its end.
    closed: Notify,
}

#[derive(Debug)]
struct Inner {
    ends: Vec<End>,
    open: usize,
}

/// Goes through librdkafka with one event, and comes back with its report.
#[derive(Debug)]
pub struct DeliveryHandle {
    outstanding: Arc<Outstanding>,
    place: usize,
}

impl Outstanding {
    /// For so many events, all of them open.
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
        // Only the batch waits, and a permit is kept for it: it cannot miss the last report.
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
    /// Notes the event's end. The first one counts.
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
