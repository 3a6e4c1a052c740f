//! Lets the spool, which knows no events, read from a record which upstreams it is meant for and
//! which portal and day it counts for.

use crate::clock::DAY_MS;
use crate::event;
use crate::policy::portals::AcceptedByDay;
use crate::spool::{DayCounts, Metered, Metering, Routing};

/// How the spool reads which upstreams an event is meant for.
pub const EVENT_ROUTING: Routing =
    Routing { is_routed: event::is_routed, names: event::names_upstream };

/// How the spool reads an event's portal and day.
pub const EVENT_METERING: Metering = Metering { read: metered };

fn metered(record: &[u8]) -> Option<Metered> {
    let (portal, received_at_ms) = event::portal_and_time(record)?;
    let day = u32::try_from(received_at_ms / DAY_MS).unwrap_or(u32::MAX);
    Some(Metered { portal, day })
}

/// The spool's counts of accepted events, as the quotas of the portal list read them.
pub struct Counted(pub DayCounts);

impl AcceptedByDay for Counted {
    fn accepted(&self, portal: u64, day: u32) -> u64 {
        self.0.accepted(portal, day)
    }

    fn takeovers(&self) -> u64 {
        self.0.takeovers()
    }
}
