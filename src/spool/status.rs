//! The figures that a spool reports about itself.

/// The spool's content at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    /// Bytes of events that at least one upstream has not acknowledged.
    pub bytes: u64,
    /// Bytes free on the spool's disk, measured once a second.
    pub free_bytes: u64,
    /// Seconds until appends are refused, at the growth of about the last 30 s; `None` while the
    /// spool does not grow.
    pub seconds_to_full: Option<u64>,
    /// Damaged bytes found, including those still in the quarantine folder from earlier starts.
    pub quarantined_bytes: u64,
    /// Whether groups are written around the page cache. `false`: through it, because the file
    /// system refuses the other way, because of `spool.durability`, or because nothing could be
    /// written yet.
    pub direct_writes: bool,
    /// Why appends are refused; `None` while they are accepted.
    pub failing: Option<String>,
    /// Totals for each upstream over the spool's life.
    pub upstreams: Vec<UpstreamStatus>,
}

/// One upstream's totals: `accepted = delivered + dead + lost + pending` (SPEC 7).
#[derive(Debug, Clone)]
pub struct UpstreamStatus {
    /// The upstream's name.
    pub name: String,
    /// Events appended since the upstream exists, and pending ones that it took over when added.
    pub accepted: u64,
    /// Events that the upstream has acknowledged.
    pub delivered: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
    /// Events lost to corruption.
    pub lost: u64,
    /// Events that the upstream has not acknowledged yet.
    pub pending: u64,
}

/// One portal's totals over the spool's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortalTotals {
    /// The portal. 0: all that have no totals of their own.
    pub portal: u64,
    /// Events that were accepted.
    pub accepted: u64,
    /// Events that were rejected.
    pub rejected: u64,
    /// Deliveries: an event counts once for each upstream that has it.
    pub delivered: u64,
    /// The same for each configured upstream.
    pub upstreams: Vec<PortalUpstream>,
}

/// What became of one portal's events for one upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalUpstream {
    /// The upstream's name.
    pub name: String,
    /// Events that the upstream has acknowledged.
    pub delivered: u64,
    /// Events that went to the dead letters.
    pub dead: u64,
}
