//! HTTP/2: Pingora frames it; what it lets a client do without end is bounded here.
//!
//! Every byte of a connection passes [`FrameCounter`], which reads frame headers and nothing else. The
//! `h2` crate bounds streams at once, the size of header blocks and their continuations; here is
//! bounded what makes work without being a request: resets, and frames about the connection
//! itself. A beat, as long as a header may take, gives new allowances, and ends a connection that
//! made no request yet, left a header block open for a whole beat, or moved no byte for long.

mod frames;
mod streams;

use super::Server;
use super::http1::{Connection, Head};
use super::limits::Limits;
use crate::telemetry::metrics::Limit;
use bytes::BytesMut;
use frames::FrameCounter;
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::proxy::ProxyHttp;
use pingora::server::ShutdownWatch;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;
use streams::Streams;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval_at};

/// What a client sends first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Where the preface ends for a reader of HTTP/1.1.
pub const PREFACE_HEAD_BYTES: usize = 18;

/// Streams that a client may reset in one beat, for each that it may have at once: whoever leaves
/// a page cancels what it was loading. CVE-2023-44487 needs thousands.
const RESETS_PER_STREAM: u32 = 2;
/// Frames about the connection itself (SETTINGS, PING, PRIORITY, empty DATA and the like), and
/// continuations, that a client may send in one beat. Each KiB that is sent allows one more, for
/// the window updates that it brings.
const FRAMES_MAX: u32 = 1000;
/// Bytes of answers that wait for one stream's window.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// What the watcher of a connection's bytes and its keeper tell each other. Both run in one task;
/// the atomics only make it shareable.
#[derive(Debug)]
pub struct FrameBudget {
    /// Whether a byte moved, in either direction, since the last beat.
    moved: AtomicBool,
    /// Header blocks that began, in all.
    blocks: AtomicU32,
    /// Whether the last one has not ended yet.
    block_open: AtomicBool,
    resets_left: AtomicU32,
    frames_left: AtomicU32,
    resets_max: u32,
    requests_max: u32,
    /// Tells Pingora to take no more requests on this connection.
    stop: watch::Sender<bool>,
}

/// A frame's header, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub length: usize,
}

impl Frame {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;
}

/// Takes `count` from what is left; whether there was as much.
fn spend(left: &AtomicU32, count: u32) -> bool {
    let now = left.load(Relaxed);
    left.store(now.saturating_sub(count), Relaxed);
    now >= count
}

impl FrameBudget {
    fn new(limits: &Limits, stop: watch::Sender<bool>) -> Self {
        let resets_max = limits.h2_streams_max.saturating_mul(RESETS_PER_STREAM);
        Self {
            moved: AtomicBool::new(true),
            blocks: AtomicU32::new(0),
            block_open: AtomicBool::new(false),
            resets_left: AtomicU32::new(resets_max),
            frames_left: AtomicU32::new(FRAMES_MAX),
            resets_max,
            requests_max: limits.requests_per_connection_max,
            stop,
        }
    }

    /// Notes a frame that came; the limit that it crosses, if it crosses one.
    pub fn came(&self, frame: Frame) -> Result<(), Limit> {
        let ends_block = frame.flags & Frame::END_HEADERS != 0;
        let allowed = match frame.kind {
            Frame::HEADERS => {
                self.block_open.store(!ends_block, Relaxed);
                return self.request();
            }
            Frame::CONTINUATION => {
                self.block_open.store(!ends_block, Relaxed);
                spend(&self.frames_left, 1)
            }
            Frame::RST_STREAM if !spend(&self.resets_left, 1) => return Err(Limit::Resets),
            Frame::RST_STREAM => true,
            Frame::DATA if frame.length > 0 => true,
            _ => spend(&self.frames_left, 1),
        };
        if allowed { Ok(()) } else { Err(Limit::Frames) }
    }

