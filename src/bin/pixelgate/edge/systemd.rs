//! Notifies systemd of the state of the service: ready, reloading, stopping (`sd_notify(3)`).
//!
//! Works for `Type=notify` and `Type=notify-reload`. Without `NOTIFY_SOCKET` nothing is sent.

use log::warn;
use sd_notify::NotifyState;

/// The edge accepts events, after a start or a reload.
pub fn ready() {
    // After an upgrade the main process of the unit is a new one.
    notify(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// The portals and the certificates are being reloaded.
pub fn reloading() {
    // systemd treats a reload without this timestamp as failed.
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    notify(&[NotifyState::Reloading, now]);
}

/// The edge accepts no new requests.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        warn!("systemd cannot be notified: {e}");
    }
}
