//! Reports the state of the service to systemd: ready, reloading or stopping (`sd_notify(3)`).
//!
//! This is for units of `Type=notify` and `Type=notify-reload`. Without the environment variable
//! `NOTIFY_SOCKET` nothing is sent.

use log::warn;
use sd_notify::NotifyState;

/// Reports that the edge accepts events, after a start or a reload.
pub fn ready() {
    // After an upgrade the main process of the unit is a new one.
    notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// Reports that a reload has begun.
pub fn reloading() {
    // systemd treats a reload without this timestamp as failed.
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    notify(&[NotifyState::Reloading, now]);
}

/// Reports that the edge stops.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        warn!("systemd cannot be notified: {e}");
    }
}
