//! Who is connected: a bound on connections, in all and from one address.

use super::Limits;
use log::warn;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// Who is connected.
#[derive(Default)]
pub struct Census {
    all: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
    full: AtomicBool,
}

/// One connection's place; given back when dropped.
pub struct Place {
    census: Arc<Census>,
    address: Option<IpAddr>,
}

impl Census {
    /// A place for one more connection, if there is one.
    pub fn admit(self: &Arc<Self>, address: Option<IpAddr>, limits: &Limits) -> Option<Place> {
        if self.all.fetch_add(1, Relaxed) >= limits.connections_max {
            self.all.fetch_sub(1, Relaxed);
            if !self.full.swap(true, Relaxed) {
                warn!("{} connections are open: more are closed", limits.connections_max);
            }
            return None;
        }
        self.full.store(false, Relaxed);
        let mut place = Place { census: self.clone(), address: None };
        if limits.connections_per_address_max > 0
            && let Some(address) = address
        {
            let mut by_address = self.by_address.lock().unwrap_or_else(PoisonError::into_inner);
            let count = by_address.entry(address).or_default();
            if *count >= limits.connections_per_address_max {
                drop(by_address);
                return None;
            }
            *count += 1;
            place.address = Some(address);
        }
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.census.all.fetch_sub(1, Relaxed);
        if let Some(address) = self.address {
            let by_address = self.census.by_address.lock();
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
    use std::time::Duration;

    #[test]
    fn places_are_counted_in_all_and_by_address() {
        let census = Arc::new(Census::default());
        let limits = Limits {
            header_timeout: Duration::from_secs(1),
            keepalive: Duration::from_secs(1),
            connections_max: 3,
            connections_per_address_max: 2,
            answer_plain: true,
        };
        let one = Some("203.0.113.1".parse().unwrap());
        let other = Some("203.0.113.2".parse().unwrap());
        let first = census.admit(one, &limits).unwrap();
        let _second = census.admit(one, &limits).unwrap();
        assert!(census.admit(one, &limits).is_none(), "a third from one address");
        let _third = census.admit(other, &limits).unwrap();
        assert!(census.admit(other, &limits).is_none(), "a fourth in all");
        drop(first);
        assert!(census.admit(one, &limits).is_some());
        assert_eq!(census.all.load(Relaxed), 2);
    }
}
