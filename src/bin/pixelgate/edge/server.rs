//! From a configuration to a running edge.
//!
//! Everything that can fail is opened before Pingora starts anything: sockets, certificates,
//! spool. How it ends is in [`super::stop`].

use super::Config;
use super::handover::{InheritedSockets, SOCKET_NAME};
use super::listen::{Address, BindError, Bound};
use super::origin::Origins;
use super::proxy::Edge;
use super::stop::Signals;
use super::tls::Certificates;
use async_trait::async_trait;
use log::{info, warn};
use pingora::connectors::ConnectorOptions;
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, GenBackgroundService, background_service};
use pingora::services::listening::Service;
use pixelgate::PixelGate;
use pixelgate::admin_pages::{Admin, Sampler};
use pixelgate::http_server::{Acceptor, InFlight, Limits, Server as FrontServer};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long an upgrade that found no process to take over from waits for an address that is in
/// use, in seconds: that process may be closing it in this moment.
const BIND_SECONDS_MAX: u64 = 5;

/// Open files that are no connection: segments, listeners, logs, connections to upstreams.
const FILES_OF_OUR_OWN: usize = 256;

/// Why an edge did not start, or did not stop as it should.
#[derive(Debug)]
pub enum EdgeError {
    /// A part of the gate did not open.
    Gate(pixelgate::OpenError),
    /// A listener did not open.
    Listen(BindError),
    /// A key of `[edge]` cannot be used.
    Edge(String),
    /// The state folder cannot be made.
    State(std::io::Error),
    /// The running process does not hand its sockets over.
    Upgrade(std::io::Error),
    /// Pingora refused a setting.
    Pingora(Box<pingora::Error>),
    /// The gate did not close as it should.
    Close(pixelgate::CloseError),
}

