//! Serves an HTTP/2 connection: the `h2` crate reads and writes frames, this module limits them.
//!
//! Every byte of a connection passes [`FrameCounter`], which parses frame headers only, and the
//! [`rewriter`], which changes header blocks that the `h2` crate would refuse without need. The
//! crate limits concurrent streams, and the size of header blocks and their continuations. This
//! module limits frames that cause work without being a request: resets, and frames about the
//! connection itself. A tick every `header_timeout` refills the budget. It ends a connection that
//! has made no request yet, or that left one header block open for a whole tick. It also ends one
//! that moved no byte for longer than `keepalive` + `write_timeout`, unless requests are being
//! served: their streams have limits of their own.

mod dynamic_table;
pub mod frame;
mod frame_budget;
mod frame_counter;
mod header_block;
mod header_frames;
mod hpack;
#[cfg(test)]
mod hpack_model;
mod huffman;
mod options;
mod request;
mod rewriter;
#[cfg(test)]
mod rewriter_tests;
mod session;
mod streams;
mod uploads;

use super::connection::{Connection, Head};
use super::limits::Limits;
use super::service::Server;
use crate::telemetry::metrics::Limit;
use bytes::BytesMut;
use frame::PREFACE;
use frame_budget::{FrameBudget, Watchdog};
use frame_counter::FrameCounter;
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
use uploads::Uploads;

impl<SV> Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Reads the HTTP/2 preface within the header deadline and serves the connection to its end.
    pub(super) async fn serve_h2(
        self: Arc<Self>,
        mut connection: Connection,
        shutdown: ShutdownWatch,
    ) {
        let in_force = connection.in_force.clone();
        let head = connection.read_head(&in_force.limits, PREFACE.len()).await;
        // The permit lives until the connection ends.
        let Connection { stream, received, permit: _permit, .. } = connection;
        match head {
            Head::Complete(_) if received.starts_with(PREFACE) => {
                self.serve_frames(stream, received, &in_force.limits, shutdown).await;
            }
            // No response: the client speaks neither HTTP/1 nor HTTP/2.
            Head::Complete(_) => self.admission.limit_reporter.report(Limit::HeaderSyntax),
            Head::Refused(limit) => self.admission.limit_reporter.report(limit),
            Head::Closed => {}
        }
    }

    /// Serves a connection whose preface is in `received`, until it ends or exceeds a limit.
    async fn serve_frames(
        self: Arc<Self>,
        stream: Stream,
        received: BytesMut,
        limits: &Limits,
        mut shutdown: ShutdownWatch,
    ) {
        let _stream_capacity = self.in_flight.streams(limits.h2_streams_max);
        let (stop, stopping) = watch::channel(false);
        let budget = Arc::new(FrameBudget::new(limits, stop));
        let uploads = Arc::<Uploads>::default();
        let streams = Streams::new(self.clone(), &stream, uploads.clone(), shutdown.clone());
        let (counted, mut exceeded) =
            FrameCounter::new(stream, received, budget.clone(), uploads.clone());
        let tick = limits.header_timeout;
        let mut ticks = interval_at(tokio::time::Instant::now() + tick, tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watchdog = Watchdog::default();
        let open = streams.open();
        let mut is_stopping = false;
        let mut turns = Box::pin(streams.serve(counted, limits, &budget, stopping));
        let mut serving = pin!(poll_last(poll_fn(|cx| {
            budget.begin_turn();
            turns.as_mut().poll(cx)
        })));
        let limit = loop {
            tokio::select! {
                biased;
                limit = &mut serving => break exceeded.try_recv().ok().or(limit),
                _ = shutdown.wait_for(|stop| *stop), if !is_stopping => {
                    is_stopping = true;
                    budget.stop_requests();
                }
                _ = ticks.tick() => {
                    let streams = *open.borrow();
                    if let Err(limit) = watchdog.tick(&budget, streams, limits) {
                        break Some(limit);
                    }
                }
            }
        };
        if let Some(limit) = limit {
            // The connection ends, so what was received of its uploads is dropped now and not sent
            // on.
            uploads.reset_all();
            self.admission.limit_reporter.report(limit);
        }
    }
}

/// Yields to all other tasks before each poll of `future`. Otherwise a connection would be polled
/// as soon as one of its streams has a response and would send each response by itself, which
/// costs more than making it. So the responses that are ready leave together.
async fn poll_last<F: Future + Unpin>(mut future: F) -> F::Output {
    loop {
        yield_now().await;
        let mut polled = false;
        let poll_once = poll_fn(|cx| {
            if polled {
                return Poll::Ready(None);
            }
            polled = true;
            Pin::new(&mut future).poll(cx).map(Some)
        });
        if let Some(output) = poll_once.await {
            return output;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
    use tokio::sync::Notify;

    /// How many of ten streams have answered when the connection, woken by the first, is polled on
    /// a runtime with one worker.
    async fn answers_at_first_poll() -> u32 {
        let (answered, woken) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let (seen, wake) = (answered.clone(), woken.clone());
        let (waiting, mut waits) = watch::channel(false);
        let mut wake = Box::pin(async move { wake.notified().await });
        let connection = tokio::spawn(poll_last(poll_fn(move |cx| {
            let turn = wake.as_mut().poll(cx).map(|()| seen.load(Relaxed));
            waiting.send_replace(true);
            turn
        })));
        waits.wait_for(|waits| *waits).await.unwrap();
        // From here on the runtime runs a woken task next, unless it did so many times in a row.
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
    async fn a_connection_is_polled_after_its_streams() {
        assert_eq!(tokio::spawn(answers_at_first_poll()).await.unwrap(), 10);
    }
}
