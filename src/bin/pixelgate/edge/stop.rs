//! Signals, and the way from one to the end of the process.
//!
//! Pingora's own stop sleeps through its grace period even when nothing is in flight, and drops
//! what is in flight at its end. So the stop is run here: close the listeners, wait for requests
//! in flight (and only for them), then let Pingora end its threads, then the gate is closed.
//!
//! A stop after an upgrade is gentler: whoever is connected may go on to its next request, which
//! is answered with `Connection: close`, for as long as the grace period. So no client meets a
//! connection that closes while it is sending. (HTTP/2 says the same by GOAWAY.)

use super::handover::{InheritedSockets, Named, Offer, SOCKET_NAME, Successor};
use super::systemd;
use super::tls::Certificates;
use async_trait::async_trait;
use log::{error, info, warn};
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use pixelgate::PixelGate;
use pixelgate::http_server::InFlight;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Pause between two looks at whether requests are still in flight, in milliseconds.
const DRAIN_LOOK_MS: u64 = 2;
/// After an upgrade, how long the stop takes at least, in milliseconds: a connection that is just
/// being accepted is counted a moment later.
const ACCEPT_MS: u64 = 200;

/// What a running edge needs to stop.
pub struct Signals {
    /// To be told of a hang-up.
    pub gate: PixelGate,
    /// To be read again at a hang-up.
    pub certificates: Vec<Arc<Certificates>>,
    /// Closes the listeners when it says so.
    pub stop: watch::Sender<bool>,
    /// What a stop waits for: of visitors, and of whoever looks at the pages,
    pub in_flight: [InFlight; 2],
    /// for as long as this.
    pub grace: Duration,
    /// `edge.state_dir`.
    pub state_dir: PathBuf,
    /// What a successor may take; taken out when it is offered.
    pub sockets: Mutex<Vec<Named>>,
    /// What this process took; taken out when it accepts.
    pub inherited: Mutex<Option<InheritedSockets>>,
    /// Where it listens: said when it does, and when it can be stopped.
    pub announcement: Vec<String>,
}

/// The signals that mean something.
struct Handlers {
    terminate: Signal,
    quit: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Idle connections close at once.
    Now,
    /// A successor accepts: idle connections have the grace period.
    Upgraded,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    // Pingora asks when all services have been started.
    async fn recv(&self) -> ShutdownSignal {
        let handlers = match Handlers::install() {
            Ok(handlers) => handlers,
            Err(e) => {
                // Without handlers the default actions apply: the process still ends, undrained.
                error!("signals cannot be handled: {e}");
                std::future::pending().await
            }
        };
        let inherited = take(&self.inherited);
        let offer = self.offer(inherited.is_some());
        // Held to the end: by it the old process knows of this one.
        let _old = inherited.map(|sockets| {
            sockets.accepting().inspect_err(|e| warn!("the old process is gone already: {e}"))
        });
        self.announcement.iter().for_each(|line| info!("{line}"));
        systemd::ready();
        let stop = self.wait(handlers, offer.as_ref()).await;
        // With it go our copies of the sockets: only then does closing a listener close it.
        drop(offer);
        self.drain(stop).await;
        ShutdownSignal::FastShutdown
    }
}

fn take<T: Default>(held: &Mutex<T>) -> T {
    std::mem::take(&mut *held.lock())
}

impl Handlers {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Signals {
    /// Offers the sockets to a successor. What hinders that hinders upgrades alone.
    fn offer(&self, upgraded: bool) -> Option<Offer> {
        let path = self.state_dir.join(SOCKET_NAME);
        if !upgraded && super::handover::is_offered(&path) {
            warn!("another edge runs with this edge.state_dir: this one cannot be upgraded");
            return None;
        }
        let offer = Offer::open(&path, take(&self.sockets));
        offer.inspect_err(|e| warn!("{}: {e}: no upgrade is possible", path.display())).ok()
    }

    async fn wait(&self, mut on: Handlers, offer: Option<&Offer>) -> Stop {
        let (_none, nobody) = watch::channel(Successor::None);
        let mut successor = offer.map_or(nobody, Offer::successor);
        let serve = async {
            match offer {
                Some(offer) => offer.serve().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(serve);
        // Whether SIGQUIT came while a successor was starting.
        let mut quitting = false;
        loop {
            let name = tokio::select! {
                () = &mut serve => continue,
                _ = on.terminate.recv() => "SIGTERM",
                _ = on.interrupt.recv() => "SIGINT",
                _ = on.quit.recv() => "SIGQUIT",
                _ = on.hangup.recv() => {
                    systemd::reloading();
                    self.reload();
                    systemd::ready();
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
                    error!("the new process failed to start: this one goes on");
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

    fn reload(&self) {
        info!("SIGHUP: reading the portals and the certificates again");
        self.gate.reload_portals();
        for certificates in &self.certificates {
            certificates.reload(true);
        }
    }

    async fn drain(&self, stop: Stop) {
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
        while is_busy() && began.elapsed() < self.grace {
            tokio::time::sleep(Duration::from_millis(DRAIN_LOOK_MS)).await;
        }
        let left = requests();
        if left > 0 {
            error!("{left} requests were still in flight when the grace period ended");
        }
    }
}
