//! Builds an edge from a configuration and runs it until a signal stops it.
//!
//! Everything that can fail is opened before Pingora starts: the sockets, the certificates and the
//! spool. So an edge that does not start ends with a message and an exit code (SPEC 8). The stop is
//! in [`super::stop`].

use super::admin::Pages;
use super::config::Config as Section;
use super::error::EdgeError;
use super::listen::Bound;
use super::metrics_export::MetricsExport;
use super::origin::Origins;
use super::origin_ca::NO_AUTHORITIES;
use super::proxy::Edge;
use super::reload::{Handles, Reloader, Watch};
use super::sockets::Sockets;
use super::stop::{Deadline, Handlers, Signals};
use super::tls::Certificates;
use super::within::{START_LIMIT, within};
use super::{admin, file_limit, metrics_export};
use crate::access_log::{AccessLogs, Opened};
use crate::config::Config;
use crate::writable;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{info, warn};
use parking_lot::Mutex;
use pingora::listeners::tls::{Acceptor as TlsAcceptor, TlsSettings};
use pingora::protocols::Stream;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server};
use pingora::services::background::{GenBackgroundService, background_service};
use pixelgate::PixelGate;
use pixelgate::config::{TrustedProxies, ValidConfig};
use pixelgate::custom::InFlight;
use pixelgate::http_server::{
    self, Acceptor, BufferedBytes, Handshake, Server as HttpServer, Socket,
};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// Runs an edge until a signal stops it.
///
/// `path` is the configuration file, which is read again when it changes. With `upgrade` the edge
/// takes over the listening sockets of the running edge, or opens new ones if none runs. `handlers`
/// receive the signals.
///
/// # Errors
///
/// The edge did not start, or did not stop as it should.
pub fn run(
    path: &Path,
    config: Config,
    upgrade: bool,
    handlers: Handlers,
) -> Result<(), EdgeError> {
    let Config { edge, gate, admin, log, access_log, metrics, otlp, table, .. } = config;
    make_state_dir(&edge.state_dir)?;
    // The sockets come first: a second edge on the same port must not use the spool.
    let mut sockets = Sockets::new(&edge, &admin, upgrade)?;
    let plain = sockets.open_all("edge.listen", &edge.listen)?;
    let certificates = load_certificates(&edge)?;
    let tls = sockets.open_all("edge.tls", certificates.iter().map(|(listen, _)| listen))?;
    let pages = Some(&admin.listen).filter(|listen| !listen.is_empty());
    let pages = sockets.open_all("admin.listen", pages)?;
    let access_log = open_access_log(&access_log)?;
    let collector = metrics_export::prepare(&otlp).map_err(EdgeError::Otlp)?;
    let origins = Origins::new(&edge).map_err(EdgeError::Edge)?;
    let in_flight = InFlight::default();
    let gate = open_gate(gate, &edge, &in_flight, sockets.inherited.is_some())?;
    let access_logs = start_access_log(access_log, &gate)?;
    let section = Arc::new(ArcSwap::from_pointee(edge.clone()));
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&edge));
    let buffered_bytes = BufferedBytes::new(edge.buffered_bytes_max());
    let http_server = http_server(&server.configuration, &section, &gate, &origins, &in_flight)?;
    let http_server = http_server.buffered_bytes(buffered_bytes.clone());
    let limits = http_server.limits_handle();
    let (stop, stopped) = watch::channel(false);
    let announcement = announcement(&plain, &tls, &pages);
    let acceptor = Acceptor::new("edge", http_server).stop_on(stopped.clone());
    server.add_service(listen(acceptor, plain, tls, &certificates)?);
    // Counted apart, so that no event waits (`spool.linger_ms`) for a request to the admin pages.
    let admin_in_flight = InFlight::default();
    let Pages { sampler, service, token } =
        admin::pages(&gate, &admin, log.verdicts, &admin_in_flight, pages, stopped);
    sampler.set_portals_max(metrics.portals_max);
    let metrics_export = MetricsExport::start(&mut server, &sampler, collector);
    server.add_service(GenBackgroundService::new("sampler".to_owned(), sampler.clone()));
    server.add_service(service);
    server.add_service(background_service("origins", origins.clone()));
    let handles = Handles {
        section: section.clone(),
        gate: gate.clone(),
        limits,
        buffered_bytes,
        origins,
        certificates,
        sampler,
        token,
        access_logs: access_logs.clone(),
        metrics_export,
    };
    let signals = Signals {
        reload: watch_configuration(&mut server, Reloader::new(path.to_owned(), table, handles)),
        access_logs: access_logs.clone(),
        section,
        gate: gate.clone(),
        stop,
        in_flight: [in_flight, admin_in_flight],
        deadline: Deadline::default(),
        state_dir: edge.state_dir.clone(),
        sockets: Mutex::new(sockets.copies),
        inherited: Mutex::new(sockets.inherited),
        announcement,
        handlers: Mutex::new(Some(handlers.started())),
    };
    let deadline = signals.deadline.clone();
    server.run(RunArgs { shutdown_signal: Box::new(signals) });
    end(&gate, &access_logs, &deadline)
}

