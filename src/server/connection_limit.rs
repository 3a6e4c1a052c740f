//! Who is connected: a bound on connections, in all and from one address.
//!
//! A connection takes its place before anything is spent on it, a TLS handshake included, and
//! gives it back when it ends, however it ends.

use super::limits::{LimitReporter, Limits};
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::Limit;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Who is connected. The table holds only addresses that are connected now, so it is as bounded
/// as connections are, and is not touched where addresses are not limited.
pub struct ConnectionLimit {
    limit_reporter: Arc<LimitReporter>,
    /// A stop waits for these connections, and for others.
    in_flight: InFlight,
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place; given back when dropped.
pub struct Permit {
    connection_limit: Arc<ConnectionLimit>,
    address: Option<IpAddr>,
}

impl ConnectionLimit {
    /// Nobody is connected.
    pub fn new(limit_reporter: Arc<LimitReporter>, in_flight: InFlight) -> Self {
        Self { limit_reporter, in_flight, all: AtomicUsize::new(0), by_address: Mutex::default() }
    }

    /// A place for one more connection, if there is one.
    pub fn admit(self: &Arc<Self>, limits: &Limits) -> Option<Permit> {
        if self.all.fetch_add(1, Relaxed) >= limits.connections_max {
            self.all.fetch_sub(1, Relaxed);
            self.limit_reporter.tell(Limit::Connections);
            return None;
        }
        self.in_flight.connected();
        Some(Permit { connection_limit: self.clone(), address: None })
    }
}

impl Permit {
    /// Gives the place to a client at `address`, if it may have one more.
    pub fn claim(mut self, address: IpAddr, limits: &Limits) -> Option<Self> {
        if limits.connections_per_address_max == 0 {
            return Some(self);
        }
        let address = counted_as(address);
        {
            let by_address = self.connection_limit.by_address.lock();
            let mut by_address = by_address.unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry(address).or_default();
            if *count < limits.connections_per_address_max {
                *count += 1;
                self.address = Some(address);
            }
        }
        if self.address.is_none() {
            self.connection_limit.limit_reporter.tell(Limit::ConnectionsPerAddress);
            return None;
        }
        Some(self)
    }
}

/// One customer of IPv6 has a /64 network and may use as many addresses of it as he likes.
fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connection_limit.in_flight.disconnected();
        self.connection_limit.all.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            let by_address = self.connection_limit.by_address.lock();
            let mut by_address = by_address.unwrap_or_else(PoisonError::into_inner);
            if let Entry::Occupied(mut entry) = by_address.entry(address) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    fn connection_limit() -> Arc<ConnectionLimit> {
        Arc::new(ConnectionLimit::new(
            Arc::new(LimitReporter::new(Metrics::new())),
            InFlight::default(),
        ))
    }

    #[test]
    fn places_are_counted_in_all_and_by_address() {
        let connection_limit = connection_limit();
        let limits =
            Limits { connections_max: 3, connections_per_address_max: 2, ..Limits::default() };
        let admit = |address: &str| {
            connection_limit.admit(&limits)?.claim(address.parse().unwrap(), &limits)
        };
        let first = admit("203.0.113.1").unwrap();
        let _second = admit("::ffff:203.0.113.1").unwrap();
        assert!(admit("203.0.113.1").is_none(), "a third from one address");
        let _third = admit("203.0.113.2").unwrap();
        assert!(admit("203.0.113.3").is_none(), "a fourth in all");
        drop(first);
        assert!(admit("203.0.113.1").is_some());
        assert_eq!(
            (connection_limit.all.load(Relaxed), connection_limit.in_flight.connections()),
            (2, 2)
        );
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_the_table_forgets() {
        let connection_limit = connection_limit();
        let limits = Limits { connections_per_address_max: 1, ..Limits::default() };
        let admit = |address: &str| {
            connection_limit.admit(&limits)?.claim(address.parse().unwrap(), &limits)
        };
        let permit = admit("2001:db8:0:1::1").unwrap();
        assert!(admit("2001:db8:0:1:ffff::2").is_none());
        drop(admit("2001:db8:0:2::1").unwrap());
        drop(permit);
        assert!(connection_limit.by_address.lock().unwrap().is_empty());
        assert_eq!(connection_limit.all.load(Relaxed), 0);
    }
}
