//! From a configuration to an open gate, and back to a closed one.
//!
//! [`Builder::open`] is the one place where the parts meet: it checks every section, opens the
//! portal list and the spool, builds the upstreams and starts delivery.

use crate::clock::{Clock, SystemClock};
use crate::config_error::ConfigError;
use crate::delivery;
use crate::delivery::threads::Delivery;
use crate::delivery::{Meters, Route};
use crate::event::{self, Rules};
use crate::plugin::{PixelGate, Prebuilt, Shared};
use crate::policy::gate::Gate;
use crate::policy::portals;
use crate::policy::portals::Portals;
use crate::policy::privacy;
use crate::request::client::TrustedProxies;
use crate::request::path::Guard;
use crate::response::answer;
use crate::response::answer::Answers;
use crate::server::InFlight;
use crate::spool::{self, Env, Spool};
use crate::telemetry::event_samples::EventSamples;
use crate::telemetry::metrics::Metrics;
use crate::upstream::{self, BatchConfig, Upstream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The folder of the dead letters, below the spool's own.
const DEAD_DIR: &str = "dead";

/// Everything that a gate is told (SPEC 9, without the sections of the ready edge).
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Which requests are events, and their limits.
    pub events: event::Config,
    /// Who may report events.
    pub portals: portals::Config,
    /// What an answer looks like.
    pub response: answer::Config,
    /// What is kept of a person.
    pub privacy: privacy::Config,
    /// Where accepted events wait.
    pub spool: spool::Config,
    /// How events are grouped on their way.
    pub batch: BatchConfig,
    /// Where events go. None: into files below `data/events`, see [`Config::upstreams`].
    pub upstream: Vec<upstream::Config>,
}

/// A [`Config`] that [`Config::validate`] has checked. It can be read as a [`Config`] and cannot
/// be changed any more.
pub struct ValidConfig {
    config: Config,
    rules: Rules,
    guard: Guard,
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
    /// A section's value cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The portal list cannot be read.
    #[error(transparent)]
    Portals(portals::OpenError),
    /// The spool cannot be opened.
    #[error(transparent)]
    Spool(spool::OpenError),
    /// Pingora refuses a header of the prebuilt answers.
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
        self.portals.validate()?;
        self.spool.validate()?;
        self.batch.validate()?;
        upstream::Config::validate_all(&self.upstream)?;
        Ok(ValidConfig { config: self, rules, guard })
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
        let told =
            |e: crate::request::path::PathError| ConfigError::new("events.path", e.to_string());
        Guard::new(&self.events.path).map_err(told)
    }
}

/// An upstream, its name, and when its batches close.
type Destination = (String, Arc<dyn Upstream>, BatchConfig);

