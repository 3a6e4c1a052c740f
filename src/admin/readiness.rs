//! Whether the gate accepts events, which `/readyz` says, and the faults for which it does not.
//!
//! It does if the portal list is loaded and fresh and the spool takes records. An upstream that is
//! down leaves the gate ready, because its events wait in the spool.

use crate::plugin::PixelGate;
use crate::telemetry::faults::{Fault, FaultKind};

/// The faults for which `/readyz` answers 503.
const UNREADY: [FaultKind; 3] =
    [FaultKind::PortalsUnread, FaultKind::PortalsStale, FaultKind::SpoolRefuses];

/// Raises and clears the faults of portal list and spool, as their states are now.
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
        "portals: the last look at the list failed, or there is none yet",
        "Look at portals.source. The last good list stays in force.",
    );
    note(
        portals.stale,
        FaultKind::PortalsStale,
        "portals",
        "portals: the list is older than portals.stale_seconds_max",
        "Look at portals.source. Events are refused until the list is loaded again.",
    );
    note(
        spool.failing.is_some(),
        FaultKind::SpoolRefuses,
        "spool",
        &format!("spool: {}", spool.failing.as_deref().unwrap_or_default()),
        "Look at the disk of spool.dir. Events are accepted again without a restart.",
    );
}

/// Whether `/readyz` answers 200.
pub fn is_ready(faults: &[Fault]) -> bool {
    !faults.iter().any(|fault| UNREADY.contains(&fault.what))
}

/// The text of `/readyz`.
pub fn text(faults: &[Fault]) -> String {
    let unready = faults.iter().filter(|fault| UNREADY.contains(&fault.what));
    let lines: String = unready.map(|fault| format!("{}\n", fault.text)).collect();
    if lines.is_empty() { "ready\n".to_owned() } else { lines }
}
