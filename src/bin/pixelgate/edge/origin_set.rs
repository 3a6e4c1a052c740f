//! The origins of one configuration: the servers at their addresses, and their health checks
//! (SPEC 1).
//!
//! Each address of an origin is a server of Pingora's load balancer. The balancer looks up names
//! every [`LOOKUP_SECONDS`] and runs the health checks. One line of the log reports that a server
//! begins to fail, and one that it answers again.

use super::config::Config;
use super::origin_url::OriginUrl;
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use log::{error, info};
use parking_lot::{Mutex, MutexGuard};
use pingora::connectors::http::Connector;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::lb::discovery::ServiceDiscovery;
use pingora::lb::health_check::{HealthCheck, HttpHealthCheck};
use pingora::lb::selection::RoundRobin;
use pingora::lb::{Backend, Backends, Extensions, LoadBalancer};
use pingora::prelude::*;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::upstreams::peer::BasicPeer;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// The pause between two look-ups of an origin's name, in seconds.
const LOOKUP_SECONDS: u64 = 30;
/// The longest time for each step of a health check, in seconds.
const CHECK_SECONDS_MAX: u64 = 5;
/// The number of failed checks in a row after which a server is unhealthy. One successful check
/// makes it healthy again.
const CHECKS_FAILED: usize = 2;
/// Stands in the place of the server's address until a check.
const PLACEHOLDER: &str = "0.0.0.0:1";

/// The origins in force. A reload that changes a key of [`Keys`] replaces them as a whole.
pub struct Set {
    pub keys: Keys,
    pub origins: Arc<[Arc<Origin>]>,
    pub balancer: LoadBalancer<RoundRobin>,
    pub servers: Servers,
    /// Whether every name has been looked up once.
    pub looked_up: watch::Receiver<bool>,
}

/// The keys of `[edge]` that a [`Set`] is made of.
#[derive(PartialEq, Eq)]
pub struct Keys {
    urls: Vec<String>,
    health_path: Option<String>,
    health_seconds: u64,
}

/// The servers of the last look-up. The next look-up takes from here the state of each server.
pub type Servers = Arc<Mutex<HashMap<std::net::SocketAddr, Arc<Server>>>>;

/// One entry of `edge.origin`.
pub struct Origin {
    /// The URL as configured, for the log.
    name: String,
    pub url: OriginUrl,
    /// The health check of the servers, if they are checked.
    check: ArcSwapOption<Check>,
}

/// One address of an origin.
pub struct Server {
    pub origin: Arc<Origin>,
    pub address: std::net::SocketAddr,
    /// The name of the server in the log and in the access log.
    pub name: String,
    pub failing: AtomicBool,
}

impl Keys {
    /// Returns the values in `edge`.
    pub fn of(edge: &Config) -> Self {
        Self {
            urls: edge.origin.clone(),
            health_path: edge.origin_health_path.clone(),
            health_seconds: edge.origin_health_seconds,
        }
    }
}

impl Set {
    /// Builds the origins of `edge`, without looking up a name. A server of `known` that the new
    /// origins have, too, keeps its state.
    ///
    /// # Errors
    ///
    /// A text for the operator: a URL or the path of the health checks cannot be used, or the
    /// system refuses a runtime.
    pub fn new(
        edge: &Config,
        options: &ConnectorOptions,
        known: HashMap<std::net::SocketAddr, Arc<Server>>,
    ) -> Result<Self, String> {
        let origin = |url: &String| {
            let name = url.trim_end_matches('/').to_owned();
            let (url, check) = (OriginUrl::parse(url)?, ArcSwapOption::empty());
            Ok(Arc::new(Origin { name, url, check }))
        };
        let origins = edge.origin.iter().map(origin).collect::<Result<Arc<[_]>, String>>()?;
        let names = origins.iter().any(|origin| !origin.is_address());
        let (done, looked_up) = watch::channel(!names);
        let servers = Servers::new(Mutex::new(known));
        let lookup = LookUp {
            origins: origins.clone(),
            found: servers.clone(),
            with_names: AtomicBool::new(false),
            done,
        };
        let mut balancer = LoadBalancer::from_backends(Backends::new(Box::new(lookup)));
        balancer.update_frequency = names.then_some(Duration::from_secs(LOOKUP_SECONDS));
        balancer.parallel_health_check = true;
        // A single server gets every request whether it is healthy or not, so without a path to
        // request its check would change nothing.
        let is_checked = edge.origin_health_path.is_some() || names || origins.len() > 1;
        if is_checked {
            let every = Duration::from_secs(edge.origin_health_seconds);
            balancer.health_check_frequency = Some(every);
            balancer.set_health_check(Box::new(Checks));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime
            .map_err(|e| e.to_string())?
            .block_on(balancer.update())
            .map_err(|e| e.to_string())?;
        let set = Self { keys: Keys::of(edge), origins, balancer, servers, looked_up };
        if is_checked {
            set.renew_checks(options)?;
        }
        Ok(set)
    }

    /// Builds the health checks anew, with `options` for their connections.
    ///
    /// # Errors
    ///
    /// The path of the health checks cannot be used.
    pub fn renew_checks(&self, options: &ConnectorOptions) -> Result<(), String> {
        let path = self.keys.health_path.as_deref();
        let check = |origin: &Arc<Origin>| origin.check(path, options).map(Arc::new);
        let checks = self.origins.iter().map(check).collect::<Result<Vec<_>, _>>()?;
        for (origin, check) in self.origins.iter().zip(checks) {
            origin.check.store(Some(check));
        }
        Ok(())
    }
}

impl Server {
    /// Returns the value of a `Host` header that names the origin of this server.
    pub fn authority(&self) -> String {
        self.origin.url.authority()
    }

