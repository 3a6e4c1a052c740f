//! From a configuration to a running edge, and from a signal to its end.
//!
//! Pingora's own stop sleeps through its grace period even when nothing is in flight, and drops
//! what is in flight at its end. So the stop is run here: close the listeners, wait for requests
//! in flight (and only for them), then let Pingora end its threads, then close the gate.

use super::Config;
use super::listen::{Address, BindError, Bound};
use super::origin::Origins;
use super::proxy::Edge;
use super::systemd;
use super::tls::Certificates;
use async_trait::async_trait;
use log::{error, info};
use pingora::connectors::ConnectorOptions;
use pingora::listeners::tls::TlsSettings;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{
    ListenFds, RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch,
};
use pingora::services::background::{BackgroundService, background_service};
use pingora::services::listening::Service;
use pixelgate::PixelGate;
use pixelgate::admin::Admin;
use pixelgate::front::{Front, InFlight, Limits};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Pause between two looks at whether requests are still in flight, in milliseconds.
const DRAIN_LOOK_MS: u64 = 2;

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
    /// Pingora refused a setting.
    Pingora(Box<pingora::Error>),
    /// The gate did not close as it should.
    Close(pixelgate::spool::CloseError),
}

impl fmt::Display for EdgeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gate(e) => e.fmt(f),
            Self::Listen(e) => e.fmt(f),
            Self::Edge(why) => f.write_str(why),
            Self::State(e) => write!(f, "edge.state_dir cannot be made: {e}"),
            Self::Pingora(e) => e.fmt(f),
            Self::Close(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for EdgeError {}

/// Runs an edge until it is told to stop.
pub fn run(
    edge: &Config,
    gate: pixelgate::Config,
    admin: &pixelgate::admin::Config,
) -> Result<(), EdgeError> {
    std::fs::create_dir_all(&edge.state_dir).map_err(EdgeError::State)?;
    // Sockets first: a second edge on the same port must not get as far as the spool.
    let plain = bind_all(&edge.listen)?;
    let certificates = Certificates::load_all(&edge.tls)
        .map_err(|why| EdgeError::Edge(format!("edge.tls: {why}")))?;
    let tls = bind_all(certificates.iter().map(|(listen, _)| listen))?;
    let pages = bind_all(Some(&admin.listen).filter(|listen| !listen.is_empty()))?;
    let trusted = edge.trust().map_err(|e| EdgeError::Edge(e.to_string()))?;
    let conf = server_conf(edge)?;
    let origins = Origins::new(edge, ConnectorOptions::from_server_conf(&conf))
        .map_err(|why| EdgeError::Edge(format!("edge.origin: {why}")))?;

    let gate = PixelGate::builder(gate)
        .state_dir(&edge.state_dir)
        .trusted_proxies(trusted.clone())
        .open()
        .map_err(EdgeError::Gate)?;
    let in_flight = InFlight::default();
    let proxy = Edge::new(
        gate.clone(),
        origins.clone(),
        trusted,
        edge.keepalive_seconds,
        in_flight.clone(),
    )
    .map_err(EdgeError::Pingora)?;

    let mut server = Server::new_with_opt_and_conf(None, conf);
    let proxy = http_proxy(&server.configuration, proxy);
    let front = Front::new(proxy, gate.clone(), in_flight.clone(), limits(edge));
    let (stop, stopped) = watch::channel(false);
    let mut service = Service::new("edge".to_owned(), front);
    for bound in &plain {
        service.add_listener(listener(bound));
    }
    for (bound, (_, certificates)) in tls.iter().zip(&certificates) {
        // No files for Pingora to read: the resolver has them read already.
        let mut settings = TlsSettings::intermediate("", "").map_err(EdgeError::Pingora)?;
        settings.set_cert_resolver(certificates.clone());
        settings.enable_h2();
        service.add_listener(listener(bound).tls(settings));
    }
    raise_file_limit(edge.connections_max);
    announce(&plain, &tls, &pages);
    let sockets = plain.into_iter().chain(tls).collect();
    server.add_service(Stoppable { inner: service, sockets, stopped: stopped.clone() });

    let mut service = Service::new("admin".to_owned(), Admin::new(gate.clone(), admin));
    service.threads = Some(1);
    for bound in &pages {
        service.add_listener(listener(bound));
    }
    server.add_service(Stoppable { inner: service, sockets: pages, stopped });
    server.add_service(background_service("origins", origins));

    let grace = Duration::from_secs(edge.shutdown_grace_seconds);
    let certificates: Vec<_> = certificates.into_iter().map(|(_, all)| all).collect();
    server.add_service(background_service("certificates", Renewal(certificates.clone())));
    let signals = Signals { gate: gate.clone(), certificates, stop, in_flight, grace };
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    gate.close(grace).map_err(EdgeError::Close)?;
    info!("stopped");
    Ok(())
}

/// Takes as many open files as the system lets us: a connection is one, and the usual first
/// limit of 1024 is for programs that call `select`.
fn raise_file_limit(connections_max: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // A refusal leaves the limit as it was, which is told below.
    let _ = setrlimit(Resource::Nofile, limit);
    let Some(files) = getrlimit(Resource::Nofile).current else { return };
    if files < (connections_max + FILES_OF_OUR_OWN) as u64 {
        info!("the system allows {files} open files: fewer connections than edge.connections_max");
    }
}

fn bind_all<'a>(addresses: impl IntoIterator<Item = &'a String>) -> Result<Vec<Bound>, EdgeError> {
    let open = |text: &String| {
        let address =
            Address::parse(text).map_err(|why| EdgeError::Edge(format!("edge.listen: {why}")))?;
        Bound::open(&address).map_err(EdgeError::Listen)
    };
    addresses.into_iter().map(open).collect()
}