/// Adds the service that reads a changed configuration. A notification of the returned value makes
/// it look at once.
fn watch_configuration(server: &mut Server, reloader: Reloader) -> Arc<Notify> {
    let at_once = Arc::new(Notify::new());
    server.add_service(background_service("reload", Watch::new(reloader, at_once.clone())));
    at_once
}

/// Closes the gate, and then the access log, because the last events belong into it.
fn end(gate: &PixelGate, access_logs: &AccessLogs, deadline: &Deadline) -> Result<(), EdgeError> {
    let closed = gate.close(deadline.left()).map_err(EdgeError::Close);
    access_logs.close(deadline.left());
    closed.inspect(|()| info!("stopped"))
}

/// Makes `edge.state_dir`. A disk that does not let the folder be made or written, or does not
/// answer, is no error, because it must not prevent a start: each later write to the folder tries
/// to make it, too.
fn make_state_dir(dir: &Path) -> Result<(), EdgeError> {
    let path = dir.to_owned();
    // An error of the sender means that the start has gone on without it.
    let made = within(START_LIMIT, move |done| _ = done.send(writable::make_folder(&path)));
    let why = match made {
        None => format!("the disk has not answered for {} s", START_LIMIT.as_secs()),
        Some(Err(e)) if e.is_of_path => {
            return Err(EdgeError::Edge(format!("edge.state_dir: {}", e.why)));
        }
        Some(Err(e)) => e.why,
        Some(Ok(())) => return Ok(()),
    };
    warn!(
        "edge.state_dir {} cannot be written now, and is tried again later: {why}",
        dir.display()
    );
    Ok(())
}

/// Opens the gate. A successor (`is_successor`) needs a disk that can be written, and does not
/// start without one: the running edge then goes on.
fn open_gate(
    config: ValidConfig,
    edge: &Section,
    in_flight: &InFlight,
    is_successor: bool,
) -> Result<PixelGate, EdgeError> {
    let builder = PixelGate::builder(config)
        .needs_disk(is_successor)
        .state_dir(&edge.state_dir)
        .trusted_proxies(trusted(edge)?)
        .in_flight(in_flight.clone());
    builder.open().map_err(if is_successor { EdgeError::Successor } else { EdgeError::Gate })
}

fn trusted(edge: &Section) -> Result<TrustedProxies, EdgeError> {
    edge.trust().map_err(|e| EdgeError::Edge(e.to_string()))
}