impl fmt::Display for EdgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gate(e) => e.fmt(f),
            Self::Listen(e) => e.fmt(f),
            Self::Edge(why) => f.write_str(why),
            Self::State(e) => write!(f, "edge.state_dir cannot be made: {e}"),
            Self::Upgrade(e) => write!(f, "the running process hands nothing over: {e}"),
            Self::Pingora(e) => e.fmt(f),
            Self::Close(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for EdgeError {}

/// Runs an edge until it is told to stop. With `upgrade` it takes the listening sockets of the
/// one that runs; if none does, it starts like any other. `verdicts` events of each kind are logged
/// a second.
pub fn run(
    edge: &Config,
    gate: pixelgate::Config,
    admin: &pixelgate::config::Admin,
    verdicts: u32,
    upgrade: bool,
) -> Result<(), EdgeError> {
    std::fs::create_dir_all(&edge.state_dir).map_err(EdgeError::State)?;
    // Sockets first: a second edge on the same port must not get as far as the spool.
    let mut sockets = Sockets::new(edge, upgrade)?;
    let plain = sockets.open_all("edge", &edge.listen)?;
    let certificates = load_certificates(edge)?;
    let tls = sockets.open_all("edge", certificates.iter().map(|(listen, _)| listen))?;
    let pages = sockets.open_all("admin", Some(&admin.listen).filter(|l| !l.is_empty()))?;
    let trusted = edge.trust().map_err(|e| EdgeError::Edge(e.to_string()))?;
    let conf = server_conf(edge)?;
    let origins = Origins::new(edge, ConnectorOptions::from_server_conf(&conf))
        .map_err(|why| EdgeError::Edge(format!("edge.origin: {why}")))?;

    let in_flight = InFlight::default();
    let gate = PixelGate::builder(gate)
        .state_dir(&edge.state_dir)
        .trusted_proxies(trusted.clone())
        .in_flight(in_flight.clone())
        .open()
        .map_err(EdgeError::Gate)?;
    let keepalive = edge.keepalive_seconds;
    let proxy = Edge::new(gate.clone(), origins.clone(), trusted, keepalive, in_flight.clone())
        .map_err(EdgeError::Pingora)?
        .with_write_timeout(edge.limits().write_timeout);

    let mut server = Server::new_with_opt_and_conf(None, conf);
    let proxy = http_proxy(&server.configuration, proxy);
    let limits = Limits { connections_max: raise_file_limit(edge), ..edge.limits() };
    let front = FrontServer::new(proxy, gate.clone(), in_flight.clone(), limits);
    let (stop, stopped) = watch::channel(false);
    let certificates: Vec<_> = certificates.into_iter().map(|(_, all)| all).collect();
    let announcement = announcement(&plain, &tls, &pages);
    let mut entrance = Acceptor::new("edge", front, stopped.clone());
    listen(&mut entrance, plain, tls, &certificates)?;
    server.add_service(entrance);

    // Apart: whoever looks at the pages is nobody to linger for.
    let watched = InFlight::default();
    let (lookout, mut service) = operators(&gate, admin, verdicts, &watched);
    server.add_service(lookout);
    pages.iter().for_each(|bound| service.add_listener(admin_listener(bound)));
    server.add_service(Stoppable { inner: service, sockets: pages, stopped });
    server.add_service(background_service("origins", origins));
    server.add_service(background_service("certificates", Renewal(certificates.clone())));

    let grace = Duration::from_secs(edge.shutdown_grace_seconds);
    let signals = Signals {
        gate: gate.clone(),
        certificates,
        stop,
        in_flight: [in_flight, watched],
        grace,
        state_dir: edge.state_dir.clone(),
        sockets: Mutex::new(sockets.copies),
        inheritance: Mutex::new(sockets.inheritance),
        announcement,
    };
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    gate.close(grace).map_err(EdgeError::Close)?;
    info!("stopped");
    Ok(())
}

fn load_certificates(edge: &Config) -> Result<Vec<(String, Arc<Certificates>)>, EdgeError> {
    Certificates::load_all(&edge.tls).map_err(|why| EdgeError::Edge(format!("edge.tls: {why}")))
}

/// Has the edge listen on plain sockets, and on TLS ones with the certificates of each.
fn listen(
    entrance: &mut Acceptor<Edge>,
    plain: Vec<Bound>,
    tls: Vec<Bound>,
    certificates: &[Arc<Certificates>],
) -> Result<(), EdgeError> {
    plain.into_iter().for_each(|bound| entrance.listen(bound.into_listener()));
    for (bound, certificates) in tls.into_iter().zip(certificates) {
        // No files for Pingora to read: the resolver has them read already.
        let mut settings = TlsSettings::intermediate("", "").map_err(EdgeError::Pingora)?;
        settings.set_cert_resolver(certificates.clone());
        settings.enable_h2();
        entrance.listen(bound.into_listener().tls(settings));
    }
    Ok(())
}

/// The admin pages are a service of Pingora's own.
fn admin_listener(bound: &Bound) -> ListenerConfig {
    let config = match bound.unix {
        true => ListenerConfig::uds(&bound.key),
        false => ListenerConfig::tcp(&bound.key),
    };
    config.l4_buffer(L4BufferSettings::default().read(0))
}

/// The listening sockets: opened here, or inherited.
struct Sockets {
    inheritance: Option<InheritedSockets>,
    /// Until when an address that is in use is tried again.
    patience: Instant,
    /// For the next process.
    copies: Vec<(String, std::os::fd::OwnedFd)>,
}

impl Sockets {
    fn new(edge: &Config, upgrade: bool) -> Result<Self, EdgeError> {
        let mut patience = Instant::now();
        let mut inheritance = None;
        if upgrade {
            let path = edge.state_dir.join(SOCKET_NAME);
            inheritance = InheritedSockets::take(&path).map_err(EdgeError::Upgrade)?;
            if inheritance.is_none() {
                warn!("{}: no edge runs here to take over from", edge.state_dir.display());
                patience += Duration::from_secs(BIND_SECONDS_MAX);
            }
        }
        Ok(Self { inheritance, patience, copies: Vec::new() })
    }

    fn open_all<'a>(
        &mut self,
        role: &str,
        addresses: impl IntoIterator<Item = &'a String>,
    ) -> Result<Vec<Bound>, EdgeError> {
        addresses.into_iter().map(|text| self.open(role, text)).collect()
    }

    fn open(&mut self, role: &str, text: &str) -> Result<Bound, EdgeError> {
        let address =
            Address::parse(text).map_err(|why| EdgeError::Edge(format!("edge.listen: {why}")))?;
        let name = format!("{role} {address}");
        let inherited = self.inheritance.as_mut().and_then(|all| all.claim(&name));
        let bound = match inherited {
            Some(socket) => Bound::inherited(&address, socket),
            None => loop {
                match Bound::open(&address) {
                    Err(e) if e.is_in_use() && Instant::now() < self.patience => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    opened => break opened,
                }
            },
        };
        let bound = bound.map_err(EdgeError::Listen)?;
        match bound.copy() {
            Ok(copy) => self.copies.push((name, copy)),
            Err(e) => warn!("{name} cannot be handed over to a next process: {e}"),
        }
        Ok(bound)
    }
}

