//! Handles the signals of an edge, and stops it (SPEC 8).
//!
//! Pingora's own stop waits for the whole grace period even if nothing is in flight, and then drops
//! the requests that still are. The stop here closes the listeners, waits only for requests in
//! flight, and then lets Pingora end its threads. After that the gate is closed.
//!
//! A stop after an upgrade leaves idle connections open for the grace period. The next request on
//! such a connection is answered with `Connection: close` (HTTP/2: GOAWAY). So no connection closes
//! while its client is sending.

use super::config::Config;
use super::foreign_signals::ForeignSignals;
use super::handover::{InheritedSockets, Named, Offer, SOCKET_NAME};
use super::systemd;
use super::upgrade_socket::Successor;
use crate::access_log::AccessLogs;
use crate::plural::counted;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use pixelgate::PixelGate;
use pixelgate::custom::InFlight;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, oneshot, watch};

/// The pause between two checks for requests in flight, in milliseconds.
const DRAIN_POLL_MS: u64 = 2;
/// The shortest time until the deadline of a stop, for a grace period of 0.
const STOP_MIN: Duration = Duration::from_secs(1);
/// The part of the time until the deadline that closing the gate may take.
const CLOSE_PART: f64 = 0.95;
/// How long exit handlers may take when a stop hangs.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
/// The shortest stop after an upgrade, in milliseconds: a connection that is just being accepted is
/// counted only a moment later.
const ACCEPT_MS: u64 = 200;

/// Handles the signals of a running edge. Holds everything that a stop needs.
pub struct Signals {
    /// A notification asks for a reload, at SIGHUP.
    pub reload: Arc<Notify>,
    /// The access logs, which are opened again at SIGHUP, even while a reload hangs in a file
    /// system.
    pub access_logs: AccessLogs,
    /// The section `[edge]` in force, with `drain_seconds` and the grace period.
    pub section: Arc<ArcSwap<Config>>,
    /// The gate, which becomes unready at a stop.
    pub gate: PixelGate,
    /// Closes the listeners when set to true.
    pub stop: watch::Sender<bool>,
    /// The requests and connections that a stop waits for: those of the edge, and those of the
    /// admin pages.
    pub in_flight: [InFlight; 2],
    /// When the process must have ended.
    pub deadline: Deadline,
    /// `edge.state_dir`.
    pub state_dir: PathBuf,
    /// Copies of the listening sockets for a successor. Taken when they are offered.
    pub sockets: Mutex<Vec<Named>>,
    /// The sockets taken over from the old process. Taken when this process accepts.
    pub inherited: Mutex<Option<InheritedSockets>>,
    /// The log lines that name the listeners, which are written when the edge accepts.
    pub announcement: Vec<String>,
    /// The handlers of the signals. Taken when the edge accepts.
    pub handlers: Mutex<Option<Handlers>>,
}

/// When the process must have ended: twice the grace period after the signal. All clones are
/// handles to the same deadline.
#[derive(Clone, Default)]
pub struct Deadline {
    at: Arc<OnceLock<Instant>>,
}

/// The handlers of signals. While the edge starts, a signal to stop ends the process. The others
/// are handled when the edge accepts.
pub struct Handlers {
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
    hangup: Signal,
    foreign: ForeignSignals,
    /// `None` once the edge has started.
    starting: Option<Starting>,
}

/// Ends the process at SIGTERM, SIGQUIT or SIGINT while the edge starts: a start may wait for a
/// disk or for another process. No event was answered yet, so nothing has to be finished.
struct Starting {
    thread: JoinHandle<()>,
    /// Dropping it ends the thread.
    going: oneshot::Sender<()>,
}

