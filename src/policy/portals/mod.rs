//! Portal policy: which portals' events are taken, and what holds for each (SPEC 5).
//!
//! [`Portals`] answers from a list in memory that is swapped whole. Asking takes no lock and
//! allocates nothing; reading a new list happens elsewhere ([`Portals::watch`]), and a source that
//! fails, in part or whole, changes nothing. This module knows portals and event names only: it
//! sees no request, and counts nothing but its own failures.

mod cache;
mod config;
mod document;
mod judge;
mod list;
mod parse;
mod parse_toml;
mod pattern;
mod rate;
mod refresh;
mod rules;
mod set;
mod source_file;
mod source_url;
mod summary;

use crate::config_error::ConfigError;
use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;

use crate::clock::Clock;
use config::Origin;
pub use config::{Config, Mode, REFRESH_SECONDS_MAX};
use judge::Moment;
pub use judge::{Cause, Policy, PortalDecision, PortalVerdict, RateLimited};
use list::List;
pub use parse::{Format, LIST_BYTES_MAX};
pub use parse_toml::RULES_BYTES_MAX;
pub use pattern::PATTERN_CHARS_MAX;
use refresh::{Health, Source};
pub use refresh::{RefreshFailure, RefreshMode, Refreshed, Status};
pub use rules::{RATE_MAX, RULE_ENTRIES_MAX};
use source_file::FileSource;
use source_url::UrlSource;
pub use summary::{EXPIRES_SOON_DAYS, Summary};

/// The portal policy. A clone is another handle to the same.
#[derive(Clone)]
pub struct Portals {
    shared: Arc<Shared>,
}

struct Shared {
    mode: Mode,
    refresh: Duration,
    /// None: however old.
    stale_after: Option<Duration>,
    clock: Arc<dyn Clock>,
    /// None until a list has been loaded.
    current: ArcSwapOption<List>,
    /// When the source was last known to have the list in use: milliseconds of the monotonic
    /// clock, negative for a time before it began.
    confirmed_ms: AtomicI64,
    source: Arc<tokio::sync::Mutex<Source>>,
    health: std::sync::Mutex<Health>,
    /// Somebody wants the source read at once.
    reload: tokio::sync::Notify,
}

/// Why there is no policy to start with.
#[derive(Debug)]
pub enum OpenError {
    /// A value in `[portals]` cannot be used.
    Config(ConfigError),
    /// The file cannot be read or is not a list. Names the file and, where there is one, the line.
    Source(String),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Config(error) => error.fmt(f),
            OpenError::Source(what) => write!(f, "portals.source: {what}"),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Config(error) => Some(error),
            OpenError::Source(_) => None,
        }
    }
}

impl Portals {
    /// Checks the configuration and reads the file, or the last good copy of a URL. Needs no
    /// runtime. Until a URL's first list is loaded, judging answers `overloaded`.
    ///
    /// `state_dir` keeps the copy; it is made when there is something to keep.
    pub fn open(
        config: &Config,
        state_dir: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Portals, OpenError> {
        config.validate().map_err(OpenError::Config)?;
        let (source, list, age) = match config.origin().map_err(OpenError::Config)? {
            Origin::Nowhere => (Source::Fixed, None, Duration::ZERO),
            Origin::File { path, format } => {
                let opened = FileSource::open(path, format, &clock);
                let (source, list) = opened.map_err(OpenError::Source)?;
                (Source::File(source), Some(list), Duration::ZERO)
            }
            Origin::Url(url) => {
                let opened = UrlSource::open(url, config, state_dir, &clock);
                let (source, kept) = opened.map_err(OpenError::Config)?;
                let (list, age) = kept.unzip();
                (Source::Url(source), list, age.unwrap_or_default())
            }
        };
        let portals = Portals::new(config, source, list, clock);
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        portals.shared.confirmed_ms.fetch_sub(age_ms, Ordering::Relaxed);
        Ok(portals)
    }

    /// A policy from the text of a list, for ever the same: for tests, and for a host that has
    /// its list from elsewhere.
    pub fn fixed(
        list: &str,
        format: Format,
        mode: Mode,
        clock: Arc<dyn Clock>,
    ) -> Result<Portals, OpenError> {
        let list = List::read(format, &mut io::Cursor::new(list.as_bytes()), &clock)
            .map_err(|error| OpenError::Source(error.to_string()))?;
        let config = Config { mode, ..Config::default() };
        Ok(Portals::new(&config, Source::Fixed, Some(list), clock))
    }

    fn new(config: &Config, source: Source, list: Option<List>, clock: Arc<dyn Clock>) -> Portals {
        let loaded_at_ms = list.as_ref().map(|_| clock.unix_ms());
        let stale_after = config.stale_seconds_max;
        let shared = Shared {
            mode: config.mode,
            refresh: Duration::from_secs(config.refresh_seconds),
            stale_after: (stale_after > 0).then(|| Duration::from_secs(stale_after)),
            confirmed_ms: AtomicI64::new(monotonic_ms(&*clock)),
            current: ArcSwapOption::from_pointee(list),
            clock,
            source: Arc::new(tokio::sync::Mutex::new(source)),
            health: std::sync::Mutex::new(Health { loaded_at_ms, ..Health::default() }),
            reload: tokio::sync::Notify::new(),
        };
        Portals { shared: Arc::new(shared) }
    }

    /// Whether a portal's event of this name is taken: `overloaded` without a list to go by,
    /// then `portal_not_allowed`, then `event_not_allowed`. Takes no lock, allocates nothing.
    ///
    /// The rate is asked apart, by [`Policy::take_rate`], since other checks come between.
    #[inline]
    pub fn judge(&self, portal: u64, event_name: &str) -> PortalDecision {
        let shared = &*self.shared;
        let (mode, stale) = (shared.mode, shared.is_stale());
        let moment = Moment { mode, stale, clock: &*shared.clock };
        judge::judge(shared.current.load(), portal, event_name, &moment)
    }

    /// What is in the list, for people.
    pub fn summary(&self) -> Summary {
        let now = self.shared.clock.unix_ms();
        Summary::of(self.shared.current.load().as_deref(), self.shared.mode, now)
    }
}

impl Shared {
    fn is_stale(&self) -> bool {
        let Some(after) = self.stale_after else {
            return false;
        };
        let confirmed = self.confirmed_ms.load(Ordering::Relaxed);
        let age = monotonic_ms(&*self.clock).saturating_sub(confirmed);
        u128::try_from(age).is_ok_and(|age| age > after.as_millis())
    }
}

fn monotonic_ms(clock: &dyn Clock) -> i64 {
    i64::try_from(clock.monotonic().as_millis()).unwrap_or(i64::MAX)
}

impl fmt::Debug for Portals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portals").field("status", &self.status()).finish_non_exhaustive()
    }
}
