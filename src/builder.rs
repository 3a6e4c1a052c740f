//! Turns a configuration into an open gate.
//!
//! [`Builder::open`] is the one place where the rooms are put together: it checks every section,
//! opens the portal list and the spool, builds the upstreams and starts delivery.

mod check;
mod config;
mod error;
mod events;

use crate::clock::{Clock, SystemClock};
use crate::config_error::ConfigError;
use crate::delivery;
use crate::delivery::threads::Delivery;
use crate::delivery::{Meters, Route, RouteLimits};
use crate::event::{self, Event};
use crate::plugin::{GateState, PixelGate, PrebuiltResponse, ReloadState, Settings};
use crate::policy::gate::Gate;
use crate::policy::inspect::{Addition, Inspector, Refusal};
use crate::policy::portals;
use crate::policy::portals::{Bounds, Format, Portals};
use crate::request::client::TrustedProxies;
use crate::response::answers::Answers;
use crate::spool::{self, Durability, Env, Spool};
use crate::telemetry::event_samples::EventSamples;
use crate::telemetry::faults::Faults;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{self, BatchConfig, Replaceable, Upstream};
use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus::Registry;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use tokio::runtime::Handle;

pub use check::check;
pub use config::{Config, ValidConfig};
pub use error::OpenError;
use events::Counted;
pub use events::{EVENT_METERING, EVENT_ROUTING};

/// An upstream with its name, the limits of its batches and its `attempts_max`.
type Destination = (String, Arc<dyn Upstream>, BatchConfig, u32);

/// Collects what a gate needs and opens it ([`Builder::open`]).
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let folder = dir.path();
/// use pixelgate::config::{FileUpstream, Upstream};
/// use pixelgate::custom::PortalFormat;
/// use pixelgate::{Config, PixelGate};
///
/// let mut config = Config::default();
/// config.spool.dir = folder.join("spool");
/// config.upstream = vec![Upstream::new("files", FileUpstream::new(folder.join("events")))];
/// let gate = PixelGate::builder(config)
///     .state_dir(folder)
///     .portals("62515", PortalFormat::Text)
///     .open()?;
/// # gate.close(std::time::Duration::from_secs(10))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Builder {
    config: Result<ValidConfig, ConfigError>,
    state_dir: PathBuf,
    trusted: TrustedProxies,
    own: Vec<(String, Arc<dyn Upstream>)>,
    in_flight: Option<InFlight>,
    clock: Arc<dyn Clock>,
    inspector: Option<Inspector>,
    portals: Option<(String, Format)>,
    name: Option<String>,
    registry: Registry,
    runtime: Option<Handle>,
    needs_disk: bool,
}

impl PixelGate {
    /// Begins a gate with this configuration: a [`ValidConfig`], or a [`Config`], which is checked
    /// here. [`Builder::open`] returns the error of a [`Config`] that cannot be used.
    pub fn builder<C>(config: C) -> Builder
    where
        C: TryInto<ValidConfig>,
        C::Error: Into<ConfigError>,
    {
        Builder::new(config.try_into().map_err(Into::into))
    }
}

impl Builder {
    fn new(config: Result<ValidConfig, ConfigError>) -> Self {
        Self {
            config,
            state_dir: PathBuf::from("data"),
            trusted: TrustedProxies::default(),
            own: Vec::new(),
            in_flight: None,
            clock: Arc::new(SystemClock),
            inspector: None,
            portals: None,
            name: None,
            registry: Registry::new(),
            runtime: None,
            needs_disk: false,
        }
    }