/// Builds the HTTP server around the proxy.
fn http_server(
    conf: &Arc<ServerConf>,
    section: &Arc<ArcSwap<Section>>,
    gate: &PixelGate,
    origins: &Origins,
    in_flight: &InFlight,
) -> Result<HttpServer<Edge>, EdgeError> {
    let edge = section.load_full();
    let (origins, transport) = (origins.clone(), origins.transport());
    let proxy = Edge::new(gate.clone(), origins, section.clone(), in_flight.clone());
    let proxy = proxy.map_err(EdgeError::Pingora)?;
    let proxy = http_server::proxy_with(conf, proxy, transport).map_err(EdgeError::Proxy)?;
    file_limit::report(&edge);
    Ok(HttpServer::new(proxy, gate.clone(), file_limit::limits(&edge)))
}

/// Starts the writer of the access log, if one is configured.
fn start_access_log(opened: Option<Opened>, gate: &PixelGate) -> Result<AccessLogs, EdgeError> {
    let started = opened.map(|log| log.start(gate)).transpose();
    let all = AccessLogs::new(gate.clone());
    all.put(started.map_err(EdgeError::AccessLogThread)?);
    Ok(all)
}

/// Opens the file of the access log, if one is configured. If the disk does not answer in time, the
/// start goes on, and the writer of the log tries again.
fn open_access_log(
    config: &crate::access_log::config::Config,
) -> Result<Option<Opened>, EdgeError> {
    if !config.is_on() {
        return Ok(None);
    }
    let own = config.clone();
    let opened = within(START_LIMIT, move |done| _ = done.send(Opened::open(&own)));
    let opened = opened.unwrap_or_else(|| {
        let why = format!("the disk has not answered for {} s", START_LIMIT.as_secs());
        Ok(Some(Opened::late(config, io::Error::new(io::ErrorKind::TimedOut, why))))
    });
    opened.map_err(|e| EdgeError::AccessLog(config.path.display().to_string(), e))
}

fn load_certificates(edge: &Section) -> Result<Vec<(String, Arc<Certificates>)>, EdgeError> {
    Certificates::load_all(&edge.tls).map_err(|why| EdgeError::Edge(format!("edge.tls: {why}")))
}

/// Adds to the acceptor the listeners without TLS, and the TLS listeners with their certificates.
fn listen(
    mut acceptor: Acceptor<Edge>,
    plain: Vec<Bound>,
    tls: Vec<Bound>,
    certificates: &[(String, Arc<Certificates>)],
) -> Result<Acceptor<Edge>, EdgeError> {
    plain.into_iter().for_each(|bound| acceptor.listen(bound.into_listener()));
    for (bound, (_, certificates)) in tls.into_iter().zip(certificates) {
        // The paths are empty, because the resolver holds the certificates.
        let mut settings = TlsSettings::intermediate("", "").map_err(EdgeError::Pingora)?;
        settings.set_cert_resolver(certificates.clone());
        settings.enable_h2();
        acceptor.listen(bound.into_listener().tls(Tls(settings.build())));
    }
    Ok(acceptor)
}

/// Does the TLS handshake for the connections of a listener.
struct Tls(TlsAcceptor);

#[async_trait]
impl Handshake for Tls {
    async fn accept(&self, socket: Socket) -> pingora::Result<Stream> {
        Ok(Box::new(self.0.tls_handshake(socket).await?))
    }
}

fn server_conf(edge: &Section) -> ServerConf {
    let state = |name: &str| edge.state_dir.join(name).to_string_lossy().into_owned();
    ServerConf {
        // Work stealing stays on. Without it `durability = "memory"` took 2 % less CPU time on
        // one thread, but `power` took about 15 % more, because there another thread wakes the
        // requests.
        threads: edge.threads(),
        pid_file: state("pixelgate.pid"),
        // `super::stop` has waited for requests in flight, so Pingora must not wait again.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        // For the connector that Pingora's proxy has beside ours: it opens no connection.
        ca_file: Some(NO_AUTHORITIES.to_owned()),
        ..ServerConf::default()
    }
}

/// Returns a line of the log for each listener, with the port that the kernel chose for port 0.
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