    /// Notes a header block. Past the limit Pingora says goodbye, which leaves what is under way
    /// its time; who goes on as if nothing was said is cut off at twice as many.
    fn request(&self) -> Result<(), Limit> {
        let blocks = self.blocks.load(Relaxed).saturating_add(1);
        self.blocks.store(blocks, Relaxed);
        if self.requests_max > 0 && blocks >= self.requests_max {
            self.stop.send_replace(true);
            if blocks / 2 > self.requests_max {
                return Err(Limit::Requests);
            }
        }
        Ok(())
    }

    /// Notes that bytes came.
    pub fn received(&self) {
        self.moved.store(true, Relaxed);
    }

    /// Notes that bytes left.
    pub fn sent(&self, bytes: usize) {
        self.moved.store(true, Relaxed);
        let more = u32::try_from(bytes >> 10).unwrap_or(u32::MAX);
        if more > 0 {
            self.frames_left.store(self.frames_left.load(Relaxed).saturating_add(more), Relaxed);
        }
    }

    fn refill(&self) {
        self.resets_left.store(self.resets_max, Relaxed);
        self.frames_left.store(FRAMES_MAX, Relaxed);
    }
}

/// What a connection's keeper remembers from beat to beat.
#[derive(Default)]
struct Watchdog {
    quiet: Duration,
    /// The number of the header block that was open.
    open: Option<u32>,
}

impl Watchdog {
    /// Looks at a connection once a beat; the limit that it crossed, if it crossed one.
    fn tick(&mut self, pulse: &FrameBudget, limits: &Limits) -> Result<(), Limit> {
        let blocks = pulse.blocks.load(Relaxed);
        let open = pulse.block_open.load(Relaxed).then_some(blocks);
        if blocks == 0 || (open.is_some() && open == self.open) {
            return Err(Limit::HeaderTime);
        }
        self.open = open;
        let moved = pulse.moved.swap(false, Relaxed);
        self.quiet = if moved { Duration::ZERO } else { self.quiet + limits.header_timeout };
        if self.quiet > limits.keepalive + limits.write_timeout {
            return Err(Limit::IdleTime);
        }
        pulse.refill();
        Ok(())
    }
}

/// What Pingora tells the `h2` crate.
pub fn options(limits: &Limits) -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(limits.h2_streams_max);
    options.max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX));
    options.max_send_buffer_size(SEND_BUFFER_BYTES);
    options
}