fn server_conf(edge: &Config) -> Result<ServerConf, EdgeError> {
    let state = |name: &str| edge.state_dir.join(name).to_string_lossy().into_owned();
    Ok(ServerConf {
        threads: edge.threads(),
        pid_file: state("pixelgate.pid"),
        ca_file: edge.origin_ca.as_deref().map(trust_file).transpose()?,
        // One stop is ours (see the head of this file); Pingora's must not sleep after it.
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

fn limits(edge: &Config) -> Limits {
    Limits {
        header_timeout: Duration::from_secs(edge.header_timeout_seconds),
        keepalive: Duration::from_secs(edge.keepalive_seconds),
        connections_max: edge.connections_max,
        connections_per_address_max: edge.connections_per_address_max,
        answer_plain: edge.answer_plain,
    }
}

fn listener(bound: &Bound) -> ListenerConfig {
    let config = match bound.unix {
        true => ListenerConfig::uds(&bound.key),
        false => ListenerConfig::tcp(&bound.key),
    };
    let (read, write) = pixelgate::front::SOCKET_BUFFER_BYTES;
    config.l4_buffer(L4BufferSettings::new(read, write))
}

/// One line for each listener, for people and for tests: the port may be the kernel's choice.
fn announce(plain: &[Bound], tls: &[Bound], admin: &[Bound]) {
    for (scheme, what, all) in [
        ("http", "events and pass-through", plain),
        ("https", "events and pass-through", tls),
        ("http", "admin", admin),
    ] {
        for bound in all {
            match bound.unix {
                true => info!("listening on unix:{} ({what})", bound.key),
                false => info!("listening on {scheme}://{} ({what})", bound.key),
            }
        }
    }
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

/// Waits for a signal, and drains before Pingora hears of it.
struct Signals {
    gate: PixelGate,
    certificates: Vec<Arc<Certificates>>,
    stop: watch::Sender<bool>,
    in_flight: InFlight,
    grace: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        if let Err(e) = self.wait().await {
            // Without handlers the default actions apply: the process still ends, undrained.
            error!("signals cannot be handled: {e}");
            std::future::pending::<()>().await;
        }
        self.drain().await;
        ShutdownSignal::FastShutdown
    }
}

impl Signals {
    async fn wait(&self) -> std::io::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut quit = signal(SignalKind::quit())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        systemd::ready();
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = quit.recv() => "SIGQUIT",
                _ = interrupt.recv() => "SIGINT",
                _ = hangup.recv() => {
                    systemd::reloading();
                    self.reload();
                    systemd::ready();
                    continue;
                }
            };
            info!("{name}: stopping");
            systemd::stopping();
            return Ok(());
        }
    }

    fn reload(&self) {
        info!("SIGHUP: reading the portals and the certificates again");
        self.gate.reload_portals();
        for certificates in &self.certificates {
            certificates.reload(true);
        }
    }

    async fn drain(&self) {
        // Listeners close, idle connections end, requests in flight are answered.
        let _ = self.stop.send(true);
        let deadline = Instant::now() + self.grace;
        while self.in_flight.count() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(DRAIN_LOOK_MS)).await;
        }
        let left = self.in_flight.count();
        if left > 0 {
            error!("{left} requests were still in flight when the grace period ended");
        }
    }
}
