//! How many frames a client may send per tick, and when an HTTP/2 connection ends.

use super::frame::Frame;
use crate::server::limits::Limits;
use crate::telemetry::metrics::Limit;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// Resets that a client may send per tick, for each stream that it may have at once. A browser
/// cancels its requests when the user leaves a page; CVE-2023-44487 needs thousands of resets.
const RESETS_PER_STREAM: u32 = 2;
/// Frames about the connection itself (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA and the
/// like) and continuations that a client may send per tick.
const FRAMES_MAX: u32 = 1000;
/// The number of further frames that each request allows, for updates of the two windows that its
/// answer uses.
const FRAMES_PER_REQUEST: u32 = 2;
/// Bytes sent to a client that allow one more frame, for the window updates that they cause. A
/// client whose window is one byte makes the edge send 10 bytes for each update, frame header
/// included, and soon has no frames left (CVE-2019-9511).
const BYTES_PER_FRAME: u64 = 32;
/// The most frames that a client can have left: enough to update a window of 6 MiB in small steps.
const FRAMES_LEFT_MAX: u32 = 50_000;

/// The number of received frames after which a connection lets other tasks run. A connection that
/// reads all that its client sends would keep a thread for milliseconds, and with it the requests
/// of all other clients.
const FRAMES_PER_TURN: u32 = 64;

/// What a client may still send in this tick, and what the watchdog needs to know. The frame
/// counter and the watchdog share it, in one task. The fields are atomics only because the type
/// must be `Sync`.
#[derive(Debug)]
pub struct FrameBudget {
    /// Whether a byte was received or sent since the last tick.
    moved: AtomicBool,
    /// Whether the connection takes no more of what is to be sent.
    blocked: AtomicBool,
    /// The number of header blocks that began on this connection.
    blocks: AtomicU32,
    /// Whether a frame came that can end a stream before it is accepted.
    may_have_ended: AtomicBool,
    /// Frames that were received since the connection was polled.
    turn_frames: AtomicU32,
    /// Whether the last header block has not ended yet.
    block_open: AtomicBool,
    resets_left: AtomicU32,
    frames_left: AtomicU32,
    /// Sent bytes that have not earned a frame yet: fewer than [`BYTES_PER_FRAME`].
    bytes_over: AtomicU64,
    resets_max: u32,
    requests_max: u32,
    /// Becomes `true` when the connection must take no more requests.
    stop: watch::Sender<bool>,
}

impl FrameBudget {
    pub fn new(limits: &Limits, stop: watch::Sender<bool>) -> Self {
        let resets_max = limits.h2_streams_max.saturating_mul(RESETS_PER_STREAM);
        Self {
            moved: AtomicBool::new(true),
            blocked: AtomicBool::new(false),
            blocks: AtomicU32::new(0),
            may_have_ended: AtomicBool::new(false),
            turn_frames: AtomicU32::new(0),
            block_open: AtomicBool::new(false),
            resets_left: AtomicU32::new(resets_max),
            frames_left: AtomicU32::new(FRAMES_MAX),
            bytes_over: AtomicU64::new(0),
            resets_max,
            requests_max: limits.requests_per_connection_max,
            stop,
        }
    }

