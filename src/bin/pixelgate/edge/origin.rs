//! Chooses the origin's server for each request that is not an event (SPEC 1).
//!
//! An origin is a name with one or several addresses, and each address is a server
//! ([`super::origin_set`]). Pingora's load balancer takes the servers in turn. This module adds
//! that a server is skipped as soon as a request to it fails, until a health check or a request
//! succeeds. If no server is healthy, all are tried. A reload can put other origins in force.

use super::config::Config;
use super::origin_ca::Authorities;
use super::origin_set::{Keys, Server, Set, server};
use super::origin_url::OriginUrl;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::connectors::ConnectorOptions;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::HttpPeer;
use pixelgate::http_server::{OriginConnector, OriginTimeouts, OriginTransport};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// The longest time to connect to an origin, TLS included, in seconds.
const CONNECT_SECONDS_MAX: u64 = 5;
/// The most servers that one selection looks at: more than a name has addresses.
const SERVERS_MAX: usize = 256;

/// All origins of an edge. All clones are handles to the same origins.
#[derive(Clone)]
pub struct Origins(Arc<Inner>);

struct Inner {
    set: ArcSwap<Set>,
    /// Notified when `set` was replaced.
    replaced: Notify,
    transport: OriginTransport,
    settings: ArcSwap<Settings>,
}

/// The values of `[edge]` that every reload replaces.
struct Settings {
    connection_seconds_max: u64,
    /// When these settings came into force.
    since: Instant,
    /// The number of settings before these.
    generation: u64,
}

impl Origins {
    /// Builds the origins of `edge`. Looks up no name, so that a start does not wait for a name
    /// server: the service begins with the first look-up.
    ///
    /// # Errors
    ///
    /// The key, and why an origin, its authorities or the path of its health check cannot be used.
    pub fn new(edge: &Config) -> Result<Self, String> {
        let authorities = Authorities::load(edge)?;
        let options = connector_options(&authorities);
        let set = Set::new(edge, &options, HashMap::new()).map_err(of_origin)?;
        let set = ArcSwap::from_pointee(set);
        let transport = OriginTransport::new(options, timeouts(edge));
        let settings = ArcSwap::from_pointee(Settings::of(edge, 0));
        Ok(Self(Arc::new(Inner { set, replaced: Notify::new(), transport, settings })))
    }

    /// Returns what opens the connections to the origins.
    pub fn transport(&self) -> OriginTransport {
        self.0.transport.clone()
    }

    /// Puts the origins of `edge` in force, with their health checks and timeouts and the
    /// certificates of `origin_ca`. A request under way keeps its connection; no later request uses
    /// a connection that is open now. Blocks.
    ///
    /// # Errors
    ///
    /// The errors of [`Origins::new`]. After an error nothing has changed.
    pub fn reload(&self, edge: &Config) -> Result<(), String> {
        let Inner { set, replaced, transport, settings } = &*self.0;
        let authorities = Authorities::load(edge)?;
        let options = connector_options(&authorities);
        let running = set.load();
        let new = match running.keys == Keys::of(edge) {
            true => running.renew_checks(&options).map(|()| None),
            false => Set::new(edge, &options, running.servers.lock().clone()).map(Some),
        };
        let new = new.map_err(of_origin)?;
        transport.replace(options, timeouts(edge));
        let generation = settings.load().generation + 1;
        settings.store(Arc::new(Settings::of(edge, generation)));
        if let Some(new) = new {
            set.store(Arc::new(new));
            replaced.notify_one();
        }
        Ok(())
    }

    /// Whether there is no origin, so that requests that are not events get status 404.
    pub fn is_empty(&self) -> bool {
        self.0.set.load().origins.is_empty()
    }

    /// The number of servers, which is also the most attempts of one request on new connections.
    pub fn servers(&self) -> usize {
        self.0.set.load().balancer.backends().get_backend().len()
    }

    /// Waits until every name was looked up once, for [`CONNECT_SECONDS_MAX`] at most.
    pub async fn looked_up(&self) {
        let mut done = self.0.set.load().looked_up.clone();
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        // After a timeout no server can be chosen, and the request fails for that reason.
        let _ = tokio::time::timeout(limit, done.wait_for(|done| *done)).await;
    }

    /// Returns the next server in turn that is not in `tried`, a healthy one if there is one.
    pub fn choose(&self, tried: &[Arc<Server>]) -> Option<Arc<Server>> {
        let untried = |server: &Server| tried.iter().all(|t| t.address != server.address);
        let set = self.0.set.load();
        let all = set.balancer.backends().get_backend();
        if all.len() == 1 {
            // The only server is used whether it is healthy or not.
            return all.first().and_then(server).filter(|server| untried(server)).cloned();
        }
        let choose = |accept: &dyn Fn(&Server, bool) -> bool| {
            set.balancer.select_with(b"", SERVERS_MAX, |backend, healthy| {
                server(backend).is_some_and(|server| accept(server, healthy))
            })
        };
        let healthy =
            choose(&|server, healthy| healthy && !server.failing.load(Relaxed) && untried(server));
        match healthy.or_else(|| choose(&|server, _| untried(server))) {
            Some(chosen) => server(&chosen).cloned(),
            // The balancer knows the servers of a look-up only a moment after its end.
            None => set.servers.lock().values().find(|server| untried(server)).cloned(),
        }
    }