impl<SV> Server<SV>
where
    SV: ProxyHttp + Send + Sync + 'static,
    SV::CTX: Send + Sync,
{
    /// Reads an HTTP/2 preface to its end, in its time, and serves the connection to its end.
    pub async fn serve_h2(self: Arc<Self>, connection: Connection, shutdown: ShutdownWatch) {
        let Connection { mut stream, mut came, place: _place, .. } = connection;
        match self.read_head(&mut stream, &mut came, PREFACE.len()).await {
            Head::Complete(_) if came.starts_with(PREFACE) => {
                self.serve_frames(stream, came, shutdown).await;
            }
            // It speaks no HTTP that could tell it why.
            Head::Complete(_) => self.door.teller.tell(Limit::HeaderSyntax),
            Head::Refused(limit) => self.door.teller.tell(limit),
            Head::Closed => {}
        }
    }

    async fn serve_frames(
        self: Arc<Self>,
        stream: Stream,
        came: BytesMut,
        mut shutdown: ShutdownWatch,
    ) {
        let limits = &self.door.limits;
        let _seats = self.in_flight.streams(limits.h2_streams_max);
        let (stop, stopping) = watch::channel(false);
        let pulse = Arc::new(FrameBudget::new(limits, stop));
        let (watched, mut crossed) = FrameCounter::new(stream, came, pulse.clone());
        let tick = limits.header_timeout;
        let mut beats = interval_at(tokio::time::Instant::now() + tick, tick);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut keeper = Watchdog::default();
        let mut told = false;
        let streams = Arc::new(Streams(self.clone()));
        let mut serving = pin!(last(streams.process_new(Box::new(watched), &stopping)));
        let limit = loop {
            tokio::select! {
                biased;
                _ = &mut serving => break crossed.try_recv().ok(),
                _ = shutdown.wait_for(|stop| *stop), if !told => {
                    told = true;
                    pulse.stop.send_replace(true);
                }
                _ = beats.tick() => if let Err(limit) = keeper.tick(&pulse, limits) {
                    break Some(limit);
                }
            }
        };
        if let Some(limit) = limit {
            self.door.teller.tell(limit);
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
    use tokio::sync::Notify;

    fn pulse(limits: &Limits) -> (FrameBudget, watch::Receiver<bool>) {
        let (stop, stopping) = watch::channel(false);
        (FrameBudget::new(limits, stop), stopping)
    }

    fn frame(kind: u8, flags: u8) -> Frame {
        Frame { kind, flags, length: 0 }
    }

    const REQUEST: Frame = Frame { kind: Frame::HEADERS, flags: Frame::END_HEADERS, length: 9 };
    const PING: u8 = 6;

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

    #[test]
    fn allowances_are_for_one_beat() {
        let limits = Limits { h2_streams_max: 10, ..Limits::default() };
        let (pulse, _stopping) = pulse(&limits);
        pulse.came(REQUEST).unwrap();
        for _ in 0..2 {
            for _ in 0..20 {
                assert_eq!(pulse.came(frame(Frame::RST_STREAM, 0)), Ok(()));
            }
            assert_eq!(pulse.came(frame(Frame::RST_STREAM, 0)), Err(Limit::Resets));
            for _ in 0..FRAMES_MAX {
                assert_eq!(pulse.came(frame(PING, 0)), Ok(()));
            }
            assert_eq!(pulse.came(frame(PING, 0)), Err(Limit::Frames));
            pulse.sent(1024);
            assert_eq!(pulse.came(frame(PING, 0)), Ok(()));
            Watchdog::default().tick(&pulse, &limits).unwrap();
        }
    }

    #[test]
    fn a_connection_makes_a_request_and_ends_its_headers() {
        let limits = Limits::default();
        let (pulse, _stopping) = pulse(&limits);
        let mut keeper = Watchdog::default();
        assert_eq!(keeper.tick(&pulse, &limits), Err(Limit::HeaderTime), "no request");
        pulse.came(frame(Frame::HEADERS, 0)).unwrap();
        assert_eq!(keeper.tick(&pulse, &limits), Ok(()), "a block that just began");
        pulse.came(frame(Frame::CONTINUATION, 0)).unwrap();
        assert_eq!(keeper.tick(&pulse, &limits), Err(Limit::HeaderTime), "the same");
        pulse.came(frame(Frame::CONTINUATION, Frame::END_HEADERS)).unwrap();
        assert_eq!(keeper.tick(&pulse, &limits), Ok(()));
    }

    #[test]
    fn a_connection_that_moves_nothing_ends() {
        let limits = Limits::default();
        let (pulse, _stopping) = pulse(&limits);
        pulse.came(REQUEST).unwrap();
        let mut keeper = Watchdog::default();
        let beats = (1..100).find(|_| keeper.tick(&pulse, &limits).is_err()).unwrap();
        let quiet = limits.header_timeout * (beats - 1);
        assert!(quiet > limits.keepalive + limits.write_timeout, "after {quiet:?}");
    }

    #[test]
    fn past_its_requests_a_connection_is_told_and_then_cut_off() {
        let limits = Limits { requests_per_connection_max: 3, ..Limits::default() };
        let (pulse, stopping) = pulse(&limits);
        let told: Vec<bool> = (0..7)
            .map(|_| {
                pulse.came(REQUEST).unwrap();
                *stopping.borrow()
            })
            .collect();
        assert_eq!(told, [false, false, true, true, true, true, true]);
        assert_eq!(pulse.came(REQUEST), Err(Limit::Requests));
    }
}