    fn is_of(&self, origin: &Origin) -> bool {
        self.origin.url == origin.url
    }

    /// Records that a request to the server or its health checks have failed.
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

    /// Builds the health check: a request for `path`, or only a connection if there is no path.
    fn check(&self, path: Option<&str>, options: &ConnectorOptions) -> Result<Check, String> {
        let timeout = Some(Duration::from_secs(CHECK_SECONDS_MAX));
        let Some(path) = path else {
            // Over TLS the check includes that the certificate is valid.
            let mut peer = BasicPeer::new(PLACEHOLDER);
            if self.url.tls {
                peer.sni.clone_from(&self.url.host);
            }
            peer.options.connection_timeout = timeout;
            let connector = TransportConnector::new(Some(options.clone()));
            return Ok(Box::new(Connects { connector, peer }));
        };
        let connector = Connector::new(Some(options.clone()));
        let mut check = HttpHealthCheck::new_custom(&self.url.host, self.url.tls, connector);
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

/// Checks that a server takes a connection. Pingora has such a check, too, but it would read the
/// machine's authorities, and panic over one that it cannot use.
struct Connects {
    connector: TransportConnector,
    peer: BasicPeer,
}

#[async_trait]
impl HealthCheck for Connects {
    async fn check(&self, target: &Backend) -> Result<()> {
        let mut peer = self.peer.clone();
        peer._address = target.addr.clone();
        self.connector.get_stream(&peer).await.map(|_| ())
    }

    /// Pingora does not call this: [`Checks`] has the threshold of all origins.
    fn health_threshold(&self, _success: bool) -> usize {
        1
    }
}

/// Returns the server of an address in the load balancer.
pub fn server(backend: &Backend) -> Option<&Arc<Server>> {
    backend.ext.get()
}

/// Looks up the servers of the origins.
struct LookUp {
    origins: Arc<[Arc<Origin>]>,
    found: Servers,
    /// Whether names are looked up, and not addresses alone. It is false in the first look-up, so
    /// that a start does not wait for a name server.
    with_names: AtomicBool,
    /// Becomes true when every name was looked up once.
    done: watch::Sender<bool>,
}

#[async_trait]
impl ServiceDiscovery for LookUp {
    async fn discover(&self) -> Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut all = HashMap::new();
        let with_names = self.with_names.swap(true, Relaxed);
        for origin in self.origins.iter().filter(|origin| with_names || origin.is_address()) {
            for address in self.look_up(origin).await {
                // Two names with the same address are one server, which gets the first name.
                let name = match origin.is_address() {
                    true => origin.name.clone(),
                    false => format!("{} ({address})", origin.name),
                };
                all.entry(address).or_insert_with(|| self.server(origin, address, name));
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

    /// Returns the server at an address of an origin. A known server keeps its state.
    fn server(
        &self,
        origin: &Arc<Origin>,
        address: std::net::SocketAddr,
        name: String,
    ) -> Arc<Server> {
        let known = self.known().get(&address).filter(|known| known.is_of(origin)).cloned();
        match known {
            Some(known) if Arc::ptr_eq(&known.origin, origin) => known,
            known => {
                let failing = known.is_some_and(|known| known.failing.load(Relaxed));
                let (origin, failing) = (origin.clone(), AtomicBool::new(failing));
                Arc::new(Server { origin, address, name, failing })
            }
        }
    }

    /// Looks up the addresses of an origin. If that fails, returns the addresses of the last
    /// look-up.
    async fn look_up(&self, origin: &Arc<Origin>) -> Vec<std::net::SocketAddr> {
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
                error!(
                    "origin {}: its name cannot be looked up, and the last addresses stay: {e}",
                    origin.name
                );
                let known = self.known();
                let same = known.values().filter(|server| server.is_of(origin));
                same.map(|server| server.address).collect()
            }
        }
    }
}

/// A health check of one origin.
type Check = Box<dyn HealthCheck + Send + Sync>;

/// The health check of the whole load balancer. For each server it runs the check of its origin.
struct Checks;

#[async_trait]
impl HealthCheck for Checks {
    async fn check(&self, target: &Backend) -> Result<()> {
        let Some(server) = server(target) else { return Ok(()) };
        let Some(check) = server.origin.check.load_full() else { return Ok(()) };
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
