//! Decides whether this edge is ready (`/readyz`), and raises the faults of portal list and spool.
//!
//! The edge is unready while no portal list was ever loaded, while the list is older than
//! `portals.stale_seconds_max`, and while the spool refuses records (SPEC 5 and 6): it then refuses
//! every event. It is also unready while it is about to stop, although it still accepts events
//! (`edge.drain_seconds`).
//!
//! A portal list that cannot be refreshed is a fault and leaves the edge ready: the last good list
//! stays in force, and every other edge with the same source would be unready, too. An upstream
//! that is down leaves the edge ready as well, because its events wait in the spool.

use super::rfc3339::rfc3339;
use super::snapshot::Snapshot;
use crate::plugin::PixelGate;
use crate::policy::portals;
use crate::policy::portals::Mode;
use crate::telemetry::faults::FaultKind;

/// The faults that `/readyz` names.
const NAMED: [FaultKind; 3] =
    [FaultKind::PortalsUnread, FaultKind::PortalsStale, FaultKind::SpoolRefuses];

/// Raises and clears the faults of portal list and spool according to their present states.
pub fn note_faults(gate: &PixelGate) {
    let portals = gate.gate().portals().status();
    let spool = gate.spool().status();
    let note = |lasts: bool, what, subject: &str, text: &str, advice: &str| match lasts {
        true => gate.faults().raise(what, subject, text, advice),
        false => gate.faults().clear(what, subject),
    };
    note(
        !portals.fresh,
        FaultKind::PortalsUnread,
        "portals",
        &unread(&portals),
        &unread_advice(&portals),
    );
    note(
        portals.stale,
        FaultKind::PortalsStale,
        "portals",
        "portals: the list is older than portals.stale_seconds_max",
        match portals.mode {
            Mode::Enforce => {
                "Look at portals.source. Events are refused until the list is loaded again."
            }
            Mode::DryRun | Mode::Off => "Look at portals.source.",
        },
    );
    note(
        portals.unstored.is_some(),
        FaultKind::PortalsUnstored,
        "portals",
        &format!(
            "portals: the list in force cannot be stored for the next start: {}",
            portals.unstored.as_deref().unwrap_or_default()
        ),
        "Make the state folder writable, with room for the list: it is then stored at the next \
         look at portals.source. Until then a start needs an answer of portals.source before it \
         accepts events.",
    );
    note(
        spool.failing.is_some(),
        FaultKind::SpoolRefuses,
        "spool",
        &format!("spool: {}", spool.failing.as_deref().unwrap_or_default()),
        spool_advice(spool.failing.as_deref().unwrap_or_default()),
    );
}

/// What an operator does about a spool that refuses events for the reason `why`.
pub fn spool_advice(why: &str) -> &'static str {
    if why.contains("bytes_max") {
        "The spool is full because an upstream does not take its events: repair that upstream. \
         Raising spool.bytes_max gains time. Events on disk are safe; senders get 503 with \
         Retry-After."
    } else if why.contains("free_bytes_min") {
        "Make room on the disk of spool.dir. The edge then accepts events again by itself; events \
         on disk are safe."
    } else {
        "Check the disk of spool.dir. The edge accepts events again by itself once it can write; \
         events that were answered 200 are safe."
    }
}

/// A sentence that says why the source gave no list, or no newer one.
fn unread(portals: &portals::Status) -> String {
    let failure = portals.last_failure.as_ref().map(|failure| failure.what.as_str());
    match (portals.loaded_at_ms, failure) {
        (None, None) => "portals: no portal list has been loaded yet".to_owned(),
        (None, Some(what)) => format!("portals: no portal list has been loaded yet: {what}"),
        (Some(_), what) => format!("portals: cannot be refreshed: {}", what.unwrap_or_default()),
    }
}

fn unread_advice(portals: &portals::Status) -> String {
    let follows = match portals.loaded_at_ms {
        Some(_) => "The last good list stays in force.",
        None => "No list has been loaded since the start.",
    };
    format!("Look at portals.source. {follows}{}", wait(portals))
}

/// A sentence, after a space, that says when the server is asked again, if it asked for a wait.
pub fn wait(portals: &portals::Status) -> String {
    portals.retry_at_ms.map_or(String::new(), |at| {
        let at = rfc3339(at);
        format!(
            " Its server asked for a wait (Retry-After): it is asked again at {at}, or on SIGHUP."
        )
    })
}

/// Whether `/readyz` answers 200.
pub fn is_ready(snapshot: &Snapshot) -> bool {
    let refuses = snapshot.portals.refuses_all().is_some() || snapshot.spool.failing.is_some();
    !refuses && !snapshot.draining
}

/// The text of `/readyz`: whether the edge is ready, and its faults.
pub fn text(snapshot: &Snapshot) -> String {
    let named = snapshot.faults.iter().filter(|fault| NAMED.contains(&fault.what));
    let ready = is_ready(snapshot).then_some("ready");
    let draining = snapshot.draining.then_some("draining: this edge is about to stop");
    let first = ready.or(draining).into_iter();
    first.chain(named.map(|fault| fault.text.as_str())).map(|line| format!("{line}\n")).collect()
}
