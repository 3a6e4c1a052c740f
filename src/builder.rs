//! From a configuration to an open gate.
//!
//! [`Builder::open`] is the one place where the rooms are put together: it checks every section,
//! opens the portal list and the spool, builds the upstreams and starts delivery.

use crate::clock::{Clock, SystemClock};
use crate::config_error::ConfigError;
use crate::delivery;
use crate::delivery::threads::Delivery;
use crate::delivery::{Meters, Route};
use crate::event::{self, Rules};
use crate::plugin::{GateState, PixelGate, PrebuiltResponse};
use crate::policy::gate::Gate;
use crate::policy::portals;
use crate::policy::portals::{Bounds, Portals};
use crate::policy::privacy;
use crate::request::client::TrustedProxies;
use crate::request::path::Guard;
use crate::response::answers;
use crate::response::answers::Answers;
use crate::spool::{self, Env, Routing, Spool};
use crate::telemetry::event_samples::EventSamples;
use crate::telemetry::faults::Faults;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{self, BatchConfig, Upstream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of the dead letters, below the spool's own.
const DEAD_DIR: &str = "dead";

/// The configuration of a gate (SPEC 9, without the sections of the ready edge).
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// `[events]`: the event path, its methods and the limits of a request.
    pub events: event::Config,
    /// `[portals]`: the source of the portal list, and how strictly it is applied.
    pub portals: portals::Config,
    /// `[response]`: bodies and headers of the answers.
    pub response: answers::Config,
    /// `[privacy]`: which personal data an event keeps.
    pub privacy: privacy::Config,
    /// `[spool]`: the folder in which accepted events wait, its size and durability.
    pub spool: spool::Config,
    /// `[batch]`: defaults for the batches of every upstream.
    pub batch: BatchConfig,
    /// `[[upstream]]`: where events go. Empty: into files, see [`Config::upstreams`].
    pub upstream: Vec<upstream::Config>,
}

/// A [`Config`] that [`Config::validate`] has checked. It can be read as a [`Config`] and cannot
/// be changed any more.
pub struct ValidConfig {
    config: Config,
    rules: Rules,
    guard: Guard,
    list: portals::ValidConfig,
    /// The upstreams in force.
    destinations: Vec<upstream::ValidConfig>,
}

impl std::ops::Deref for ValidConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl TryFrom<Config> for ValidConfig {
    type Error = ConfigError;

    fn try_from(config: Config) -> Result<Self, ConfigError> {
        config.validate()
    }
}

/// Why a gate did not open. The causes, down to the system's error, are its sources.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A section holds a value that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The portal list cannot be read.
    #[error(transparent)]
    Portals(portals::OpenError),
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(spool::OpenError),
    /// Pingora refuses a prebuilt answer.
    #[error("the answers cannot be built")]
    Answers(#[source] Box<pingora::Error>),
    /// The delivery threads cannot be started.
    #[error("the delivery threads cannot be started")]
    Threads(#[source] std::io::Error),
}

impl Config {
    /// Checks every section by itself, without touching disk or network.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let rules = self.rules()?;
        let guard = self.guard()?;
        let list = self.portals.validate()?;
        self.spool.validate()?;
        self.batch.validate()?;
        let destinations = upstream::Config::validate_all(&self.upstreams())?;
        Ok(ValidConfig { config: self, rules, guard, list, destinations })
    }

    /// The upstreams in force: those configured, or the embedded default.
    pub fn upstreams(&self) -> Vec<upstream::Config> {
        match self.upstream.as_slice() {
            [] => vec![upstream::Config::embedded()],
            all => all.to_vec(),
        }
    }

    /// The folder of the dead letters.
    pub fn dead_dir(&self) -> PathBuf {
        self.spool.dir.join(DEAD_DIR)
    }

    fn rules(&self) -> Result<Rules, ConfigError> {
        Rules::new(&self.events)
    }

    fn guard(&self) -> Result<Guard, ConfigError> {
        let path = &self.events.path;
        Guard::new(path).map_err(|e| ConfigError::new("events.path", e.to_string()))
    }
}

/// An upstream with its name, the limits of its batches and its `attempts_max`.
type Destination = (String, Arc<dyn Upstream>, BatchConfig, u32);

/// Collects what a gate needs and opens it ([`Builder::open`]).
pub struct Builder {
    config: Result<ValidConfig, ConfigError>,
    state_dir: PathBuf,
    trusted: TrustedProxies,
    own: Vec<(String, Arc<dyn Upstream>)>,
    in_flight: Option<InFlight>,
    clock: Arc<dyn Clock>,
}