    /// Counts a received frame. Returns the limit that it exceeds as the error.
    pub fn frame_received(&self, frame: Frame) -> Result<(), Limit> {
        if frame.stream != 0 && !matches!(frame.kind, Frame::HEADERS | Frame::CONTINUATION) {
            self.may_have_ended.store(true, Relaxed);
        }
        self.turn_frames.store(self.turn_frames.load(Relaxed).saturating_add(1), Relaxed);
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

    /// Counts a header block. At the request limit the connection sends GOAWAY and finishes its
    /// open streams. A client that ignores this exceeds the limit at about twice as many requests.
    fn request(&self) -> Result<(), Limit> {
        let blocks = self.blocks.load(Relaxed).saturating_add(1);
        self.blocks.store(blocks, Relaxed);
        self.allow(FRAMES_PER_REQUEST);
        if self.requests_max > 0 && blocks >= self.requests_max {
            self.stop.send_replace(true);
            if blocks / 2 > self.requests_max {
                return Err(Limit::Requests);
            }
        }
        Ok(())
    }

    /// Whether a stream of this connection may have ended before it was accepted: by RST_STREAM, or
    /// by a frame that is an error of the stream, as a window above 2^31 - 1 is.
    pub fn may_have_ended(&self) -> bool {
        self.may_have_ended.load(Relaxed)
    }

    /// Begins a turn of the connection: its task is polled.
    pub fn begin_turn(&self) {
        self.turn_frames.store(0, Relaxed);
    }

    /// Whether the connection has received so many frames that other tasks should run before it
    /// reads more.
    pub fn turn_is_over(&self) -> bool {
        self.turn_frames.load(Relaxed) >= FRAMES_PER_TURN
    }

    /// Notes that bytes were received.
    pub fn bytes_received(&self) {
        self.moved.store(true, Relaxed);
    }

    /// Notes whether the connection takes no more of what is to be sent.
    pub fn sending_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Relaxed);
    }

    /// Notes that `bytes` bytes were sent.
    pub fn bytes_sent(&self, bytes: usize) {
        self.moved.store(true, Relaxed);
        let bytes = self.bytes_over.load(Relaxed).saturating_add(bytes as u64);
        self.bytes_over.store(bytes % BYTES_PER_FRAME, Relaxed);
        self.allow(u32::try_from(bytes / BYTES_PER_FRAME).unwrap_or(u32::MAX));
    }

    /// Allows this number of frames more.
    fn allow(&self, frames: u32) {
        let left = self.frames_left.load(Relaxed).saturating_add(frames);
        self.frames_left.store(left.min(FRAMES_LEFT_MAX), Relaxed);
    }

    /// Lets the connection take no more requests.
    pub fn stop_requests(&self) {
        self.stop.send_replace(true);
    }

    fn refill(&self) {
        self.resets_left.store(self.resets_max, Relaxed);
        // Updates for what was sent before may still be on their way.
        self.frames_left.store(self.frames_left.load(Relaxed).max(FRAMES_MAX), Relaxed);
    }
}

/// Checks a connection once per tick, and remembers its state at the last tick.
#[derive(Default)]
pub struct Watchdog {
    /// The time for which no byte was received or sent. Time in which requests were served to a
    /// client that reads does not count.
    idle: Duration,
    /// The number of the header block that was open at the last tick. `None`: none was open.
    open: Option<u32>,
}

impl Watchdog {
    /// Checks a connection, of which `streams` streams are being served, and refills its budget.
    /// Returns the limit that it exceeds as the error.
    pub fn tick(
        &mut self,
        budget: &FrameBudget,
        streams: usize,
        limits: &Limits,
    ) -> Result<(), Limit> {
        let blocks = budget.blocks.load(Relaxed);
        let open = budget.block_open.load(Relaxed).then_some(blocks);
        if blocks == 0 || (open.is_some() && open == self.open) {
            return Err(Limit::HeaderTime);
        }
        self.open = open;
        let moved = budget.moved.swap(false, Relaxed);
        // A stream has limits of its own for its origin, its body and its window. But a client that
        // does not read the connection holds up all streams.
        let serves = streams > 0 && !budget.blocked.load(Relaxed);
        self.idle =
            if moved || serves { Duration::ZERO } else { self.idle + limits.header_timeout };
        if self.idle > limits.keepalive + limits.write_timeout {
            return Err(Limit::IdleTime);
        }
        budget.refill();
        Ok(())
    }
}

