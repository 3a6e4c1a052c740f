//! The list of faults: lasting conditions that need an operator (SPEC 8).
//!
//! Any room raises a fault when a condition begins and clears it when the condition is over. A
//! [`FaultKind`] and a `subject` identify the fault; the subject is the upstream, file or folder
//! that the fault is about. A single failed attempt is not a fault.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use parking_lot::Mutex;
use prometheus::{IntGaugeVec, Opts};

/// The kind of a fault: `what` in `/status`, and the label of `pixelgate_faults`.
///
/// ```
/// use pixelgate::custom::FaultKind;
///
/// assert_eq!(FaultKind::ConfigReload.as_str(), "config_reload");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FaultKind {
    /// The portal list could not be read, or was never loaded.
    PortalsUnread,
    /// The portal list is older than `portals.stale_seconds_max`.
    PortalsStale,
    /// The portal list of a URL cannot be stored for the next start.
    PortalsUnstored,
    /// The spool refuses events.
    SpoolRefuses,
    /// The same events fail again and again while the upstream takes others.
    Poison,
    /// The upstream takes nothing, and events wait for it.
    UpstreamStuck,
    /// The dead letters of an upstream cannot be written.
    DeadLetters,
    /// So many separate events are stuck that no further events are read for the upstream.
    RunAheadBound,
    /// Events wait for an upstream that is not configured.
    UpstreamRemoved,
    /// A newer version wrote records, which wait until that version runs again.
    NewerRecords,
    /// The process has no lane in the spool's folder yet, because the disk refused to create one.
    SpoolStart,
    /// The spool's folder or lane is not at its path any more, or cannot be listed.
    SpoolFolder,
    /// A lane of an earlier process cannot be taken over, so no count includes its events.
    SpoolLane,
    /// A segment is missing or cannot be read, so its events wait.
    SpoolSegment,
    /// A lane's cursor cannot be written, or a start found none that can be read.
    SpoolCursor,
    /// Files of the spool cannot be removed.
    SpoolFiles,
    /// The totals by portal began anew, have no room for further portals, or cannot be written.
    PortalTotals,
    /// A changed configuration, or a file that it names, is not in force.
    ConfigReload,
    /// Files of the state folder cannot be made: an upgrade is not possible, or the values in force
    /// are not noted.
    StateDir,
    /// Lines of the access log are not written.
    AccessLog,
    /// A collector does not take the metrics.
    Otlp,
}

impl FaultKind {
    /// Every kind, so that `/metrics` shows a zero for each kind without faults.
    pub const ALL: [Self; 21] = [
        Self::PortalsUnread,
        Self::PortalsStale,
        Self::PortalsUnstored,
        Self::SpoolRefuses,
        Self::Poison,
        Self::UpstreamStuck,
        Self::DeadLetters,
        Self::RunAheadBound,
        Self::UpstreamRemoved,
        Self::NewerRecords,
        Self::SpoolStart,
        Self::SpoolFolder,
        Self::SpoolLane,
        Self::SpoolSegment,
        Self::SpoolCursor,
        Self::SpoolFiles,
        Self::PortalTotals,
        Self::ConfigReload,
        Self::StateDir,
        Self::AccessLog,
        Self::Otlp,
    ];

    /// The word in `/status` and in the label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PortalsUnread => "portals_unread",
            Self::PortalsStale => "portals_stale",
            Self::PortalsUnstored => "portals_unstored",
            Self::SpoolRefuses => "spool_refuses",
            Self::Poison => "poison",
            Self::UpstreamStuck => "upstream_stuck",
            Self::DeadLetters => "dead_letters",
            Self::RunAheadBound => "run_ahead_bound",
            Self::UpstreamRemoved => "upstream_removed",
            Self::NewerRecords => "newer_records",
            Self::SpoolStart => "spool_start",
            Self::SpoolFolder => "spool_folder",
            Self::SpoolLane => "spool_lane",
            Self::SpoolSegment => "spool_segment",
            Self::SpoolCursor => "spool_cursor",
            Self::SpoolFiles => "spool_files",
            Self::PortalTotals => "portal_totals",
            Self::ConfigReload => "config_reload",
            Self::StateDir => "state_dir",
            Self::AccessLog => "access_log",
            Self::Otlp => "otlp",
        }
    }
}