    /// The folder for small state that survives a restart, such as the last good portal list.
    /// Default: `data`.
    pub fn state_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.state_dir = dir.as_ref().to_owned();
        self
    }

    /// The proxies whose headers are trusted to name the client's address. Default: none.
    ///
    /// ```
    /// use pixelgate::config::TrustedProxies;
    /// use pixelgate::{Config, PixelGate};
    ///
    /// let balancers = TrustedProxies::new(&["10.0.0.0/8".to_owned()], None)?;
    /// let builder = PixelGate::builder(Config::default()).trusted_proxies(balancers);
    /// # Ok::<(), pixelgate::errors::TrustError>(())
    /// ```
    pub fn trusted_proxies(mut self, trusted: TrustedProxies) -> Self {
        self.trusted = trusted;
        self
    }

    /// Counters of the requests and connections on which events arrive. When no open connection can
    /// send a further request before it gets a response, the waiting group is synced at once
    /// instead of after `spool.linger_ms`. A request must be counted before it is judged. Default:
    /// none, and every group waits the full linger.
    ///
    /// ```
    /// use pixelgate::custom::InFlight;
    /// use pixelgate::{Config, PixelGate};
    ///
    /// let in_flight = InFlight::default(); // the proxy calls `in_flight.enter()` in its `new_ctx`
    /// let builder = PixelGate::builder(Config::default()).in_flight(in_flight.clone());
    /// ```
    pub fn in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// Adds an upstream of the host's own to the configured ones. Its name must have the form
    /// `[a-z0-9_-]{1,64}` and differ from all others. It must stay the same between starts, because
    /// the spool stores the upstream's position under it.
    pub fn upstream(mut self, name: &str, upstream: Arc<dyn Upstream>) -> Self {
        self.own.push((name.to_owned(), upstream));
        self
    }

    /// Calls `inspector` for each event that the gate would accept, before the event is stored and
    /// before it counts against its portal's rate. `inspector` sees the event as it would be
    /// stored, may add to the context, and may refuse the event. It runs on the request path, for
    /// every request, so it must not block; a panic in it ends the connection. Default: no
    /// inspector, at no cost.
    ///
    /// ```
    /// use pixelgate::{Config, PixelGate, custom::Refusal};
    ///
    /// let builder = PixelGate::builder(Config::default()).inspect(|event, context| {
    ///     if event.name.starts_with("internal_") {
    ///         return Err(Refusal::new("internal events are not taken from outside"));
    ///     }
    ///     if context.referer.is_none() {
    ///         // Fails only if the name cannot be used, which this one can.
    ///         let _ = context.add("source", "direct");
    ///     }
    ///     Ok(())
    /// });
    /// ```
    pub fn inspect<F>(mut self, inspector: F) -> Self
    where
        F: Fn(&Event<'_>, &mut Addition<'_, '_>) -> Result<(), Refusal> + Send + Sync + 'static,
    {
        self.inspector = Some(Arc::new(inspector));
        self
    }

    /// A portal list that the host brings, in place of `portals.source`.
    /// [`PixelGate::put_portals`] replaces it later; `portals.stale_seconds_max` counts from the
    /// latest list.
    ///
    /// ```
    /// use pixelgate::{Config, PixelGate, custom::PortalFormat};
    ///
    /// let builder = PixelGate::builder(Config::default())
    ///     .portals("portals = [62515]", PortalFormat::Toml);
    /// ```
    pub fn portals(mut self, list: impl Into<String>, format: Format) -> Self {
        self.portals = Some((list.into(), format));
        self
    }

    /// The name of the gate, which its metrics then carry as the label `gate`. Gates that share a
    /// registry need different names. Default: none, and no such label.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// The registry in which the gate registers its metrics, and which its pages show. The metrics
    /// leave it when the last clone of the gate is dropped. Default: a registry of the gate's own.
    ///
    /// ```
    /// use pixelgate::custom::Registry;
    /// use pixelgate::{Config, PixelGate};
    ///
    /// let registry = Registry::new();
    /// let shop = PixelGate::builder(Config::default()).name("shop").registry(registry.clone());
    /// let blog = PixelGate::builder(Config::default()).name("blog").registry(registry);
    /// ```
    pub fn registry(mut self, registry: Registry) -> Self {
        self.registry = registry;
        self
    }

    /// The clock of the gate, for ids, times, intervals and rates. Waits for disks and upstreams
    /// use the clock of the system. Default: [`SystemClock`].
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The runtime on which delivery runs and the portal list is refreshed, with timers and I/O
    /// enabled. It must run until the gate is closed. An upstream that blocks a thread delays all
    /// other tasks of that thread. Default: a small runtime for each upstream, on threads of the
    /// gate.
    ///
    /// ```
    /// # use pixelgate::{Builder, Config, PixelGate};
    /// # fn build(runtime: &tokio::runtime::Runtime) -> Builder {
    /// PixelGate::builder(Config::default()).runtime(runtime.handle().clone())
    /// # }
    /// ```
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Whether the gate opens only if the disk takes events. `true` is for a process that replaces
    /// one which still accepts events (SPEC 6). With `false`, the default, a gate opens on a disk
    /// that is full, read-only or failing, refuses events, delivers those of earlier processes, and
    /// recovers by itself.
    pub fn needs_disk(mut self, needs_disk: bool) -> Self {
        self.needs_disk = needs_disk;
        self
    }

    /// Builds the judge without spool and delivery, for `explain`. Opens the portal list only.
    ///
    /// ```
    /// use pixelgate::custom::PortalFormat;
    /// use pixelgate::{Config, PixelGate, tools};
    ///
    /// let builder = PixelGate::builder(Config::default());
    /// let judge = builder.portals("62515", PortalFormat::Text).gate()?;
    /// assert!(tools::explain(&judge, &[], "_a=62515&_n=signup")?.is_accepted());
    /// assert!(!tools::explain(&judge, &[], "_a=7&_n=signup")?.is_accepted());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The portal list cannot be read, or `events` holds a value that cannot be used.
    pub fn gate(self) -> Result<Gate, OpenError> {
        let config = self.config?;
        let list = config.list(&self.own);
        let portals = open_portals(&list, self.portals, &self.state_dir, &self.clock)?;
        Ok(config.into_gate(portals, self.clock, self.inspector))
    }

    /// Opens the portal list and the spool, and starts delivery.
    ///
    /// This starts threads, so a host that daemonizes must do so before. It blocks while it reads
    /// the portal list and the spool; a disk that does not answer delays it by
    /// `spool.commit_seconds_max`.
    ///
    /// # Errors
    ///
    /// The error of the first part that cannot be used. Damaged records in the spool are not an
    /// error: their bytes are copied to the quarantine, and they are counted as lost.
    pub fn open(self) -> Result<PixelGate, OpenError> {
        let config = self.config?;
        let is_hosts_list = self.portals.is_some();
        let list = config.list(&self.own);
        let portals = open_portals(&list, self.portals, &self.state_dir, &self.clock)?;
        let metrics =
            Metrics::register(self.registry, self.name.as_deref()).map_err(OpenError::Metrics)?;
        let faults = Faults::new(self.clock.clone(), metrics.faults.clone());
        let upstreams = build_all(config.configured(&self.own), &faults)?;
        let destinations = destinations(&config, &upstreams, &self.own)?;
        let names: Vec<String> = destinations.iter().map(|(name, ..)| name.clone()).collect();
        let env = Env {
            clock: self.clock.clone(),
            commit_seconds: Some(metrics.spool_commit_seconds.clone()),
            faults: faults.clone(),
            routing: EVENT_ROUTING,
            needs_disk: self.needs_disk,
            metering: EVENT_METERING,
            received_ms: event::received_ms,
            ..Env::system()
        };
        let spool =
            Spool::open(config.valid_spool.clone(), &names, env).map_err(OpenError::Spool)?;
        portals.count_by(Arc::new(Counted(spool.day_counts())));
        let options = delivery::Options {
            clock: self.clock.clone(),
            faults: faults.clone(),
            meters: meters(&metrics),
            ..delivery::Options::new(config.dead_dir())
        };
        let routes = routes(destinations, &spool);
        let delivery = Delivery::start(routes, options, portals.clone(), self.runtime.as_ref())
            .map_err(OpenError::Threads)?;
        let is_durable = config.spool.durability != Durability::Memory;
        let list = Some((config.portals.clone(), config.privacy)).filter(|_| !is_hosts_list);
        let reload = ReloadState {
            state_dir: self.state_dir,
            inspector: self.inspector.clone(),
            portals: Mutex::new(list),
            upstreams,
        };
        let settings =
            config.into_settings(portals, self.clock.clone(), self.inspector, self.trusted)?;
        Ok(PixelGate::from_state(GateState {
            settings: ArcSwap::from_pointee(settings),
            reloads: AtomicU64::new(0),
            draining: AtomicBool::new(false),
            spool,
            is_durable,
            clock: self.clock.clone(),
            metrics,
            faults,
            event_samples: EventSamples::new(self.clock),
            access_log: ArcSwapOption::empty(),
            delivery,
            in_flight: self.in_flight,
            reload,
        }))
    }
}

