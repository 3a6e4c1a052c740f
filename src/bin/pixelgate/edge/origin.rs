//! The origins: servers that get the requests that are not events.
//!
//! Each origin is a name with one or several addresses; [`super::origin_set`] knows them. The load
//! balancer of Pingora selects round robin. Added here: a server that fails a request is skipped at
//! once, until a health check or a request succeeds. Where no server is healthy, all are tried. A
//! reload puts other origins in force.

use super::config::Config;
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

/// Longest time to connect to an origin, TLS included, in seconds.
const CONNECT_SECONDS_MAX: u64 = 5;
/// Most servers that one selection looks at: more than a name has addresses.
const SERVERS_MAX: usize = 256;

/// All origins of an edge. Cheap to clone.
#[derive(Clone)]
pub struct Origins(Arc<Inner>);

struct Inner {
    set: ArcSwap<Set>,
    /// Notified when `set` was replaced.
    replaced: Notify,
    transport: OriginTransport,
    settings: ArcSwap<Settings>,
}

/// What every reload replaces.
struct Settings {
    connection_seconds_max: u64,
    since: Instant,
    /// How many settings there were before these.
    generation: u64,
}

impl Origins {
    /// Looks up no name, so that a start waits for no name server: the first look-up begins with
    /// the service. `edge.origin_ca` must have been checked.
    pub fn new(edge: &Config) -> Result<Self, String> {
        let options = connector_options(edge);
        let set = ArcSwap::from_pointee(Set::new(edge, &options, HashMap::new())?);
        let transport = OriginTransport::new(options, timeouts(edge));
        let settings = ArcSwap::from_pointee(Settings::of(edge, 0));
        Ok(Self(Arc::new(Inner { set, replaced: Notify::new(), transport, settings })))
    }

    /// What opens the connections to the origins.
    pub fn transport(&self) -> OriginTransport {
        self.0.transport.clone()
    }

    /// Puts the origins of `edge`, their health checks, its timeouts and the certificates of its
    /// `origin_ca` in force. No further request uses a connection that was opened before; those
    /// under way end on theirs. `edge.origin_ca` must have been checked. Blocks.
    pub fn reload(&self, edge: &Config) -> Result<(), String> {
        let Inner { set, replaced, transport, settings } = &*self.0;
        let options = connector_options(edge);
        let running = set.load();
        let new = match running.keys == Keys::of(edge) {
            true => running.renew_checks(&options).map(|()| None)?,
            false => Some(Set::new(edge, &options, running.servers.lock().clone())?),
        };
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

    /// The number of servers: the most attempts of one request on new connections.
    pub fn servers(&self) -> usize {
        self.0.set.load().balancer.backends().get_backend().len()
    }

    /// Waits until every name was looked up once, at most as long as a connection may take.
    pub async fn looked_up(&self) {
        let mut done = self.0.set.load().looked_up.clone();
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        // Whether it ended in time shows when a server is chosen.
        let _ = tokio::time::timeout(limit, done.wait_for(|done| *done)).await;
    }

    /// The next server in turn that is not in `tried`, a healthy one if there is any.
    pub fn choose(&self, tried: &[Arc<Server>]) -> Option<Arc<Server>> {
        let untried = |server: &Server| tried.iter().all(|t| t.address != server.address);
        let set = self.0.set.load();
        let all = set.balancer.backends().get_backend();
        if all.len() == 1 {
            // Healthy or not, it is the only one.
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
            // The balancer learns of a look-up's servers a moment after it has ended.
            None => set.servers.lock().values().find(|server| untried(server)).cloned(),
        }
    }

    /// How Pingora connects to this server.
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
                // It ends where it has nothing to look up and nothing to check.
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

    /// Only connections of the same group are used for a request: those that were opened with the
    /// same certificates, in the same period of `connection_seconds_max`.
    fn group(&self) -> u64 {
        let period = self.since.elapsed().as_secs() / self.connection_seconds_max;
        (self.generation << 32) | period
    }
}

/// How Pingora connects to origins, with the certificates that it trusts.
fn connector_options(edge: &Config) -> ConnectorOptions {
    let mut options = ConnectorOptions::from_server_conf(&ServerConf::default());
    options.ca_file = edge.origin_ca.as_ref().map(|path| path.to_string_lossy().into_owned());
    options
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
