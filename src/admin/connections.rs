//! Limits the connections to the admin listener, so that silent clients cannot keep out a probe.
//!
//! A connection is idle while it waits for a request. When a limit is reached, the oldest idle
//! connection is closed to make room for the new one. At the limit for one address, that is the
//! oldest idle connection of this address. A new connection is refused only if no connection is
//! idle.

use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Notify;

/// The most connections at once.
pub const CONNECTIONS_MAX: usize = 128;
/// The most connections at once from one address. Unix sockets have no address and no such limit.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;

/// The open connections of one listener.
#[derive(Default)]
pub struct Connections {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// The open connections in order of arrival, at most [`CONNECTIONS_MAX`].
    open: Vec<Entry>,
}

struct Entry {
    id: u64,
    address: Option<IpAddr>,
    is_idle: bool,
    evicted: Arc<Notify>,
}

/// One open connection. Dropping it frees its place.
pub struct Connection<'a> {
    all: &'a Connections,
    id: u64,
    evicted: Arc<Notify>,
}

impl Connections {
    /// Counts a new, idle connection. `None`: there is no room, and the caller must close the
    /// connection.
    pub fn admit(&self, address: Option<IpAddr>) -> Option<Connection<'_>> {
        let mut table = self.table.lock();
        let of_address = table.open.iter().filter(|e| e.address == address).count();
        if address.is_some() && of_address >= CONNECTIONS_PER_ADDRESS_MAX {
            table.evict(|entry| entry.address == address)?;
        } else if table.open.len() >= CONNECTIONS_MAX {
            table.evict(|_| true)?;
        }
        let id = table.next_id;
        table.next_id += 1;
        let evicted = Arc::new(Notify::new());
        table.open.push(Entry { id, address, is_idle: true, evicted: Arc::clone(&evicted) });
        Some(Connection { all: self, id, evicted })
    }
}

impl Table {
    /// Removes the oldest idle connection for which `may_go` is true.
    fn evict(&mut self, may_go: impl Fn(&Entry) -> bool) -> Option<()> {
        let oldest = self.open.iter().position(|entry| entry.is_idle && may_go(entry))?;
        self.open.remove(oldest).evicted.notify_one();
        Some(())
    }
}

impl Connection<'_> {
    /// Returns when a new connection has taken the place of this one, which must then be closed.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Marks the connection as idle or as being answered. Returns false if a new connection has
    /// taken its place.
    pub fn set_idle(&self, is_idle: bool) -> bool {
        let mut table = self.all.table.lock();
        let entry = table.open.iter_mut().find(|entry| entry.id == self.id);
        entry.map(|entry| entry.is_idle = is_idle).is_some()
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.all.table.lock().open.retain(|entry| entry.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(n: usize) -> Option<IpAddr> {
        Some(Ipv4Addr::new(10, 0, 0, u8::try_from(n).unwrap()).into())
    }

    #[tokio::test]
    async fn the_oldest_idle_connection_of_an_address_makes_room() {
        let all = Connections::default();
        let other = all.admit(address(2)).unwrap();
        let mut open: Vec<_> =
            (0..CONNECTIONS_PER_ADDRESS_MAX).map(|_| all.admit(address(1)).unwrap()).collect();
        assert!(open[0].set_idle(false), "it is being answered");
        open.push(all.admit(address(1)).unwrap());
        open[1].evicted().await;
        assert!(!open[1].set_idle(false), "its place is gone");
        assert!(open[0].set_idle(true) && open[2].set_idle(true) && other.set_idle(true));
    }

    #[tokio::test]
    async fn the_oldest_idle_connection_of_all_makes_room() {
        let all = Connections::default();
        let per_address = 32;
        let open: Vec<_> =
            (0..CONNECTIONS_MAX).map(|n| all.admit(address(n / per_address)).unwrap()).collect();
        let late = all.admit(address(9)).unwrap();
        open[0].evicted().await;
        assert!(!open[0].set_idle(true) && open[1].set_idle(true) && late.set_idle(true));
    }

    #[test]
    fn connections_that_are_being_answered_stay_and_the_new_one_is_refused() {
        let all = Connections::default();
        let mut open: Vec<_> = (0..CONNECTIONS_MAX).map(|_| all.admit(None).unwrap()).collect();
        open.iter().for_each(|connection| assert!(connection.set_idle(false)));
        assert!(all.admit(None).is_none());
        open.pop();
        assert!(all.admit(None).is_some());
    }
}