impl ValidConfig {
    /// The settings of the spool.
    pub(crate) fn valid_spool(&self) -> &spool::ValidConfig {
        &self.valid_spool
    }

    /// The limits of each configured upstream, by its name, and the limits of all upstreams that
    /// the host brings.
    pub(crate) fn route_limits(&self) -> (HashMap<String, RouteLimits>, RouteLimits) {
        let named_limits = |upstream: &upstream::ValidConfig| {
            let batch = upstream.batch.over(&self.batch);
            let attempts_max = upstream.attempts_max;
            (upstream.name.clone(), RouteLimits { batch, attempts_max })
        };
        let attempts_max = upstream::ATTEMPTS_MAX_DEFAULT;
        let others = RouteLimits { batch: self.batch.clone(), attempts_max };
        (self.destinations.iter().map(named_limits).collect(), others)
    }

    /// The portal list's configuration, with the names of the upstreams that its rules may name.
    pub(crate) fn list_for(&self, upstreams: Vec<String>) -> portals::ValidConfig {
        self.list.clone().bounded(Bounds { upstreams, privacy: self.privacy })
    }

    /// The part of this configuration that requests use.
    pub(crate) fn into_settings(
        self,
        portals: Portals,
        clock: Arc<dyn Clock>,
        inspector: Option<Inspector>,
        trusted: TrustedProxies,
    ) -> Result<Settings, OpenError> {
        let answers = Answers::build(&self.response, &self.events.methods, PrebuiltResponse::new)
            .map_err(OpenError::Answers)?;
        Ok(Settings {
            answers,
            sends_event_id: self.response.event_id,
            path: Bytes::from(self.events.path.clone()),
            upstreams: self.upstream.clone(),
            gate: Arc::new(self.into_gate(portals, clock, inspector)),
            trusted,
        })
    }