/// What serves the operator: who looks and remembers, and the pages about it.
fn operators(
    gate: &PixelGate,
    admin: &pixelgate::config::Admin,
    verdicts: u32,
    in_flight: &InFlight,
) -> (GenBackgroundService<Sampler>, Service<Admin>) {
    let lookout = Arc::new(Sampler::new(gate.clone(), verdicts));
    let pages = Admin::new(lookout.clone(), admin, in_flight.clone());
    let mut service = Service::new("admin".to_owned(), pages);
    service.threads = Some(1);
    (GenBackgroundService::new("lookout".to_owned(), lookout), service)
}

/// Takes as many open files as the system lets us, and gives the connections that they suffice
/// for: each is one, and one more where it is passed on. Beyond, no event could be kept. (The usual
/// first limit of 1024 is for programs that call `select`.)
fn raise_file_limit(edge: &Config) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // A refusal leaves the limit as it was, which is told below.
    let _ = setrlimit(Resource::Nofile, limit);
    let Some(files) = getrlimit(Resource::Nofile).current else { return edge.connections_max };
    let free = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(FILES_OF_OUR_OWN);
    let most = if edge.origin.is_empty() { free } else { free / 2 }.max(1);
    if most < edge.connections_max {
        info!("the system allows {files} open files: {most} is edge.connections_max");
    }
    most.min(edge.connections_max)
}

fn server_conf(edge: &Config) -> Result<ServerConf, EdgeError> {
    let state = |name: &str| edge.state_dir.join(name).to_string_lossy().into_owned();
    Ok(ServerConf {
        // Work stealing stays on. Without it `memory` took 2 % less CPU on one thread and `power`
        // some 15 % more: its answers are woken by another thread.
        threads: edge.threads(),
        pid_file: state("pixelgate.pid"),
        ca_file: edge.origin_ca.as_deref().map(trust_file).transpose()?,
        // One stop is ours (see `super::stop`); Pingora's must not sleep after it.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    })
}

/// Makes sure of `edge.origin_ca`: Pingora panics over a file that it cannot use.
fn trust_file(path: &Path) -> Result<String, EdgeError> {
    check_trust_file(path).map_err(|why| EdgeError::Edge(format!("edge.origin_ca: {why}")))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Whether a file holds certificates to verify others against.
pub fn check_trust_file(path: &Path) -> Result<(), String> {
    let told = |why: &dyn fmt::Display| format!("{}: {why}", path.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| told(&e))? {
        roots.add(certificate.map_err(|e| told(&e))?).map_err(|e| told(&e))?;
    }
    if roots.is_empty() { Err(told(&"holds no certificate")) } else { Ok(()) }
}

/// One line for each listener, for people and for tests: the port may be the kernel's choice.
fn announcement(plain: &[Bound], tls: &[Bound], admin: &[Bound]) -> Vec<String> {
    let kinds = [
        ("http", "events and pass-through", plain),
        ("https", "events and pass-through", tls),
        ("http", "admin", admin),
    ];
    let lines = kinds.into_iter().flat_map(|(scheme, what, all)| {
        all.iter().map(move |bound| match bound.unix {
            true => format!("listening on unix:{} ({what})", bound.key),
            false => format!("listening on {scheme}://{} ({what})", bound.key),
        })
    });
    lines.collect()
}

/// A service that stops when we say so, on sockets that we opened.
struct Stoppable<A> {
    inner: Service<A>,
    sockets: Vec<Bound>,
    stopped: ShutdownWatch,
}

#[async_trait]
impl<A> pingora::services::Service for Stoppable<A>
where
    A: pingora::apps::ServerApp + Send + Sync + 'static,
{
    async fn start_service(
        &mut self,
        fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        listeners_per_fd: usize,
    ) {
        if let Some(table) = &fds {
            let mut table = table.lock();
            for bound in self.sockets.drain(..) {
                let (key, socket) = bound.into_raw();
                table.add(key, socket);
            }
        }
        self.inner.start_service(fds, self.stopped.clone(), listeners_per_fd).await;
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }
}

/// Reads certificates again when they change.
struct Renewal(Vec<Arc<Certificates>>);

#[async_trait]
impl BackgroundService for Renewal {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if self.0.is_empty() {
            return;
        }
        tokio::select! {
            () = Certificates::keep_looking(self.0.clone()) => {}
            _ = shutdown.changed() => {}
        }
    }
}
