//! Opens all listening sockets of an edge, or takes them over from the running process.

use super::config::Config;
use super::error::EdgeError;
use super::handover::{InheritedSockets, Named, SOCKET_NAME};
use super::listen::{Address, Bound};
use crate::config::listeners;
use log::warn;
use pixelgate::config::Admin;
use std::time::{Duration, Instant};

/// How long an upgrade that found no running process tries again to open an address in use, in
/// seconds. A process that is just stopping may not have closed its listener yet.
const BIND_SECONDS_MAX: u64 = 5;
/// The pause between two attempts to open a socket, in milliseconds.
const BIND_RETRY_MS: u64 = 20;

/// The listening sockets of an edge that is starting.
pub struct Sockets {
    /// The sockets of the running process that no address has claimed yet.
    pub inherited: Option<InheritedSockets>,
    /// Until when an address in use is tried again.
    retry_until: Instant,
    /// Copies of every socket, for a successor.
    pub copies: Vec<Named>,
}

impl Sockets {
    /// Takes over the sockets of the running process if this is an upgrade. If no process runs, the
    /// log says so.
    ///
    /// # Errors
    ///
    /// Two Unix sockets are the same file, or the running process does not hand over its sockets.
    pub fn new(edge: &Config, admin: &Admin, upgrade: bool) -> Result<Self, EdgeError> {
        listeners::check_sockets(edge, admin).map_err(EdgeError::Edge)?;
        let mut retry_until = Instant::now();
        let mut inherited = None;
        if upgrade {
            let path = edge.state_dir.join(SOCKET_NAME);
            inherited = InheritedSockets::take(&path).map_err(EdgeError::Upgrade)?;
            if inherited.is_none() {
                warn!("{}: no running edge offers its sockets here", edge.state_dir.display());
                retry_until += Duration::from_secs(BIND_SECONDS_MAX);
            }
        }
        Ok(Self { inherited, retry_until, copies: Vec::new() })
    }

    /// Opens or takes over a listening socket for each address of the configuration key `key`.
    pub fn open_all<'a>(
        &mut self,
        key: &'static str,
        addresses: impl IntoIterator<Item = &'a String>,
    ) -> Result<Vec<Bound>, EdgeError> {
        addresses.into_iter().map(|text| self.open(key, text)).collect()
    }

    fn open(&mut self, key: &'static str, text: &str) -> Result<Bound, EdgeError> {
        let address =
            Address::parse(text).map_err(|why| EdgeError::Edge(format!("{key}: {why}")))?;
        // The role of `edge.listen` and `edge.tls` is the same, so an address may move between them
        // in an upgrade.
        let role = key.split('.').next().unwrap_or(key);
        let name = format!("{role} {address}");
        let claimed = self.inherited.as_mut().and_then(|all| all.claim(&name));
        let bound = match claimed {
            Some(socket) => Bound::inherited(&address, socket),
            None => loop {
                match Bound::open(&address) {
                    Err(e) if e.is_in_use() && Instant::now() < self.retry_until => {
                        std::thread::sleep(Duration::from_millis(BIND_RETRY_MS));
                    }
                    opened => break opened,
                }
            },
        };
        let bound = bound.map_err(|e| EdgeError::Listen(key, e))?;
        match bound.copy() {
            Ok(copy) => self.copies.push((name, copy)),
            Err(e) => warn!("the socket {name} cannot be handed over in a later upgrade: {e}"),
        }
        Ok(bound)
    }
}