/// The two kinds of stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Idle connections are closed at once.
    Now,
    /// A successor accepts, so idle connections stay open for the grace period.
    Upgraded,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    // Pingora calls this once, when all services have started.
    async fn recv(&self) -> ShutdownSignal {
        let Some(mut handlers) = take(&self.handlers) else {
            return std::future::pending().await;
        };
        let inherited = take(&self.inherited);
        let offer = self.offer(inherited.is_some());
        // Held until the end of this process: see `InheritedSockets::accepting`.
        let _old = inherited.map(|sockets| {
            let failed = |e: &_| warn!("the old process does not hear that this one accepts: {e}");
            sockets.accepting().inspect_err(failed)
        });
        self.announcement.iter().for_each(|line| info!("{line}"));
        systemd::ready();
        let stop = self.wait(&mut handlers, &offer).await;
        if stop == Stop::Now {
            self.drain(&mut handlers).await;
        }
        let grace = Duration::from_secs(self.section.load().shutdown_grace_seconds);
        self.deadline.begin(grace);
        // Drops the copies of the sockets: a listener closes only with its last descriptor.
        drop(offer);
        tokio::select! {
            () = self.finish(stop, grace) => {}
            () = self.all_lesser(&mut handlers.hangup, &mut handlers.foreign) => {}
        }
        ShutdownSignal::FastShutdown
    }
}

impl Deadline {
    /// Sets the deadline. Another thread ends the process at the deadline, whatever hangs.
    fn begin(&self, grace: Duration) {
        let limit = (2 * grace).max(STOP_MIN);
        if self.at.set(Instant::now() + limit).is_err() {
            return;
        }
        let end = move || {
            std::thread::sleep(limit);
            error!("the stop hangs: the process ends after twice edge.shutdown_grace_seconds");
            log::logger().flush();
            // The handlers of `exit` may hang, too: then `abort` ends the process.
            std::thread::spawn(|| std::process::exit(1));
            std::thread::sleep(EXIT_LIMIT);
            std::process::abort();
        };
        if let Err(e) = std::thread::Builder::new().name("deadline".to_owned()).spawn(end) {
            warn!("a stop that hangs would not be ended, because no thread can be started: {e}");
        }
    }

    /// Returns how long closing the gate may take. A part of the time until the deadline is kept
    /// for the end of the process.
    pub fn left(&self) -> Duration {
        let left = self.at.get().map(|at| at.saturating_duration_since(Instant::now()));
        left.unwrap_or_default().mul_f64(CLOSE_PART)
    }
}

fn take<T: Default>(held: &Mutex<T>) -> T {
    std::mem::take(&mut *held.lock())
}

impl Handlers {
    /// Handles the signals from now on, so that none of them ends the process at once. Must be
    /// called before the first listener opens.
    pub fn install() -> std::io::Result<Self> {
        // Tokio keeps handlers for the whole process: they stay after this runtime has ended.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let handlers = Self::install_in(&runtime)?;
        Ok(Self { starting: Some(Starting::begin()?), ..handlers })
    }

    /// The same handlers, when the edge is about to accept: they are for [`Signals`] from now on.
    pub fn started(mut self) -> Self {
        self.starting.take().into_iter().for_each(Starting::end);
        self
    }

    fn install_in(runtime: &Runtime) -> std::io::Result<Self> {
        let _inside = runtime.enter();
        // SIGXFSZ, which comes at the limit of the size of files (`ulimit -f`), would end the
        // process. With a handler the write fails instead (EFBIG), and the spool refuses events.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            foreign: ForeignSignals::install()?,
            starting: None,
        })
    }
}

impl Starting {
    fn begin() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let (going, mut gone) = oneshot::channel();
        let Handlers { mut terminate, mut quit, mut interrupt, .. } =
            Handlers::install_in(&runtime)?;
        let watch = async move {
            let name = tokio::select! {
                _ = &mut gone => return,
                _ = terminate.recv() => "SIGTERM",
                _ = quit.recv() => "SIGQUIT",
                _ = interrupt.recv() => "SIGINT",
            };
            info!("{name}: stopped before the edge had started");
            log::logger().flush();
            std::process::exit(0);
        };
        let thread = std::thread::Builder::new().name("starting".to_owned());
        Ok(Self { thread: thread.spawn(move || runtime.block_on(watch))?, going })
    }

    /// Returns when no signal can end the process here any more.
    fn end(self) {
        drop(self.going);
        // A panic was reported by the thread itself.
        _ = self.thread.join();
    }
}

