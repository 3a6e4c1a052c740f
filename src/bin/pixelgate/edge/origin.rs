//! The origins: servers that get the requests that are not events.
//!
//! Each origin is a name with one or several addresses. Every address is a server of Pingora's load
//! balancer, which selects round robin, resolves names every [`LOOKUP_SECONDS`] and runs health
//! checks. Added here: a server that fails a request is skipped at once, until a health check or a
//! request succeeds. Where no server is healthy, all are tried. The change from healthy to failing
//! and back is logged once.

use super::config::Config;
use super::origin_url::OriginUrl;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info};
use parking_lot::{Mutex, MutexGuard};
use pingora::connectors::http::Connector;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::lb::discovery::ServiceDiscovery;
use pingora::lb::health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck};
use pingora::lb::selection::RoundRobin;
use pingora::lb::{Backend, Backends, Extensions, LoadBalancer};
use pingora::prelude::*;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::services::background::BackgroundService;
use pingora::upstreams::peer::HttpPeer;
use pixelgate::http_server::{OriginConnector, OriginTransport};
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Pause between two look-ups of an origin's name, in seconds.
const LOOKUP_SECONDS: u64 = 30;
/// Longest time to connect to an origin, TLS included, in seconds.
const CONNECT_SECONDS_MAX: u64 = 5;
/// Longest time for each step of a health check, in seconds.
const CHECK_SECONDS_MAX: u64 = 5;
/// Failed checks in a row after which a server is unhealthy; one successful check makes it healthy.
const CHECKS_FAILED: usize = 2;
/// Most servers that one selection looks at: more than a name has addresses.
const SERVERS_MAX: usize = 256;

/// All origins of an edge. Cheap to clone.
#[derive(Clone)]
pub struct Origins(Arc<Inner>);

struct Inner {
    origins: Arc<[Origin]>,
    balancer: LoadBalancer<RoundRobin>,
    /// The health checks, if there are any; shared with the balancer.
    checks: Option<Checks>,
    transport: OriginTransport,
    settings: ArcSwap<Settings>,
    /// Whether every name has been looked up once.
    looked_up: watch::Receiver<bool>,
}

/// What a reload replaces.
struct Settings {
    io_timeout: Duration,
    idle: Duration,
    connection_seconds_max: u64,
    since: Instant,
    /// How many settings there were before these.
    generation: u64,
}

/// One entry of `edge.origin`.
struct Origin {
    /// The URL as configured, for the log.
    name: String,
    url: OriginUrl,
}

/// One address of an origin.
pub struct Server {
    origin: usize,
    address: std::net::SocketAddr,
    /// Its name in the log and in the access log.
    pub name: String,
    failing: AtomicBool,
}

