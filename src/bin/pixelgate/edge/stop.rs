//! Signals, and the stop that follows one.
//!
//! Pingora's own stop sleeps through its grace period even when nothing is in flight, and then
//! drops the requests in flight. The stop here closes the listeners, waits only for requests in
//! flight, and then lets Pingora end its threads; after that the gate is closed.
//!
//! A stop after an upgrade leaves idle connections open for the grace period. The next request on
//! each is answered with `Connection: close` (HTTP/2: GOAWAY), so that no connection closes while
//! its client is sending.

use super::config::Config;
use super::handover::{InheritedSockets, Named, Offer, SOCKET_NAME, Successor};
use super::systemd;
use crate::access_log::AccessLogs;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use pixelgate::PixelGate;
use pixelgate::custom::InFlight;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, watch};

/// Pause between two checks for requests in flight, in milliseconds.
const DRAIN_POLL_MS: u64 = 2;
/// Shortest deadline of a stop, for a grace period of 0.
const STOP_MIN: Duration = Duration::from_secs(1);
/// Part of the time left that closing the gate may take.
const CLOSE_PART: f64 = 0.95;
/// How long exit handlers may take when a stop hangs.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
/// Shortest stop after an upgrade, in milliseconds: a connection that is just being accepted is
/// counted a moment later.
const ACCEPT_MS: u64 = 200;

/// What a running edge needs to stop.
pub struct Signals {
    /// Asks for a reload, at SIGHUP.
    pub reload: Arc<Notify>,
    /// Opened again at SIGHUP, also while the files that a reload reads hang.
    pub access_logs: AccessLogs,
    /// The section `[edge]` in force, for the grace period.
    pub section: Arc<ArcSwap<Config>>,
    /// Becomes unready at a stop.
    pub gate: PixelGate,
    /// Closes the listeners when set to true.
    pub stop: watch::Sender<bool>,
    /// Requests and connections that a stop waits for: of the edge and of the admin pages.
    pub in_flight: [InFlight; 2],
    /// When the process is gone at the latest.
    pub deadline: Deadline,
    /// `edge.state_dir`.
    pub state_dir: PathBuf,
    /// Copies of the listening sockets for a successor; moved out when they are offered.
    pub sockets: Mutex<Vec<Named>>,
    /// Sockets inherited from the old process; moved out when this one accepts.
    pub inherited: Mutex<Option<InheritedSockets>>,
    /// Log lines that name the listeners, written when the edge accepts.
    pub announcement: Vec<String>,
    /// Moved out when the edge accepts.
    pub handlers: Mutex<Option<Handlers>>,
}

/// When the process is gone at the latest: twice the grace period after the signal. Cheap to
/// clone: all clones are one.
#[derive(Clone, Default)]
pub struct Deadline {
    at: Arc<OnceLock<Instant>>,
}

/// The signals that the edge handles. A signal that arrives before the edge accepts is handled when
/// it does.
pub struct Handlers {
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Close idle connections at once.
    Now,
    /// A successor accepts: keep idle connections for the grace period.
    Upgraded,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    // Pingora calls this when all services have started.
    async fn recv(&self) -> ShutdownSignal {
        let Some(mut handlers) = take(&self.handlers) else {
            // Pingora calls this once.
            return std::future::pending().await;
        };
        let inherited = take(&self.inherited);
        let offer = self.offer(inherited.is_some());
        // Held to the end: the old process watches this connection.
        let _old = inherited.map(|sockets| {
            sockets.accepting().inspect_err(|e| warn!("the old process is gone already: {e}"))
        });
        self.announcement.iter().for_each(|line| info!("{line}"));
        systemd::ready();
        let stop = self.wait(&mut handlers, offer.as_ref()).await;
        if stop == Stop::Now {
            self.drain(&mut handlers).await;
        }
        let grace = Duration::from_secs(self.section.load().shutdown_grace_seconds);
        self.deadline.begin(grace);
        // Drops the copies of the sockets: a listener is closed only with its last descriptor.
        drop(offer);
        tokio::select! {
            () = self.finish(stop, grace) => {}
            () = self.hang_ups(&mut handlers.hangup) => {}
        }
        ShutdownSignal::FastShutdown
    }
}