impl Signals {
    /// Offers the sockets to a successor. With `replaces`, this process is a successor itself.
    fn offer(&self, replaces: bool) -> Offer {
        let path = self.state_dir.join(SOCKET_NAME);
        Offer::open(path, take(&self.sockets), replaces, self.gate.faults().clone())
    }

    async fn wait(&self, on: &mut Handlers, offer: &Offer) -> Stop {
        let mut successor = offer.successor();
        let serve = offer.serve();
        tokio::pin!(serve);
        // Whether SIGQUIT arrived while a successor was starting.
        let mut quitting = false;
        loop {
            let name = tokio::select! {
                () = &mut serve => continue,
                _ = on.terminate.recv() => "SIGTERM",
                _ = on.interrupt.recv() => "SIGINT",
                _ = on.quit.recv() => "SIGQUIT",
                () = self.lesser(&mut on.hangup, &mut on.foreign) => continue,
                Ok(()) = successor.changed(), if quitting => "SIGQUIT",
            };
            let stage = *successor.borrow_and_update();
            match (name, stage) {
                ("SIGQUIT", Successor::Starting) => {
                    info!("SIGQUIT: waiting for the new process to accept");
                    quitting = true;
                    continue;
                }
                ("SIGQUIT", Successor::None) if quitting => {
                    error!("the new process failed to start: this one continues");
                    quitting = false;
                    continue;
                }
                _ => info!("{name}: stopping"),
            }
            systemd::stopping();
            return match (name, stage) {
                ("SIGQUIT", Successor::Accepting) => Stop::Upgraded,
                _ => Stop::Now,
            };
        }
    }

    /// Makes the edge unready, and accepts further requests for `edge.drain_seconds` or until
    /// another signal.
    async fn drain(&self, on: &mut Handlers) {
        let seconds = self.section.load().drain_seconds;
        if seconds == 0 {
            return;
        }
        self.gate.drain();
        let more = counted(seconds, "second");
        info!("unready, and accepting for {more} more (edge.drain_seconds)");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            _ = on.terminate.recv() => {}
            _ = on.interrupt.recv() => {}
            _ = on.quit.recv() => {}
            () = self.all_lesser(&mut on.hangup, &mut on.foreign) => {}
        }
    }

    /// Handles each signal that does not stop the edge. Never returns.
    async fn all_lesser(&self, hangup: &mut Signal, foreign: &mut ForeignSignals) {
        loop {
            self.lesser(hangup, foreign).await;
        }
    }

    /// Waits for a signal that does not stop the edge, and handles it.
    async fn lesser(&self, hangup: &mut Signal, foreign: &mut ForeignSignals) {
        tokio::select! {
            _ = hangup.recv() => self.hang_up(),
            () = foreign.warn() => {}
        }
    }

    /// Reloads, and opens the access log again.
    fn hang_up(&self) {
        self.access_logs.reopen();
        self.reload.notify_one();
    }

    /// Closes the listeners and waits for requests in flight, for the grace period at most. After
    /// an upgrade it waits for open connections, too.
    async fn finish(&self, stop: Stop, grace: Duration) {
        if stop == Stop::Upgraded {
            self.in_flight.iter().for_each(InFlight::linger);
        }
        // All services see this: listeners close, idle connections end, and requests in flight are
        // answered.
        let _ = self.stop.send(true);
        let began = Instant::now();
        let at_least = match stop {
            Stop::Upgraded => Duration::from_millis(ACCEPT_MS),
            Stop::Now => Duration::ZERO,
        };
        let requests = || self.in_flight.iter().map(InFlight::count).sum::<usize>();
        let connections = || self.in_flight.iter().map(InFlight::connections).sum::<usize>();
        let is_busy = || match stop {
            Stop::Now => requests() > 0,
            Stop::Upgraded => requests() + connections() > 0 || began.elapsed() < at_least,
        };
        while is_busy() && began.elapsed() < grace {
            tokio::time::sleep(Duration::from_millis(DRAIN_POLL_MS)).await;
        }
        let left = requests();
        if left > 0 {
            let left = counted(left as u64, "request");
            error!(
                "the grace period (edge.shutdown_grace_seconds) ended with {left} still in flight"
            );
        }
    }
}
