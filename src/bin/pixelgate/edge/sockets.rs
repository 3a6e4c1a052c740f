//! All listening sockets of an edge: opened here, or inherited from the running process.

use super::config::Config;
use super::error::EdgeError;
use super::handover::{InheritedSockets, Named, SOCKET_NAME};
use super::listen::{Address, Bound};
use log::warn;
use std::time::{Duration, Instant};

/// How long an upgrade that found no running process retries an address in use, in seconds: that
/// process may just be closing its listener.
const BIND_SECONDS_MAX: u64 = 5;
/// Pause between two attempts to bind, in milliseconds.
const BIND_RETRY_MS: u64 = 20;

/// The listening sockets, opened one after the other.
pub struct Sockets {
    /// The running process's sockets that no address has claimed yet.
    pub inherited: Option<InheritedSockets>,
    /// Until when an address in use is retried.
    retry_until: Instant,
    /// Copies of every socket, for a successor.
    pub copies: Vec<Named>,
}

impl Sockets {
    /// Takes the sockets of the running process if this is an upgrade.
    pub fn new(edge: &Config, upgrade: bool) -> Result<Self, EdgeError> {
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

    /// Opens or inherits a listening socket for each address of a key.
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
        // A socket may move between `edge.listen` and `edge.tls`: an upgrade hands it to either.
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
            Err(e) => warn!("{name} cannot be handed over to a successor: {e}"),
        }
        Ok(bound)
    }
}