impl Deadline {
    /// Begins to run now. A thread of its own ends the process at the end, whatever hangs.
    fn begin(&self, grace: Duration) {
        let limit = (2 * grace).max(STOP_MIN);
        if self.at.set(Instant::now() + limit).is_err() {
            return;
        }
        let end = move || {
            std::thread::sleep(limit);
            error!("the stop hangs: ending after twice edge.shutdown_grace_seconds");
            log::logger().flush();
            // An exit handler may hang, too.
            std::thread::spawn(|| std::process::exit(1));
            std::thread::sleep(EXIT_LIMIT);
            std::process::abort();
        };
        if let Err(e) = std::thread::Builder::new().name("deadline".to_owned()).spawn(end) {
            warn!("a stop that hangs will not be ended: {e}");
        }
    }

    /// The time left for closing the gate, less some for the end of the process.
    pub fn left(&self) -> Duration {
        let left = self.at.get().map(|at| at.saturating_duration_since(Instant::now()));
        left.unwrap_or_default().mul_f64(CLOSE_PART)
    }
}

fn take<T: Default>(held: &Mutex<T>) -> T {
    std::mem::take(&mut *held.lock())
}

impl Handlers {
    /// Handles the signals from now on, so that none ends the process by its default action. Must
    /// be called before the first listener opens.
    pub fn install() -> std::io::Result<Self> {
        // Tokio's registry is global: the handlers outlive the runtime they were installed in.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let _inside = runtime.enter();
        // At the limit of the size of files (`ulimit -f`) a write then fails with EFBIG, and the
        // spool refuses events. The default action of SIGXFSZ would end the process.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Signals {
    /// Offers the sockets to a successor. `None`: another edge does so at the same path.
    fn offer(&self, upgraded: bool) -> Option<Offer> {
        let path = self.state_dir.join(SOCKET_NAME);
        if !upgraded && super::handover::is_offered(&path) {
            warn!("another edge runs with this edge.state_dir: this one cannot be upgraded");
            return None;
        }
        Some(Offer::open(&path, take(&self.sockets)))
    }

    async fn wait(&self, on: &mut Handlers, offer: Option<&Offer>) -> Stop {
        let (_sender, no_successor) = watch::channel(Successor::None);
        let mut successor = offer.map_or(no_successor, Offer::successor);
        let serve = async {
            match offer {
                Some(offer) => offer.serve().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(serve);
        // Whether SIGQUIT arrived while a successor was starting.
        let mut quitting = false;
        loop {
            let name = tokio::select! {
                () = &mut serve => continue,
                _ = on.terminate.recv() => "SIGTERM",
                _ = on.interrupt.recv() => "SIGINT",
                _ = on.quit.recv() => "SIGQUIT",
                _ = on.hangup.recv() => {
                    self.hang_up();
                    continue;
                }
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

    /// Goes on accepting, unready, for `edge.drain_seconds` or until another signal.
    async fn drain(&self, on: &mut Handlers) {
        let seconds = self.section.load().drain_seconds;
        if seconds == 0 {
            return;
        }
        self.gate.drain();
        info!("unready, and accepting for {seconds} seconds more (edge.drain_seconds)");
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(seconds)) => {}
            _ = on.terminate.recv() => {}
            _ = on.interrupt.recv() => {}
            _ = on.quit.recv() => {}
            () = self.hang_ups(&mut on.hangup) => {}
        }
    }

    /// Handles each SIGHUP. Does not end.
    async fn hang_ups(&self, signal: &mut Signal) {
        loop {
            match signal.recv().await {
                Some(()) => self.hang_up(),
                None => std::future::pending().await,
            }
        }
    }

    /// Reloads, and opens the access log again.
    fn hang_up(&self) {
        self.access_logs.reopen();
        self.reload.notify_one();
    }

    /// Closes the listeners and waits for what is in flight, for the grace period at most.
    async fn finish(&self, stop: Stop, grace: Duration) {
        if stop == Stop::Upgraded {
            self.in_flight.iter().for_each(InFlight::linger);
        }
        // Listeners close, idle connections end, requests in flight are answered.
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
            error!("{left} requests were still in flight when the grace period ended");
        }
    }
}