    /// Returns the settings with which Pingora connects to this server.
    pub fn peer(&self, server: &Server) -> HttpPeer {
        let OriginUrl { tls, host, .. } = &server.origin.url;
        let mut peer = HttpPeer::new(server.address, *tls, host.clone());
        peer.options.connection_timeout = Some(Duration::from_secs(CONNECT_SECONDS_MAX));
        peer.options.total_connection_timeout = Some(Duration::from_secs(CONNECT_SECONDS_MAX));
        peer.group_key = self.0.settings.load().group();
        OriginConnector::route(&mut peer);
        peer
    }
}

/// Runs the look-ups and health checks of the origins in force until the stop.
#[async_trait]
impl BackgroundService for Origins {
    async fn start(&self, shutdown: ShutdownWatch) {
        let mut stop = shutdown.clone();
        loop {
            let set = self.0.set.load_full();
            let run = async {
                set.balancer.start(shutdown.clone()).await;
                // The balancer returns if there is nothing to look up and nothing to check.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = run => {}
                () = self.0.replaced.notified() => continue,
                _ = stop.changed() => return,
            }
        }
    }
}

impl Settings {
    fn of(edge: &Config, generation: u64) -> Self {
        Self {
            connection_seconds_max: edge.connection_seconds_max,
            since: Instant::now(),
            generation,
        }
    }

    /// Returns the group of connections that a request may use. Connections of one group were
    /// opened with the same settings, in the same period of `connection_seconds_max`.
    fn group(&self) -> u64 {
        let period = self.since.elapsed().as_secs() / self.connection_seconds_max;
        (self.generation << 32) | period
    }
}

/// Returns the options with which Pingora connects to origins. It reads the file of `authorities`
/// when a connector is built.
fn connector_options(authorities: &Authorities) -> ConnectorOptions {
    let mut options = ConnectorOptions::from_server_conf(&ServerConf::default());
    options.ca_file = Some(authorities.path());
    options
}

fn of_origin(why: String) -> String {
    format!("edge.origin: {why}")
}

fn timeouts(edge: &Config) -> OriginTimeouts {
    let mut timeouts = OriginTimeouts::default();
    timeouts.io = Some(Duration::from_secs(edge.origin_timeout_seconds));
    timeouts.idle = Some(Duration::from_secs(edge.origin_idle_seconds));
    timeouts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(urls: &[&str]) -> Origins {
        let edge = Config {
            origin: urls.iter().map(|url| url.to_string()).collect(),
            ..Config::default()
        };
        Origins::new(&edge).unwrap()
    }

    #[test]
    fn servers_take_turns_and_a_failing_one_is_skipped() {
        let origins = origins(&["http://127.0.0.1:1", "http://127.0.0.1:2"]);
        assert_eq!(origins.servers(), 2);
        let first = origins.choose(&[]).unwrap();
        let second = origins.choose(&[]).unwrap();
        assert_ne!(first.address, second.address);
        assert_eq!(origins.choose(std::slice::from_ref(&first)).unwrap().address, second.address);
        first.failed("of a test");
        for _ in 0..4 {
            assert_eq!(origins.choose(&[]).unwrap().address, second.address);
        }
        second.failed("of a test");
        assert!(origins.choose(&[]).is_some(), "no server is healthy, so all are tried");
        assert!(origins.choose(&[first, second.clone()]).is_none(), "each was tried");
        second.answered();
        assert_eq!(origins.choose(&[]).unwrap().address, second.address);
    }

    #[test]
    fn a_start_looks_up_no_name() {
        let origins = origins(&["http://localhost:1", "http://127.0.0.1:2"]);
        assert!(!*origins.0.set.load().looked_up.borrow());
        assert_eq!(origins.servers(), 1, "the address needs no name server");
    }

    #[test]
    fn other_origins_take_their_place_and_a_server_keeps_its_state() {
        let origins = origins(&["http://127.0.0.1:1", "http://127.0.0.1:2"]);
        let edge = |urls: &[&str]| Config {
            origin: urls.iter().map(|url| url.to_string()).collect(),
            ..Config::default()
        };
        let first = std::iter::repeat_with(|| origins.choose(&[]).unwrap());
        let first = first.take(2).find(|server| server.address.port() == 1).unwrap();
        first.failed("of a test");
        origins.reload(&edge(&["http://127.0.0.1:1", "http://127.0.0.1:3"])).unwrap();
        for _ in 0..4 {
            assert_eq!(origins.choose(&[]).unwrap().address.port(), 3, "the other one fails");
        }
        origins.reload(&edge(&[])).unwrap();
        assert!(origins.is_empty() && origins.choose(&[]).is_none());
    }

    #[test]
    fn there_may_be_no_origin() {
        assert!(origins(&[]).choose(&[]).is_none());
    }
}