/// Takes `count` from `left`. Returns whether there was enough; if not, `left` becomes 0.
fn spend(left: &AtomicU32, count: u32) -> bool {
    let now = left.load(Relaxed);
    left.store(now.saturating_sub(count), Relaxed);
    now >= count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limits: &Limits) -> (FrameBudget, watch::Receiver<bool>) {
        let (stop, stopping) = watch::channel(false);
        (FrameBudget::new(limits, stop), stopping)
    }

    fn frame(kind: u8, flags: u8) -> Frame {
        Frame { kind, flags, stream: 1, length: 0 }
    }

    const REQUEST: Frame =
        Frame { kind: Frame::HEADERS, flags: Frame::END_HEADERS, stream: 1, length: 9 };
    const PING: u8 = 6;

    #[test]
    fn a_tick_refills_the_budget() {
        let limits = Limits { h2_streams_max: 10, ..Limits::default() };
        let (budget, _stopping) = budget(&limits);
        budget.frame_received(REQUEST).unwrap();
        for requests in [FRAMES_PER_REQUEST, 0] {
            for _ in 0..20 {
                assert_eq!(budget.frame_received(frame(Frame::RST_STREAM, 0)), Ok(()));
            }
            assert_eq!(budget.frame_received(frame(Frame::RST_STREAM, 0)), Err(Limit::Resets));
            for _ in 0..FRAMES_MAX + requests {
                assert_eq!(budget.frame_received(frame(PING, 0)), Ok(()));
            }
            assert_eq!(budget.frame_received(frame(PING, 0)), Err(Limit::Frames));
            Watchdog::default().tick(&budget, 0, &limits).unwrap();
        }
    }

    #[test]
    fn what_is_sent_allows_the_window_updates_that_it_causes() {
        const WINDOW_UPDATE: Frame = Frame { kind: 8, flags: 0, stream: 0, length: 4 };
        let updates = |bytes_each: usize| {
            let (budget, _stopping) = budget(&Limits::default());
            budget.frame_received(REQUEST).unwrap();
            (0..10 * FRAMES_MAX)
                .take_while(|_| {
                    budget.bytes_sent(bytes_each);
                    // One for the stream and one for the connection.
                    let taken = [(); 2].map(|()| budget.frame_received(WINDOW_UPDATE));
                    taken == [Ok(()), Ok(())]
                })
                .count()
        };
        assert_eq!(updates(2 * BYTES_PER_FRAME as usize), 10_000, "small pieces of a download");
        // The frame header and one byte.
        assert!(updates(10) < 1_000, "a window of one byte");
        let (budget, _stopping) = budget(&Limits::default());
        budget.bytes_sent(usize::MAX);
        Watchdog::default().tick(&budget, 0, &Limits::default()).unwrap_err();
        budget.refill();
        let left = (0..).take_while(|_| budget.frame_received(frame(PING, 0)).is_ok()).count();
        assert_eq!(left, FRAMES_LEFT_MAX as usize);
    }

    #[test]
    fn each_request_allows_the_window_updates_of_its_answer() {
        let limits = Limits { requests_per_connection_max: 0, ..Limits::default() };
        let (budget, _stopping) = budget(&limits);
        for _ in 0..10 * FRAMES_MAX {
            budget.frame_received(REQUEST).unwrap();
            assert_eq!(budget.frame_received(frame(8, 0)), Ok(()));
            assert_eq!(budget.frame_received(frame(8, 0)), Ok(()));
        }
    }

    #[test]
    fn a_turn_ends_after_so_many_frames_of_any_kind() {
        let (budget, _stopping) = budget(&Limits::default());
        for _ in 0..2 {
            budget.begin_turn();
            for kind in [Frame::HEADERS, Frame::DATA, PING, 8].repeat(FRAMES_PER_TURN as usize / 4)
            {
                assert!(!budget.turn_is_over());
                budget.frame_received(frame(kind, Frame::END_HEADERS)).unwrap();
            }
            assert!(budget.turn_is_over());
        }
    }

    #[test]
    fn a_connection_must_make_a_request_and_end_its_headers() {
        let limits = Limits::default();
        let (budget, _stopping) = budget(&limits);
        let mut watchdog = Watchdog::default();
        assert_eq!(watchdog.tick(&budget, 0, &limits), Err(Limit::HeaderTime), "no request");
        budget.frame_received(frame(Frame::HEADERS, 0)).unwrap();
        assert_eq!(watchdog.tick(&budget, 0, &limits), Ok(()), "a block that just began");
        budget.frame_received(frame(Frame::CONTINUATION, 0)).unwrap();
        assert_eq!(watchdog.tick(&budget, 0, &limits), Err(Limit::HeaderTime), "the same");
        budget.frame_received(frame(Frame::CONTINUATION, Frame::END_HEADERS)).unwrap();
        assert_eq!(watchdog.tick(&budget, 0, &limits), Ok(()));
    }

    #[test]
    fn a_connection_that_moves_nothing_ends() {
        let limits = Limits::default();
        let (budget, _stopping) = budget(&limits);
        budget.frame_received(REQUEST).unwrap();
        let ends_after = |streams| {
            budget.bytes_received();
            let mut watchdog = Watchdog::default();
            let ticks = (1..100).find(|_| watchdog.tick(&budget, streams, &limits).is_err())?;
            Some(limits.header_timeout * (ticks - 1))
        };
        let idle = ends_after(0).unwrap();
        assert!(idle > limits.keepalive + limits.write_timeout, "after {idle:?}");
        assert_eq!(ends_after(1), None, "a request that waits for its origin");
        budget.sending_blocked(true);
        assert_eq!(ends_after(1), Some(idle), "a client that does not read");
        budget.sending_blocked(false);
        assert_eq!(ends_after(1), None, "a client that reads again");
    }

    #[test]
    fn past_the_request_limit_a_connection_is_asked_to_close_and_then_closed() {
        let limits = Limits { requests_per_connection_max: 3, ..Limits::default() };
        let (budget, stopping) = budget(&limits);
        let stops: Vec<bool> = (0..7)
            .map(|_| {
                budget.frame_received(REQUEST).unwrap();
                *stopping.borrow()
            })
            .collect();
        assert_eq!(stops, [false, false, true, true, true, true, true]);
        assert_eq!(budget.frame_received(REQUEST), Err(Limit::Requests));
    }
}
