//! Signals that mean something to other servers, and would end this process by default.
//!
//! Operators of nginx send SIGUSR1 after the rotation of a log and SIGUSR2 for an upgrade. The edge
//! goes on, and logs which means it has for the same purpose.

use log::warn;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The handlers of these signals.
pub struct ForeignSignals {
    user1: Signal,
    user2: Signal,
    alarm: Signal,
}

impl ForeignSignals {
    /// Handles the signals from now on. Needs a tokio runtime.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self {
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
            alarm: signal(SignalKind::alarm())?,
        })
    }

    /// Waits for one of the signals, and logs what to use instead.
    pub async fn warn(&mut self) {
        let [name, instead] = tokio::select! {
            _ = self.user1.recv() => {
                ["SIGUSR1", "SIGHUP opens the access log again, and reloads the configuration"]
            }
            _ = self.user2.recv() => {
                ["SIGUSR2", "`pixelgate run --upgrade` replaces this process by a new one"]
            }
            _ = self.alarm.recv() => ["SIGALRM", "SIGTERM or SIGQUIT stops the edge"],
        };
        warn!("{name} does nothing here: {instead}");
    }
}
