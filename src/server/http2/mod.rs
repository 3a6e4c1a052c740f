//! HTTP/2: Pingora frames it; what it lets a client do without end is bounded here.
//!
//! Every byte of a connection passes [`FrameCounter`], which reads frame headers and nothing else. The
//! `h2` crate bounds streams at once, the size of header blocks and their continuations; here is
//! bounded what makes work without being a request: resets, and frames about the connection
//! itself. A beat, as long as a header may take, gives new allowances, and ends a connection that
//! made no request yet, left a header block open for a whole beat, or moved no byte for long.

pub mod frame;
mod frame_budget;
mod frame_counter;
pub mod options;
mod streams;

use super::connection::{Connection, Head};
use super::service::Server;
use crate::telemetry::metrics::Limit;
use bytes::BytesMut;
use frame::PREFACE;
use frame_budget::{FrameBudget, Watchdog};
use frame_counter::FrameCounter;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use streams::Streams;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval_at};

impl<SV> Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Reads an HTTP/2 preface to its end, in its time, and serves the connection to its end.
    pub async fn serve_h2(self: Arc<Self>, mut connection: Connection, shutdown: ShutdownWatch) {
        let head = connection.read_head(self.limits(), PREFACE.len()).await;
        // The permit lives until the connection ends.
        let Connection { stream, received, permit: _permit, .. } = connection;
        match head {
            Head::Complete(_) if received.starts_with(PREFACE) => {
                self.serve_frames(stream, received, shutdown).await;
            }
            // It speaks no HTTP that could tell it why.
            Head::Complete(_) => self.admission.limit_reporter.tell(Limit::HeaderSyntax),
            Head::Refused(limit) => self.admission.limit_reporter.tell(limit),
            Head::Closed => {}
        }
    }

    async fn serve_frames(
        self: Arc<Self>,
        stream: Stream,
        received: BytesMut,
        mut shutdown: ShutdownWatch,
    ) {
        let limits = &self.admission.limits;
        let _stream_capacity = self.in_flight.streams(limits.h2_streams_max);
        let (stop, stopping) = watch::channel(false);
        let budget = Arc::new(FrameBudget::new(limits, stop));
        let (watched, mut exceeded) = FrameCounter::new(stream, received, budget.clone());
        let tick = limits.header_timeout;
        let mut ticks = interval_at(tokio::time::Instant::now() + tick, tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::default();
        let mut told = false;
        let streams = Arc::new(Streams(self.clone()));
        let mut serving = pin!(last(streams.process_new(Box::new(watched), &stopping)));
        let limit = loop {
            tokio::select! {
                biased;
                _ = &mut serving => break exceeded.try_recv().ok(),
                _ = shutdown.wait_for(|stop| *stop), if !told => {
                    told = true;
                    budget.stop_requests();
                }
                _ = ticks.tick() => if let Err(limit) = watchdog.tick(&budget, limits) {
                    break Some(limit);
                }
            }
        };
        if let Some(limit) = limit {
            self.admission.limit_reporter.tell(limit);
        }
    }
}

/// Lets all others have their turn before each of a future's own. A connection that were polled as
/// soon as one of its streams has an answer would send each by itself, which costs more than all
/// that was done for it; so they leave together.
async fn last<F: Future + Unpin>(mut future: F) -> F::Output {
    loop {
        yield_now().await;
        let mut had_its_turn = false;
        let turn = poll_fn(|cx| {
            if had_its_turn {
                return Poll::Ready(None);
            }
            had_its_turn = true;
            Pin::new(&mut future).poll(cx).map(Some)
        });
        if let Some(output) = turn.await {
            return output;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::sync::Notify;

    /// How many of ten streams have answered when a connection that was woken by the first has its
    /// turn, on the one worker of a runtime.
    async fn answers_in_a_turn() -> u32 {
        let (answered, woken) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let (seen, wake) = (answered.clone(), woken.clone());
        let (waiting, mut waits) = watch::channel(false);
        let mut wake = Box::pin(async move { wake.notified().await });
        let connection = tokio::spawn(last(poll_fn(move |cx| {
            let turn = wake.as_mut().poll(cx).map(|()| seen.load(Relaxed));
            waiting.send_replace(true);
            turn
        })));
        waits.wait_for(|waits| *waits).await.unwrap();
        // From here on a task that is woken comes next, as long as there are few in a row.
        yield_now().await;
        for _ in 0..10 {
            let (answered, woken) = (answered.clone(), woken.clone());
            tokio::spawn(async move {
                answered.fetch_add(1, Relaxed);
                woken.notify_one();
            });
        }
        connection.await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_connection_has_its_turn_after_its_streams() {
        assert_eq!(tokio::spawn(answers_in_a_turn()).await.unwrap(), 10);
    }
}
