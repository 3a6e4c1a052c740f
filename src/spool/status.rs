//! The figures that a spool reports about itself.

/// The figures of a spool at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// The bytes of events that at least one upstream has not acknowledged.
    pub bytes: u64,
    /// The free bytes on the spool's disk, measured once a second.
    pub free_bytes: u64,
    /// The seconds until appends are refused, at the growth of about the last 30 s. `None` while
    /// the spool does not grow.
    pub seconds_to_full: Option<u64>,
    /// The damaged bytes that were found, with those of earlier starts that are still in the
    /// quarantine folder.
    pub quarantined_bytes: u64,
    /// Whether groups are written around the page cache. `false`: through it, because the file
    /// system refuses the other way, because of `spool.durability`, or because nothing could be
    /// written yet.
    pub direct_writes: bool,
    /// Why appends are refused. `None` while they are accepted.
    pub failing: Option<String>,
    /// The lanes that other processes hold, as during an upgrade. The totals contain what these
    /// processes have written to the files of their lanes, which they do once a second.
    pub lanes_of_other_processes: usize,
    /// The totals of each upstream over the spool's life.
    pub upstreams: Vec<UpstreamStatus>,
}

/// One upstream's totals: `accepted = delivered + dead + lost + pending` (SPEC 7).
#[derive(Debug, Clone)]
pub struct UpstreamStatus {
    /// The upstream's name.
    pub name: String,
    /// Events that were accepted since the upstream was added, with those that were pending then.
    pub accepted: u64,
    /// Events that the upstream has acknowledged.
    pub delivered: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
    /// Events that were lost to damage.
    pub lost: u64,
    /// Events that the upstream has not acknowledged yet.
    pub pending: u64,
}

/// One portal's totals over the spool's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortalTotals {
    /// The portal. 0 stands for all portals that have no totals of their own.
    pub portal: u64,
    /// Events that were accepted.
    pub accepted: u64,
    /// Events that were rejected.
    pub rejected: u64,
    /// Deliveries: an event counts once for each upstream that has it.
    pub delivered: u64,
    /// The totals for each configured upstream.
    pub upstreams: Vec<PortalUpstream>,
}

/// The totals of one portal for one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalUpstream {
    /// The upstream's name.
    pub name: String,
    /// Events that the upstream has acknowledged.
    pub delivered: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
}
