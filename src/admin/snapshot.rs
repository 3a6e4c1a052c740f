//! The state of a gate at one moment, as typed data.
//!
//! [`super::sampler`] takes it, and [`super::status`], [`super::health_summary`] and the metrics
//! read it. It holds numbers, names from the configuration and masked samples, and formats nothing.

use super::history::{Rejections, Span};
use crate::delivery;
use crate::event::Reason;
use crate::policy::portals;
use crate::spool;
use crate::telemetry::event_samples::{EventSample, Ranking};
use crate::telemetry::faults::Fault;
use std::collections::HashMap;
use std::time::Duration;

/// The state of a gate at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// When the snapshot was taken, in milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// Time since the sampler was made.
    pub uptime: Duration,
    /// Events accepted since start.
    pub accepted: u64,
    /// Events rejected since start, by reason.
    pub rejected: Vec<(Reason, u64)>,
    /// Event requests answered without a verdict (`HEAD`, `OPTIONS`) since start.
    pub not_judged: u64,
    /// Whether the host is about to stop.
    pub draining: bool,
    /// The spool.
    pub spool: spool::Status,
    /// The spool's limit (`spool.bytes_max`), in bytes.
    pub spool_bytes_max: u64,
    /// The portal list.
    pub portals: portals::Status,
    /// The lasting conditions that need an operator, the oldest first.
    pub faults: Vec<Fault>,
    /// Delivery to each upstream.
    pub routes: Vec<delivery::Status>,
    /// The difference between the counters now and at the beginning of the history.
    pub lately: Span,
    /// The portals with the most accepted events.
    pub top_portals: Ranking,
    /// The sampled rejections of each portal, over the same time as `top_portals`.
    pub rejections: HashMap<u64, Rejections>,
    /// The totals over the spool's life: of the portals with the most events, and of all others
    /// together.
    pub portal_totals: (Vec<spool::PortalTotals>, spool::PortalTotals),
    /// The time from which these totals count, in milliseconds since 1970, UTC.
    pub portals_since_ms: Option<u64>,
    /// The latest event samples, newest first, each with its number since start: accepted and
    /// rejected events in proportion.
    pub recent: Vec<(u64, EventSample)>,
    /// The latest samples of rejected events, newest first, each with its number since start.
    pub recent_rejected: Vec<(u64, EventSample)>,
}