impl Origins {
    /// Looks up no name, so that a start waits for no name server: the first look-up begins with
    /// the service. `edge.origin_ca` must have been checked.
    pub fn new(edge: &Config) -> Result<Self, String> {
        let options = connector_options(edge);
        let origin = |url: &String| {
            let name = url.trim_end_matches('/').to_owned();
            Ok(Origin { name, url: OriginUrl::parse(url)? })
        };
        let origins = edge.origin.iter().map(origin).collect::<Result<Arc<[_]>, String>>()?;
        let names = origins.iter().any(|origin| !origin.is_address());
        let (done, looked_up) = watch::channel(!names);
        let lookup = LookUp {
            origins: origins.clone(),
            found: Mutex::default(),
            with_names: AtomicBool::new(false),
            done,
        };
        let mut balancer = LoadBalancer::from_backends(Backends::new(Box::new(lookup)));
        balancer.update_frequency = names.then_some(Duration::from_secs(LOOKUP_SECONDS));
        balancer.parallel_health_check = true;
        // A single server gets every request, healthy or not, so a check would change nothing.
        let mut checks = None;
        if edge.origin_health_path.is_some() || names || origins.len() > 1 {
            let every = Duration::from_secs(edge.origin_health_seconds);
            balancer.health_check_frequency = Some(every);
            let all = all_checks(&origins, edge, &options)?;
            let all = checks.insert(Checks(Arc::new(ArcSwap::from_pointee(all))));
            balancer.set_health_check(Box::new(all.clone()));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime
            .map_err(|e| e.to_string())?
            .block_on(balancer.update())
            .map_err(|e| e.to_string())?;
        let transport = OriginTransport::new(options);
        let settings = ArcSwap::from_pointee(Settings::of(edge, 0));
        Ok(Self(Arc::new(Inner { origins, balancer, checks, transport, settings, looked_up })))
    }

    /// What opens the connections to the origins.
    pub fn transport(&self) -> OriginTransport {
        self.0.transport.clone()
    }

    /// Puts the timeouts of `edge` and the certificates of its `origin_ca` in force, for
    /// connections that are opened from now on; no further request uses an older one. The origins
    /// stay. `edge.origin_ca` must have been checked. Blocks.
    pub fn reload(&self, edge: &Config) -> Result<(), String> {
        let options = connector_options(edge);
        if let Some(Checks(checks)) = &self.0.checks {
            checks.store(Arc::new(all_checks(&self.0.origins, edge, &options)?));
        }
        self.0.transport.replace(options);
        let generation = self.0.settings.load().generation + 1;
        self.0.settings.store(Arc::new(Settings::of(edge, generation)));
        Ok(())
    }

    /// Whether there is no origin, so that requests that are not events get status 404.
    pub fn is_empty(&self) -> bool {
        self.0.origins.is_empty()
    }

    /// The number of servers: the most attempts of one request on new connections.
    pub fn servers(&self) -> usize {
        self.0.balancer.backends().get_backend().len()
    }

    /// Waits until every name was looked up once, at most as long as a connection may take.
    pub async fn looked_up(&self) {
        let mut done = self.0.looked_up.clone();
        let limit = Duration::from_secs(CONNECT_SECONDS_MAX);
        // Whether it ended in time shows when a server is chosen.
        let _ = tokio::time::timeout(limit, done.wait_for(|done| *done)).await;
    }

    /// The next server in turn that is not in `tried`, a healthy one if there is any.
    pub fn choose(&self, tried: &[Arc<Server>]) -> Option<Arc<Server>> {
        let untried = |server: &Server| tried.iter().all(|t| t.address != server.address);
        let choose = |accept: &dyn Fn(&Server, bool) -> bool| {
            self.0.balancer.select_with(b"", SERVERS_MAX, |backend, healthy| {
                server(backend).is_some_and(|server| accept(server, healthy))
            })
        };
        let healthy =
            choose(&|server, healthy| healthy && !server.failing.load(Relaxed) && untried(server));
        let chosen = healthy.or_else(|| choose(&|server, _| untried(server)))?;
        server(&chosen).cloned()
    }

    /// The value of a `Host` header that names this server's origin.
    pub fn authority(&self, server: &Server) -> String {
        let origin = self.0.origins.get(server.origin);
        origin.map(|origin| origin.url.authority()).unwrap_or_default()
    }

    /// How Pingora connects to this server.
    pub fn peer(&self, server: &Server) -> HttpPeer {
        // A server comes from this list of origins, so its index is valid.
        let (tls, host) = match self.0.origins.get(server.origin) {
            Some(origin) => (origin.url.tls, origin.url.host.clone()),
            None => (false, String::new()),
        };
        let mut peer = HttpPeer::new(server.address, tls, host);
        peer.options.connection_timeout = Some(Duration::from_secs(CONNECT_SECONDS_MAX));
        peer.options.total_connection_timeout = Some(Duration::from_secs(CONNECT_SECONDS_MAX));
        let settings = self.0.settings.load();
        peer.options.read_timeout = Some(settings.io_timeout);
        peer.options.write_timeout = Some(settings.io_timeout);
        peer.group_key = settings.group();
        peer.options.idle_timeout = Some(settings.idle);
        OriginConnector::route(&mut peer);
        peer
    }
}

/// Runs the look-ups and health checks of the load balancer until the stop.
#[async_trait]
impl BackgroundService for Origins {
    async fn start(&self, shutdown: ShutdownWatch) {
        self.0.balancer.start(shutdown).await;
    }
}

impl Settings {
    fn of(edge: &Config, generation: u64) -> Self {
        Self {
            io_timeout: Duration::from_secs(edge.origin_timeout_seconds),
            idle: Duration::from_secs(edge.origin_idle_seconds),
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

/// The health check of each origin, in their order.
fn all_checks(
    origins: &[Origin],
    edge: &Config,
    options: &ConnectorOptions,
) -> Result<Vec<Check>, String> {
    let path = edge.origin_health_path.as_deref();
    origins.iter().map(|origin| origin.check(path, options)).collect()
}

fn server(backend: &Backend) -> Option<&Arc<Server>> {
    backend.ext.get()
}

impl Server {
    /// Records that the server failed a request or its health checks.
    pub fn failed(&self, why: &str) {
        if !self.failing.swap(true, Relaxed) {
            error!("origin {} does not answer: {why}", self.name);
        }
    }

    /// Records that the server answered.
    pub fn answered(&self) {
        if self.failing.load(Relaxed) && self.failing.swap(false, Relaxed) {
            info!("origin {} answers again", self.name);
        }
    }
}

impl Origin {
    fn is_address(&self) -> bool {
        self.url.host.parse::<IpAddr>().is_ok()
    }

    /// The health check: a request for `path`, or only a connection.
    fn check(&self, path: Option<&str>, options: &ConnectorOptions) -> Result<Check, String> {
        let timeout = Some(Duration::from_secs(CHECK_SECONDS_MAX));
        let Some(path) = path else {
            // Over TLS the certificate must be valid too.
            let mut check = match self.url.tls {
                true => TcpHealthCheck::new_tls(&self.url.host),
                false => TcpHealthCheck::new(),
            };
            check.set_connector(TransportConnector::new(Some(options.clone())));
            check.consecutive_failure = CHECKS_FAILED;
            check.peer_template.options.connection_timeout = timeout;
            return Ok(check);
        };
        let mut check = HttpHealthCheck::new(&self.url.host, self.url.tls);
        check.set_connector(Connector::new(Some(options.clone())));
        check.consecutive_failure = CHECKS_FAILED;
        check.peer_template.options.connection_timeout = timeout;
        check.peer_template.options.read_timeout = timeout;
        check.req.set_uri(path.parse().map_err(|e| format!("`{path}`: {e}"))?);
        check.validator = Some(Box::new(|response| {
            match response.status.is_success() || response.status.is_redirection() {
                true => Ok(()),
                false => Error::e_explain(
                    ErrorType::HTTPStatus(response.status.as_u16()),
                    "to a health check",
                ),
            }
        }));
        Ok(Box::new(check))
    }
}

/// Resolves the origins to servers.
struct LookUp {
    origins: Arc<[Origin]>,
    /// The servers of the last look-up, so that a server keeps its state.
    found: Mutex<HashMap<std::net::SocketAddr, Arc<Server>>>,
    /// Whether names are looked up. The first time only addresses are taken.
    with_names: AtomicBool,
    /// Set when every name was looked up once.
    done: watch::Sender<bool>,
}

#[async_trait]
impl ServiceDiscovery for LookUp {
    async fn discover(&self) -> Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut all = HashMap::new();
        let with_names = self.with_names.swap(true, Relaxed);
        let origins = self.origins.iter().enumerate();
        for (index, origin) in origins.filter(|(_, origin)| with_names || origin.is_address()) {
            for address in self.look_up(index, origin).await {
                // Two names with one address are one server, which is asked for the first name.
                let name = match origin.is_address() {
                    true => origin.name.clone(),
                    false => format!("{} ({address})", origin.name),
                };
                let failing = AtomicBool::new(false);
                all.entry(address).or_insert_with(|| {
                    self.known()
                        .get(&address)
                        .filter(|known| known.origin == index)
                        .cloned()
                        .unwrap_or_else(|| {
                            Arc::new(Server { origin: index, address, name, failing })
                        })
                });
            }
        }
        let backend = |(address, server): (&std::net::SocketAddr, &Arc<Server>)| {
            let mut ext = Extensions::new();
            ext.insert(server.clone());
            Backend { addr: SocketAddr::Inet(*address), weight: 1, ext }
        };
        let backends = all.iter().map(backend).collect();
        *self.known() = all;
        if with_names {
            self.done.send_replace(true);
        }
        Ok((backends, HashMap::new()))
    }
}

impl LookUp {
    fn known(&self) -> MutexGuard<'_, HashMap<std::net::SocketAddr, Arc<Server>>> {
        self.found.lock()
    }

    /// The addresses of a name. A failed look-up keeps the addresses of the last one.
    async fn look_up(&self, index: usize, origin: &Origin) -> Vec<std::net::SocketAddr> {
        if let Ok(ip) = origin.url.host.parse::<IpAddr>() {
            return vec![(ip, origin.url.port).into()];
        }
        let (host, port) = (origin.url.host.clone(), origin.url.port);
        let look = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect);
        // A panic of the resolver is treated like a failed look-up.
        let found = tokio::task::spawn_blocking(look).await.map_err(std::io::Error::other);
        match found.flatten() {
            Ok(found) => found,
            Err(e) => {
                error!("origin {}: its name cannot be looked up: {e}", origin.name);
                let known = self.known();
                let same = known.values().filter(|server| server.origin == index);
                same.map(|server| server.address).collect()
            }
        }
    }
}

/// A health check of one origin.
type Check = Box<dyn HealthCheck + Send + Sync>;

/// The health check of each origin, by its index.
#[derive(Clone)]
struct Checks(Arc<ArcSwap<Vec<Check>>>);

#[async_trait]
impl HealthCheck for Checks {
    async fn check(&self, target: &Backend) -> Result<()> {
        let Some(server) = server(target) else { return Ok(()) };
        let checks = self.0.load_full();
        let Some(check) = checks.get(server.origin) else { return Ok(()) };
        let result = check.check(target).await;
        if result.is_ok() {
            server.answered();
        }
        result
    }

    async fn health_status_change(&self, target: &Backend, healthy: bool) {
        if let Some(server) = server(target)
            && !healthy
        {
            server.failed("its health checks fail");
        }
    }

    fn health_threshold(&self, success: bool) -> usize {
        if success { 1 } else { CHECKS_FAILED }
    }
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
        assert!(!*origins.0.looked_up.borrow());
        assert_eq!(origins.servers(), 1, "the address needs no name server");
    }

    #[test]
    fn there_may_be_no_origin() {
        assert!(origins(&[]).choose(&[]).is_none());
    }
}
