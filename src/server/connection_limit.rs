//! Limits open connections, in total and per address.
//!
//! A connection takes a [`Permit`] before it costs anything else, such as a TLS handshake. The
//! permit is released when it is dropped.

use super::limits::{LimitReporter, Limits};
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::Limit;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counts open connections. The table holds only addresses with an open connection, so it has at
/// most `connections_max` entries. It is unused if there is no per-address limit.
pub struct ConnectionLimit {
    limit_reporter: Arc<LimitReporter>,
    /// Also counts these connections, because a stop waits for them.
    in_flight: InFlight,
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// Permission for one connection; released when dropped.
pub struct Permit {
    connection_limit: Arc<ConnectionLimit>,
    address: Option<IpAddr>,
}

impl ConnectionLimit {
    /// A limit with no open connections.
    pub fn new(limit_reporter: Arc<LimitReporter>, in_flight: InFlight) -> Self {
        Self { limit_reporter, in_flight, all: AtomicUsize::new(0), by_address: Mutex::default() }
    }

    /// Takes a permit; `None` if `connections_max` connections are open.
    pub fn admit(self: &Arc<Self>, limits: &Limits) -> Option<Permit> {
        if self.all.fetch_add(1, Relaxed) >= limits.connections_max {
            self.all.fetch_sub(1, Relaxed);
            self.limit_reporter.report(Limit::Connections);
            return None;
        }
        self.in_flight.connected();
        Some(Permit { connection_limit: self.clone(), address: None })
    }
}

impl Permit {
    /// Counts the connection for `address`. Returns `None`, and releases the permit, if that
    /// address has `connections_per_address_max` connections.
    pub fn claim(mut self, address: IpAddr, limits: &Limits) -> Option<Self> {
        if limits.connections_per_address_max == 0 {
            return Some(self);
        }
        let address = counted_as(address);
        {
            let mut by_address = self.connection_limit.by_address.lock();
            let count = by_address.entry(address).or_default();
            if *count < limits.connections_per_address_max {
                *count += 1;
                self.address = Some(address);
            }
        }
        if self.address.is_none() {
            self.connection_limit.limit_reporter.report(Limit::ConnectionsPerAddress);
            return None;
        }
        Some(self)
    }
}

/// The address to count. IPv6: the /64 network, because one customer owns a whole /64.
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
            let mut by_address = self.connection_limit.by_address.lock();
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
    fn connections_are_counted_in_total_and_by_address() {
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
    fn an_ipv6_network_counts_as_one_address_and_the_table_is_emptied() {
        let connection_limit = connection_limit();
        let limits = Limits { connections_per_address_max: 1, ..Limits::default() };
        let admit = |address: &str| {
            connection_limit.admit(&limits)?.claim(address.parse().unwrap(), &limits)
        };
        let permit = admit("2001:db8:0:1::1").unwrap();
        assert!(admit("2001:db8:0:1:ffff::2").is_none());
        drop(admit("2001:db8:0:2::1").unwrap());
        drop(permit);
        assert!(connection_limit.by_address.lock().is_empty());
        assert_eq!(connection_limit.all.load(Relaxed), 0);
    }
}
