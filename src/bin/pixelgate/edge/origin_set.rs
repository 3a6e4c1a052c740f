//! The origins of one configuration: the servers behind their names, and their health checks.
//!
//! Every address of an origin is a server of Pingora's load balancer, which resolves names every
//! [`LOOKUP_SECONDS`] and runs health checks. The change of a server from healthy to failing and
//! back is logged once.

use super::config::Config;
use super::origin_url::OriginUrl;
use arc_swap::ArcSwapOption;
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
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::watch;

/// Pause between two look-ups of an origin's name, in seconds.
const LOOKUP_SECONDS: u64 = 30;
/// Longest time for each step of a health check, in seconds.
const CHECK_SECONDS_MAX: u64 = 5;
/// Failed checks in a row after which a server is unhealthy; one successful check makes it healthy.
const CHECKS_FAILED: usize = 2;

/// The origins in force, replaced as a whole where a key of [`Keys`] changes.
pub struct Set {
    pub keys: Keys,
    pub origins: Arc<[Arc<Origin>]>,
    pub balancer: LoadBalancer<RoundRobin>,
    pub servers: Servers,
    /// Whether every name has been looked up once.
    pub looked_up: watch::Receiver<bool>,
}

/// The keys of `[edge]` that make a [`Set`].
#[derive(PartialEq, Eq)]
pub struct Keys {
    urls: Vec<String>,
    health_path: Option<String>,
    health_seconds: u64,
}

/// The servers of the last look-up, so that a server keeps its state.
pub type Servers = Arc<Mutex<HashMap<std::net::SocketAddr, Arc<Server>>>>;

/// One entry of `edge.origin`.
pub struct Origin {
    /// The URL as configured, for the log.
    name: String,
    pub url: OriginUrl,
    /// Its health check, if it has one.
    check: ArcSwapOption<Check>,
}

/// One address of an origin.
pub struct Server {
    pub origin: Arc<Origin>,
    pub address: std::net::SocketAddr,
    /// Its name in the log and in the access log.
    pub name: String,
    pub failing: AtomicBool,
}

impl Keys {
    /// The values in `edge`.
    pub fn of(edge: &Config) -> Self {
        Self {
            urls: edge.origin.clone(),
            health_path: edge.origin_health_path.clone(),
            health_seconds: edge.origin_health_seconds,
        }
    }
}

impl Set {
    /// Looks up no name. `known`: servers whose state is kept where the new origins have them, too.
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
        // A single server gets every request, healthy or not, so a check would change nothing.
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

    /// Checks over connections that are opened with these options from now on.
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
    /// The value of a `Host` header that names this server's origin.
    pub fn authority(&self) -> String {
        self.origin.url.authority()
    }

    fn is_of(&self, origin: &Origin) -> bool {
        self.origin.url == origin.url
    }

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

/// The server of an address in the load balancer.
pub fn server(backend: &Backend) -> Option<&Arc<Server>> {
    backend.ext.get()
}

/// Resolves the origins to servers.
struct LookUp {
    origins: Arc<[Arc<Origin>]>,
    found: Servers,
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
        for origin in self.origins.iter().filter(|origin| with_names || origin.is_address()) {
            for address in self.look_up(origin).await {
                // Two names with one address are one server, which is asked for the first name.
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

    /// The server at an address of an origin. One that was known keeps its state.
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

    /// The addresses of a name. A failed look-up keeps the addresses of the last one.
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
                error!("origin {}: its name cannot be looked up: {e}", origin.name);
                let known = self.known();
                let same = known.values().filter(|server| server.is_of(origin));
                same.map(|server| server.address).collect()
            }
        }
    }
}

/// A health check of one origin.
type Check = Box<dyn HealthCheck + Send + Sync>;

/// The health checks of all origins: each server's own is that of its origin.
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
