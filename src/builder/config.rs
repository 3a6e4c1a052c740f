//! The configuration of a gate, and its checked form, the only one with which a gate opens.

use crate::config_error::ConfigError;
use crate::event::{self, Rules};
use crate::policy::{portals, privacy};
use crate::request::path::Guard;
use crate::response::answers;
use crate::spool;
use crate::upstream::{self, BatchConfig, Kind};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf, absolute};

/// The folder of the dead letters, below the spool's own.
const DEAD_DIR: &str = "dead";
/// The folder of the progress files of backfills, below the spool's own.
const SENT_DIR: &str = "sent";

/// The configuration of a gate (SPEC 9, without the sections of the ready edge).
///
/// ```
/// use pixelgate::Config;
///
/// let mut config = Config::default();
/// config.events.path = "/pixel/".to_owned();
/// config.spool.linger_ms = 5000;
/// let error = config.validate().err().map(|error| error.to_string());
/// assert_eq!(error.as_deref(), Some("spool.linger_ms: must be 0 to 1000"));
/// ```
#[derive(Debug, Clone, Default)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
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
    /// `[[upstream]]`: where events go. If it is empty, they go into files
    /// ([`Config::upstreams`]), unless the host brings upstreams of its own
    /// ([`Builder::upstream`](crate::Builder::upstream)).
    pub upstream: Vec<upstream::Config>,
}

/// A [`Config`] that [`Config::validate`] has checked. It can be read as a [`Config`] and cannot
/// be changed any more.
///
/// ```
/// use pixelgate::{Config, PixelGate};
///
/// let valid = Config::default().validate()?;
/// assert_eq!(valid.events.path, "/v1/event/");
/// let builder = PixelGate::builder(valid);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ValidConfig {
    pub(super) config: Config,
    pub(super) rules: Rules,
    pub(super) guard: Guard,
    pub(super) list: portals::ValidConfig,
    pub(super) valid_spool: spool::ValidConfig,
    pub(super) destinations: Vec<upstream::ValidConfig>,
}

impl std::ops::Deref for ValidConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

impl ValidConfig {
    /// The upstreams in force, checked: see [`Config::upstreams`].
    pub fn upstreams(&self) -> &[upstream::ValidConfig] {
        &self.destinations
    }
}

impl TryFrom<Config> for ValidConfig {
    type Error = ConfigError;

    fn try_from(config: Config) -> Result<Self, ConfigError> {
        config.validate()
    }
}

impl Config {
    /// Checks every section, without access to disk or network.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        let rules = self.rules()?;
        let guard = self.guard()?;
        let list = self.portals.validate()?;
        let valid_spool = self.spool.validate()?;
        self.batch.validate()?;
        let destinations = upstream::Config::validate_all(&self.upstreams())?;
        self.check_folders()?;
        Ok(ValidConfig { config: self, rules, guard, list, valid_spool, destinations })
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

    /// The folder in which a backfill stores what it has sent.
    pub fn sent_dir(&self) -> PathBuf {
        self.spool.dir.join(SENT_DIR)
    }

    /// Checks that no `file` upstream writes into the spool's folder, or into one that the gate
    /// makes there: the gate removes these, and reads what is in them as its own. Paths are
    /// compared as texts, each made absolute and without its `..`.
    fn check_folders(&self) -> Result<(), ConfigError> {
        let spool = whole(&self.spool.dir);
        for upstream in self.upstreams() {
            #[allow(irrefutable_let_patterns, reason = "without its features there is one kind")]
            let Kind::File(file) = &upstream.kind else { continue };
            let dir = whole(&file.dir);
            let Ok(below) = dir.strip_prefix(&spool) else { continue };
            let is_own =
                |name: &OsStr| name == DEAD_DIR || name == SENT_DIR || spool::is_own_folder(name);
            if below.iter().next().is_none_or(is_own) {
                let reason = "is a folder of the spool, which has other files";
                return Err(ConfigError::new(format!("upstream.{}.dir", upstream.name), reason));
            }
        }
        Ok(())
    }

    fn rules(&self) -> Result<Rules, ConfigError> {
        let is_host_sent = self.upstreams().iter().any(upstream::Config::keeps_host);
        Rules::new(&self.events).map(|rules| rules.with_host(is_host_sent))
    }

    fn guard(&self) -> Result<Guard, ConfigError> {
        let path = &self.events.path;
        Guard::new(path).map_err(|e| ConfigError::new("events.path", e.to_string()))
    }
}

/// The absolute path, without `.` and `..`. Asks no file system, so symbolic links stay.
fn whole(dir: &Path) -> PathBuf {
    // Fails only without a working directory; then no relative path can be opened either.
    let dir = absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let mut whole = PathBuf::new();
    for part in dir.components() {
        match part {
            Component::ParentDir => _ = whole.pop(),
            part => whole.push(part),
        }
    }
    whole
}
