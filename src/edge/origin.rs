//! The origin: where requests go that are not events.
//!
//! One or several servers, asked in turn; one that cannot be reached is passed over for the next.
//! Names are looked up again every [`LOOKUP_SECONDS`] on a thread of their own, never on the
//! request path. That an origin is down, and that it is back, is logged once each.

use log::{error, info};
use pingora::upstreams::peer::HttpPeer;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often an origin's name is looked up again, in seconds.
const LOOKUP_SECONDS: u64 = 30;
/// How long a connection to an origin may take, in seconds.
const CONNECT_SECONDS_MAX: u64 = 5;
/// How long an origin may be silent in the middle of an exchange, in seconds.
const SILENCE_SECONDS_MAX: u64 = 60;
/// How long an idle connection to an origin is kept, in seconds: less than what common origins
/// keep theirs (nginx: 75), so that they rarely close it as we write.
const IDLE_SECONDS_MAX: u64 = 60;

/// All origins of an edge. Cheap to clone.
#[derive(Clone)]
pub struct Origins {
    all: Arc<[Origin]>,
    turn: Arc<AtomicUsize>,
}

struct Origin {
    name: String,
    host: String,
    port: u16,
    tls: bool,
    addresses: Mutex<Vec<SocketAddr>>,
    down: AtomicBool,
}

/// Host, port and TLS of an origin's URL.
pub fn parse(text: &str) -> Result<(String, u16, bool), String> {
    let url = url::Url::parse(text).map_err(|e| format!("`{text}` is not a URL: {e}"))?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        other => return Err(format!("`{other}://` is neither http:// nor https://")),
    };
    let plain = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !plain || !url.username().is_empty() || url.password().is_some() {
        return Err("takes scheme, host and port alone: a path is passed on as it comes".to_owned());
    }
    // `Url` guarantees a host for http and https; an IPv6 host comes in brackets.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(80);
    Ok((host, port, tls))
}

impl Origins {
    /// Looks up each origin once. One that cannot be found yet is no error: it is looked up again.
    pub fn new(urls: &[String]) -> Result<Self, String> {
        let origin = |url: &String| -> Result<Origin, String> {
            let (host, port, tls) = parse(url)?;
            let down = AtomicBool::new(false);
            let name = url.trim_end_matches('/').to_owned();
            let origin = Origin { name, host, port, tls, addresses: Mutex::default(), down };
            origin.look_up();
            Ok(origin)
        };
        let all = urls.iter().map(origin).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { all: all.into(), turn: Arc::default() })
    }

    /// Whether there is none, so that what is not an event is answered 404.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many there are: as often is a request tried.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// Whose turn it is.
    pub fn take_turn(&self) -> usize {
        match self.all.len() {
            0 | 1 => 0,
            _ => self.turn.fetch_add(1, Relaxed),
        }
    }

    /// The server for the attempt numbered `attempt` of the request that got this `turn`, and
    /// which origin it belongs to.
    pub fn peer(&self, turn: usize, attempt: usize) -> (usize, Option<HttpPeer>) {
        let index = (turn.wrapping_add(attempt)) % self.all.len().max(1);
        let peer = self.all.get(index).and_then(|origin| origin.peer(turn / self.all.len()));
        (index, peer)
    }

    /// Notes that an origin did not answer.
    pub fn failed(&self, index: usize, why: &str) {
        if let Some(origin) = self.all.get(index)
            && !origin.down.swap(true, Relaxed)
        {
            error!("origin {} does not answer: {why}", origin.name);
        }
    }

    /// Notes that an origin answered.
    pub fn answered(&self, index: usize) {
        if let Some(origin) = self.all.get(index)
            && origin.down.load(Relaxed)
            && origin.down.swap(false, Relaxed)
        {
            info!("origin {} answers again", origin.name);
        }
    }

    /// Looks names up again, for ever. Returns at once where every origin is an address.
    pub async fn keep_looking_up(&self) {
        if self.all.iter().all(Origin::is_address) {
            return;
        }
        loop {
            tokio::time::sleep(Duration::from_secs(LOOKUP_SECONDS)).await;
            let all = self.all.clone();
            let looked_up = tokio::task::spawn_blocking(move || {
                all.iter().filter(|origin| !origin.is_address()).for_each(Origin::look_up);
            });
            if looked_up.await.is_err() {
                error!("looking up the origins' names failed; it is tried again");
            }
        }
    }
}

impl Origin {
    fn is_address(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// What the name resolves to now; a failure keeps what was known.
    fn look_up(&self) {
        match (self.host.as_str(), self.port).to_socket_addrs() {
            Ok(found) => {
                let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
                *addresses = found.collect();
            }
            Err(e) => error!("origin {}: its name cannot be looked up: {e}", self.name),
        }
    }

    fn peer(&self, round: usize) -> Option<HttpPeer> {
        let address = {
            let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            *addresses.get(round % addresses.len().max(1))?
        };
        let mut peer = HttpPeer::new(address, self.tls, self.host.clone());
        peer.options.connection_timeout = Some(Duration::from_secs(CONNECT_SECONDS_MAX));
        peer.options.total_connection_timeout = Some(Duration::from_secs(CONNECT_SECONDS_MAX));
        peer.options.read_timeout = Some(Duration::from_secs(SILENCE_SECONDS_MAX));
        peer.options.write_timeout = Some(Duration::from_secs(SILENCE_SECONDS_MAX));
        peer.options.idle_timeout = Some(Duration::from_secs(IDLE_SECONDS_MAX));
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let check = |url: &str, host: &str, port: u16, tls: bool| {
            assert_eq!(parse(url), Ok((host.to_owned(), port, tls)), "{url}");
        };
        check("http://127.0.0.1:9000", "127.0.0.1", 9000, false);
        check("https://origin.example/", "origin.example", 443, true);
        check("http://[::1]", "::1", 80, false);
        for wrong in ["", "ftp://a", "http://", "http://a/b", "http://a/?b", "http://u:p@a/"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn several_origins_take_turns_and_a_failed_one_is_passed_over() {
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        let origins = Origins::new(&urls).unwrap();
        let port = |turn, attempt| {
            let (_, peer) = origins.peer(turn, attempt);
            peer.map(|peer| peer._address.as_inet().unwrap().port())
        };
        let first = origins.take_turn();
        let second = origins.take_turn();
        assert_ne!(port(first, 0), port(second, 0));
        assert_ne!(port(first, 0), port(first, 1));
        assert!(Origins::new(&[]).unwrap().peer(0, 0).1.is_none());
    }
}