    /// The configured upstreams. The embedded default, which writes files, is left out if the host
    /// brings upstreams of its own.
    fn configured(&self, own: &[(String, Arc<dyn Upstream>)]) -> &[upstream::ValidConfig] {
        match self.upstream.is_empty() && !own.is_empty() {
            true => &[],
            false => &self.destinations,
        }
    }

    /// The portal list's configuration, with the names of the upstreams that its rules may name.
    fn list(&self, own: &[(String, Arc<dyn Upstream>)]) -> portals::ValidConfig {
        let configured = self.configured(own).iter().map(|upstream| upstream.name.clone());
        let upstreams = configured.chain(own.iter().map(|(name, _)| name.clone())).collect();
        self.list_for(upstreams)
    }

    fn into_gate(
        self,
        portals: Portals,
        clock: Arc<dyn Clock>,
        inspector: Option<Inspector>,
    ) -> Gate {
        Gate::new(self.guard, self.rules, self.config.privacy, portals, clock)
            .with_inspector(inspector)
    }
}

/// Opens the portal policy with the list of the host, or with `portals.source`.
fn open_portals(
    list: &portals::ValidConfig,
    hosts: Option<(String, Format)>,
    state_dir: &Path,
    clock: &Arc<dyn Clock>,
) -> Result<Portals, OpenError> {
    let portals = match hosts {
        Some((text, format)) => Portals::from_host(&text, format, list, clock.clone()),
        None => Portals::open(list, state_dir, clock.clone()),
    };
    portals.map_err(OpenError::Portals)
}

/// The routes from the spool to these destinations.
fn routes(destinations: Vec<Destination>, spool: &Spool) -> Vec<Route> {
    let route = |(name, upstream, batch, attempts_max): Destination| {
        // Always `Some`: the spool was opened with these names, and each is taken once.
        let reader = spool.reader(&name)?;
        Some(Route { name, upstream, batch, attempts_max, reader })
    };
    destinations.into_iter().filter_map(route).collect()
}

/// The metrics that delivery counts into.
fn meters(metrics: &Metrics) -> Meters {
    Meters {
        delivered: metrics.delivered_events.clone(),
        dead: metrics.dead_events.clone(),
        batches: metrics.batches.clone(),
        lag_seconds: metrics.delivery_lag_seconds.clone(),
    }
}

/// Builds the configured upstreams.
fn build_all(
    upstreams: &[upstream::ValidConfig],
    faults: &Faults,
) -> Result<Vec<Replaceable>, ConfigError> {
    let build =
        |upstream: &upstream::ValidConfig| Replaceable::build(upstream.clone(), faults.clone());
    upstreams.iter().map(build).collect()
}

/// All upstreams, those of the configuration and those of the host, as [`Destination`]s.
fn destinations(
    config: &ValidConfig,
    configured: &[Replaceable],
    own: &[(String, Arc<dyn Upstream>)],
) -> Result<Vec<Destination>, ConfigError> {
    let mut all = Vec::new();
    for (upstream, running) in config.configured(own).iter().zip(configured) {
        let built: Arc<dyn Upstream> = Arc::new(running.clone());
        let batch = upstream.batch.over(&config.batch);
        all.push((upstream.name.clone(), built, batch, upstream.attempts_max));
    }
    for (name, upstream) in own {
        upstream::check_name(name)?;
        if all.iter().any(|(taken, ..)| taken == name) {
            let why = format!("`{name}` is the name of two upstreams");
            return Err(ConfigError::new("upstream.name", why));
        }
        let attempts_max = upstream::ATTEMPTS_MAX_DEFAULT;
        all.push((name.clone(), upstream.clone(), config.batch.clone(), attempts_max));
    }
    Ok(all)
}