impl PixelGate {
    /// Begins a gate with this configuration: a [`Config`], which is checked here and whose errors
    /// the gate's opening returns, or a [`ValidConfig`].
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
        }
    }

    /// The folder for small state that survives a restart, such as the last good portal list.
    /// Default: `data`.
    pub fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = dir.to_owned();
        self
    }

    /// The proxies whose headers are trusted to name the client's address. Default: none.
    pub fn trusted_proxies(mut self, trusted: TrustedProxies) -> Self {
        self.trusted = trusted;
        self
    }

    /// Counters of the requests and connections on which events arrive. When every request in
    /// flight is already in the group that waits for its sync, the group is synced at once instead
    /// of after `spool.linger_ms`. A request must be counted before it is judged. Default: none,
    /// and every group waits the full linger.
    pub fn in_flight(mut self, in_flight: InFlight) -> Self {
        self.in_flight = Some(in_flight);
        self
    }

    /// Adds an upstream of the host's own to the configured ones. Its name must stay the same
    /// between starts, because the spool stores the upstream's position under it.
    pub fn upstream(mut self, name: &str, upstream: Arc<dyn Upstream>) -> Self {
        self.own.push((name.to_owned(), upstream));
        self
    }

    /// The judge alone, for `explain`. Opens the portal list and nothing else.
    ///
    /// # Errors
    ///
    /// The portal list cannot be read, or `events` holds a value that cannot be used.
    pub fn gate(self) -> Result<Gate, OpenError> {
        let config = self.config?;
        let list = config.list(&self.own);
        let portals = Portals::open(&list, &self.state_dir, self.clock.clone());
        Ok(config.into_gate(portals.map_err(OpenError::Portals)?, self.clock))
    }

    /// Opens the portal list and the spool, and starts delivery.
    ///
    /// This starts threads, so a host that daemonizes must do so before.
    ///
    /// # Errors
    ///
    /// The first part that cannot be used. Damaged records in the spool are no error: they are
    /// moved to quarantine and counted.
    pub fn open(self) -> Result<PixelGate, OpenError> {
        let config = self.config?;
        let list = config.list(&self.own);
        let portals = Portals::open(&list, &self.state_dir, self.clock.clone());
        let portals = portals.map_err(OpenError::Portals)?;
        let metrics = Metrics::new();
        let faults = Faults::new(self.clock.clone(), metrics.faults.clone());
        let answers =
            Answers::build(&config.response, &config.events.methods, PrebuiltResponse::new)
                .map_err(OpenError::Answers)?;
        let routes = destinations(&config, &self.own)?;
        let names: Vec<String> = routes.iter().map(|(name, ..)| name.clone()).collect();
        let env = Env {
            clock: self.clock.clone(),
            commit_seconds: Some(metrics.spool_commit_seconds.clone()),
            faults: faults.clone(),
            routing: Routing { is_routed: event::is_routed, names: event::names_upstream },
            ..Env::system()
        };
        let spool = Spool::open(&config.spool, &names, env).map_err(OpenError::Spool)?;
        let options = delivery::Options {
            clock: self.clock.clone(),
            faults: faults.clone(),
            meters: Meters {
                delivered: metrics.delivered_events.clone(),
                dead: metrics.dead_events.clone(),
                batches: metrics.batches.clone(),
                lag_seconds: metrics.delivery_lag_seconds.clone(),
            },
            ..delivery::Options::new(config.dead_dir())
        };
        let route = |(name, upstream, batch, attempts_max): Destination| {
            // Always `Some`: the spool was opened with these names, and each is taken once.
            let reader = spool.reader(&name)?;
            Some(Route { name, upstream, batch, attempts_max, reader })
        };
        let routes = routes.into_iter().filter_map(route).collect();
        let delivery =
            Delivery::start(routes, options, portals.clone()).map_err(OpenError::Threads)?;
        let trusted = self.trusted;
        let (response, methods) = (config.response.clone(), config.events.methods.clone());
        let upstreams = config.upstream.clone();
        Ok(PixelGate::from_state(GateState {
            gate: config.into_gate(portals, self.clock.clone()),
            spool,
            metrics,
            faults,
            event_samples: EventSamples::new(self.clock.clone()),
            answers,
            response,
            methods,
            trusted,
            delivery,
            in_flight: self.in_flight,
            upstreams,
        }))
    }
}

impl ValidConfig {
    /// The portal list's configuration, with what its rules must fit.
    fn list(&self, own: &[(String, Arc<dyn Upstream>)]) -> portals::ValidConfig {
        let configured = self.destinations.iter().map(|upstream| upstream.name.clone());
        let upstreams = configured.chain(own.iter().map(|(name, _)| name.clone())).collect();
        self.list.clone().bounded(Bounds { upstreams, privacy: self.privacy })
    }

    fn into_gate(self, portals: Portals, clock: Arc<dyn Clock>) -> Gate {
        Gate::new(self.guard, self.rules, self.config.privacy, portals, clock)
    }
}

/// Every upstream, configured or the host's own, with its name and its batches.
fn destinations(
    config: &ValidConfig,
    own: &[(String, Arc<dyn Upstream>)],
) -> Result<Vec<Destination>, ConfigError> {
    let mut all = Vec::new();
    for upstream in &config.destinations {
        let built = upstream.build()?;
        let batch = upstream.batch.over(&config.batch);
        all.push((upstream.name.clone(), built, batch, upstream.attempts_max));
    }
    for (name, upstream) in own {
        if all.iter().any(|(taken, ..)| taken == name) {
            return Err(ConfigError::new("upstream.name", format!("`{name}` is taken")));
        }
        let attempts_max = upstream::ATTEMPTS_MAX_DEFAULT;
        all.push((name.clone(), upstream.clone(), config.batch.clone(), attempts_max));
    }
    Ok(all)
}

/// Checks a configuration and all that it names, as `pixelgate check` does, and says what is in
/// force. Opens no spool.
pub fn check(config: &ValidConfig, state_dir: &Path) -> Result<String, OpenError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let portals = Portals::open(&config.list(&[]), state_dir, clock).map_err(OpenError::Portals)?;
    let mut lines = vec![portals.summary().to_string()];
    for upstream in &config.destinations {
        // Building a file upstream would create its folder; the other kinds only read files.
        if !matches!(upstream.kind, upstream::Kind::File(_)) {
            upstream.build()?;
        }
        lines.push(format!("upstream {}: {}", upstream.name, upstream.kind_name()));
    }
    lines.push(format!("spool: {}", config.spool.dir.display()));
    lines.push("configuration is valid".to_owned());
    Ok(lines.join("\n"))
}