/// Opens a gate.
pub struct Builder {
    config: Result<ValidConfig, ConfigError>,
    state_dir: PathBuf,
    trusted: TrustedProxies,
    own: Vec<(String, Arc<dyn Upstream>)>,
    company: Option<InFlight>,
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
            company: None,
            clock: Arc::new(SystemClock),
        }
    }

    /// Where small state is kept across restarts, such as the last good portal list. Default
    /// `data`.
    pub fn state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = dir.to_owned();
        self
    }

    /// Whose word on the client's address is taken. Default: nobody's.
    pub fn trusted_proxies(mut self, trusted: TrustedProxies) -> Self {
        self.trusted = trusted;
        self
    }

    /// What counts the requests and connections on which events come, so that a group's sync is not
    /// held up (`spool.linger_ms`) for company when everyone who could be company is in it. A
    /// request must count before it is judged. Default: nobody knows, and each group lingers.
    pub fn company(mut self, in_flight: InFlight) -> Self {
        self.company = Some(in_flight);
        self
    }

    /// Adds an upstream of the host's own beside the configured ones. Its name must not change
    /// between starts: it names the cursor.
    pub fn upstream(mut self, name: &str, upstream: Arc<dyn Upstream>) -> Self {
        self.own.push((name.to_owned(), upstream));
        self
    }

    /// The judge alone, as `explain` asks it: nothing is opened but the portal list.
    pub fn gate(self) -> Result<Gate, OpenError> {
        let config = self.config?;
        let portals = Portals::open(&config.portals, &self.state_dir, self.clock.clone());
        Ok(config.into_gate(portals.map_err(OpenError::Portals)?, self.clock))
    }

    /// Opens everything and starts delivery.
    ///
    /// Starts threads, so a host that daemonizes must do that first.
    ///
    /// # Errors
    ///
    /// The first part that cannot be used. What a spool folder holds is never a reason: damaged
    /// records are set aside and counted.
    pub fn open(self) -> Result<PixelGate, OpenError> {
        let config = self.config?;
        let portals = Portals::open(&config.portals, &self.state_dir, self.clock.clone());
        let portals = portals.map_err(OpenError::Portals)?;
        let metrics = Metrics::new();
        let answers = Answers::build(&config.response, &config.events.methods, Prebuilt::new)
            .map_err(OpenError::Answers)?;
        let routes = destinations(&config, &self.own)?;
        let names: Vec<String> = routes.iter().map(|(name, ..)| name.clone()).collect();
        let env = Env {
            clock: self.clock.clone(),
            commit_seconds: Some(metrics.spool_commit_seconds.clone()),
            ..Env::system()
        };
        let spool = Spool::open(&config.spool, &names, env).map_err(OpenError::Spool)?;
        let options = delivery::Options {
            clock: self.clock.clone(),
            meters: Meters {
                delivered: metrics.delivered_events.clone(),
                dead: metrics.dead_events.clone(),
                batches: metrics.batches.clone(),
                lag_seconds: metrics.delivery_lag_seconds.clone(),
            },
            ..delivery::Options::new(config.dead_dir())
        };
        let route = |(name, upstream, batch): Destination| {
            // The spool was opened with exactly these names, and each is asked for once.
            let reader = spool.reader(&name)?;
            Some(Route { name, upstream, batch, reader })
        };
        let routes = routes.into_iter().filter_map(route).collect();
        let delivery =
            Delivery::start(routes, options, portals.clone()).map_err(OpenError::Threads)?;
        let trusted = self.trusted;
        let (response, methods) = (config.response.clone(), config.events.methods.clone());
        let upstreams = config.upstream.clone();
        Ok(PixelGate::from_shared(Shared {
            gate: config.into_gate(portals, self.clock.clone()),
            spool,
            metrics,
            glimpses: EventSamples::new(self.clock.clone()),
            answers,
            response,
            methods,
            trusted,
            delivery,
            company: self.company,
            upstreams,
        }))
    }
}

impl ValidConfig {
    fn into_gate(self, portals: Portals, clock: Arc<dyn Clock>) -> Gate {
        Gate::new(self.guard, self.rules, self.config.privacy, portals, clock)
    }
}

/// Every upstream, configured or the host's own, with its name and its batches.
fn destinations(
    config: &Config,
    own: &[(String, Arc<dyn Upstream>)],
) -> Result<Vec<Destination>, ConfigError> {
    let mut all = Vec::new();
    for upstream in config.upstreams() {
        let built = upstream.build()?;
        all.push((upstream.name.clone(), built, upstream.batch.over(&config.batch)));
    }
    for (name, upstream) in own {
        if all.iter().any(|(taken, ..)| taken == name) {
            return Err(ConfigError::new("upstream.name", format!("`{name}` is taken")));
        }
        all.push((name.clone(), upstream.clone(), config.batch.clone()));
    }
    Ok(all)
}

/// Checks a configuration and all that it names, as `pixelgate check` does, and says what is in
/// force. Opens no spool.
pub fn check(config: &ValidConfig, state_dir: &Path) -> Result<String, OpenError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let portals = Portals::open(&config.portals, state_dir, clock).map_err(OpenError::Portals)?;
    let mut lines = vec![portals.summary().to_string()];
    for upstream in config.upstreams() {
        // A file upstream would make its folder; every other only reads what it needs.
        if !matches!(upstream.kind, upstream::Kind::File(_)) {
            upstream.build()?;
        }
        lines.push(format!("upstream {}: {}", upstream.name, upstream.kind_name()));
    }
    lines.push(format!("spool: {}", config.spool.dir.display()));
    lines.push("configuration is valid".to_owned());
    Ok(lines.join("\n"))
}