/// A lasting condition that needs an operator.
///
/// ```
/// use pixelgate::custom::Fault;
///
/// fn line(fault: &Fault) -> String {
///     format!("{} ({}): {} {}", fault.what.as_str(), fault.subject, fault.text, fault.advice)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind of the fault.
    pub what: FaultKind,
    /// The upstream, file or folder that the fault is about.
    pub subject: String,
    /// When the fault began, in milliseconds since 1970, UTC.
    pub since_ms: u64,
    /// The condition, as one sentence. Holds nothing that a request brought.
    pub text: String,
    /// What an operator can do, in whole sentences.
    pub advice: String,
}

/// The faults of one gate. Cheap to clone: all clones are one list.
///
/// ```
/// use pixelgate::custom::{FaultKind, Faults};
///
/// let faults = Faults::unregistered(); // a host has `PixelGate::faults`
/// faults.raise(FaultKind::ConfigReload, "edge.toml", "It cannot be read.", "Look at its mode.");
/// assert_eq!(faults.list()[0].subject, "edge.toml");
/// faults.clear(FaultKind::ConfigReload, "edge.toml");
/// ```
#[derive(Clone)]
pub struct Faults {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Arc<dyn Clock>,
    gauge: IntGaugeVec,
    faults: Mutex<BTreeMap<(FaultKind, String), Fault>>,
}

impl Faults {
    /// An empty list. `gauge` has one label, `what`, and shows the number of faults of each kind.
    pub fn new(clock: Arc<dyn Clock>, gauge: IntGaugeVec) -> Faults {
        for kind in FaultKind::ALL {
            gauge.with_label_values(&[kind.as_str()]).set(0);
        }
        Faults { inner: Arc::new(Inner { clock, gauge, faults: Mutex::default() }) }
    }

    /// An empty list with the clock of the system, and with a gauge that is in no registry.
    pub fn unregistered() -> Faults {
        let gauge = IntGaugeVec::new(Opts::new("faults", "faults"), &["what"]);
        let gauge = gauge.expect("the name and the label are valid: a test makes this gauge");
        Faults::new(Arc::new(SystemClock), gauge)
    }

    /// Adds the fault `what` of `subject` to the list. A fault that is in the list already keeps
    /// the time of its beginning, and gets the new text and advice.
    pub fn raise(
        &self,
        what: FaultKind,
        subject: &str,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) {
        let (text, advice) = (text.into(), advice.into());
        let mut faults = self.inner.faults.lock();
        if let Some(fault) = faults.get_mut(&(what, subject.to_owned())) {
            (fault.text, fault.advice) = (text, advice);
            return;
        }
        let since_ms = self.inner.clock.unix_ms();
        let fault = Fault { what, subject: subject.to_owned(), since_ms, text, advice };
        faults.insert((what, subject.to_owned()), fault);
        self.inner.gauge.with_label_values(&[what.as_str()]).inc();
    }

    /// Removes the fault from the list, if it is there, because its condition is over.
    pub fn clear(&self, what: FaultKind, subject: &str) {
        let mut faults = self.inner.faults.lock();
        if faults.remove(&(what, subject.to_owned())).is_some() {
            self.inner.gauge.with_label_values(&[what.as_str()]).dec();
        }
    }

    /// The faults, the oldest first.
    pub fn list(&self) -> Vec<Fault> {
        let mut list: Vec<Fault> = self.inner.faults.lock().values().cloned().collect();
        list.sort_by_key(|fault| fault.since_ms);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_lasts_from_the_first_raise_to_the_clear() {
        let faults = Faults::unregistered();
        let count = || faults.inner.gauge.with_label_values(&[FaultKind::Poison.as_str()]).get();
        faults.raise(FaultKind::Poison, "a", "An event fails.", "Wait.");
        let since_ms = faults.list()[0].since_ms;
        faults.raise(FaultKind::Poison, "a", "An event fails again.", "Look at it.");
        faults.raise(FaultKind::Poison, "b", "An event fails.", "Wait.");
        assert_eq!(count(), 2);
        let first = faults.list().into_iter().find(|fault| fault.subject == "a").unwrap();
        assert_eq!((first.since_ms, first.text.as_str()), (since_ms, "An event fails again."));
        faults.clear(FaultKind::Poison, "a");
        faults.clear(FaultKind::Poison, "a");
        faults.clear(FaultKind::UpstreamStuck, "b");
        assert_eq!((count(), faults.list().len()), (1, 1));
    }
}
