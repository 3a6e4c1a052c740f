//! What systemd is told, where it started us (`NOTIFY_SOCKET`): ready, reloading, stopping.
//!
//! For `Type=notify` and `Type=notify-reload` alike. Elsewhere these do nothing.

use log::warn;
use sd_notify::NotifyState;

/// Events are taken, after a start or a reload.
pub fn ready() {
    // Its own process id, because after an upgrade the process is another one.
    tell(&[NotifyState::Ready, NotifyState::MainPid(std::process::id())]);
}

/// The portals and the certificates are being read again.
pub fn reloading() {
    // Without the time systemd would take the reload for a failed one.
    let Ok(now) = NotifyState::monotonic_usec_now() else { return };
    tell(&[NotifyState::Reloading, now]);
}

/// No new requests are taken.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        warn!("systemd cannot be told: {e}");
    }
}
