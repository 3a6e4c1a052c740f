//! The options of a backfill: which events are sent, to which upstream, and how fast.

use std::num::NonZeroU32;
use std::path::PathBuf;

use crate::event::FromWire;
use crate::policy::portals::Portals;
use crate::upstream::BatchConfig;

/// The options of a backfill.
///
/// ```
/// use pixelgate::tools::backfill::{Filter, Options};
/// use pixelgate::{PixelGate, config::ValidConfig};
///
/// fn options(gate: &PixelGate, config: &ValidConfig) -> Options {
///     Options {
///         upstream: "collector".to_owned(),
///         batch: config.batch.clone(),
///         filter: Filter::default(),
///         portals: gate.gate().portals().clone(),
///         per_second: None,
///         sent_dir: config.sent_dir(),
///         dead_dir: config.dead_dir(),
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Options {
    /// The upstream's name.
    pub upstream: String,
    /// When a batch is closed. `linger_ms` has no meaning here.
    pub batch: BatchConfig,
    /// Which events are sent.
    pub filter: Filter,
    /// The portal list, whose `upstreams` say which events are meant for the upstream.
    pub portals: Portals,
    /// Most events in a second. `None`: as fast as the upstream takes them.
    pub per_second: Option<NonZeroU32>,
    /// The folder of the progress files, which has a folder for each upstream.
    pub sent_dir: PathBuf,
    /// The folder of the dead letters.
    pub dead_dir: PathBuf,
}

/// Conditions on an event. An event must meet all that are set; the default sets none.
///
/// ```
/// use pixelgate::tools::backfill::Filter;
///
/// let signups = Filter { event: Some("signup".to_owned()), ..Filter::default() };
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The event's portal.
    pub portal: Option<u64>,
    /// The event's name, exactly.
    pub event: Option<String>,
    /// The event was received at this time or later, in milliseconds since 1970, UTC.
    pub since_ms: Option<i64>,
    /// The event was received before this time, in milliseconds since 1970, UTC.
    pub until_ms: Option<i64>,
}

impl Options {
    /// The limits of a batch: no batch holds more than the events of one second.
    pub(super) fn limits(&self) -> BatchConfig {
        let paced = self.per_second.map_or(usize::MAX, |events| events.get() as usize);
        BatchConfig { events_max: self.batch.events_max.min(paced), ..self.batch.clone() }
    }
}

impl Options {
    /// Whether the list as it is now sends the portal's events to the upstream. The wire form of
    /// an event does not say which list was in force when the event was accepted.
    pub(super) fn are_meant(&self, event: &FromWire) -> bool {
        let portal = self.portals.judge(event.portal, &event.name);
        portal.policy.route().is_none_or(|route| route.names().any(|name| name == self.upstream))
    }
}

impl Filter {
    pub(super) fn matches(&self, event: &FromWire) -> bool {
        let time = i64::try_from(event.received_at_ms).unwrap_or(i64::MAX);
        self.portal.is_none_or(|portal| portal == event.portal)
            && self.event.as_ref().is_none_or(|name| *name == event.name)
            && self.since_ms.is_none_or(|since| time >= since)
            && self.until_ms.is_none_or(|until| time < until)
    }
}
