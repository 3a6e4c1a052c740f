//! [`Portals`], the handle that judges portals' events and keeps their list up to date.

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
use parking_lot::Mutex;
use tokio::sync::watch;

use super::config::{Config, Mode, Origin};
use super::format::Format;
use super::judge;
use super::judge::{Moment, PortalDecision};
use super::list::List;
use super::open_error::OpenError;
use super::refresh;
use super::refresh::{RefreshMode, Refreshed};
use super::source::Source;
use super::source_file::{FileSource, LOOKS_PER_REFRESH};
use super::source_url::UrlSource;
use super::state::{PortalsState, monotonic_ms};
use super::status::{Health, Status};
use super::summary::Summary;
use crate::clock::Clock;

/// The portal policy. A clone is another handle to the same policy.
#[derive(Clone)]
pub struct Portals {
    shared: Arc<PortalsState>,
}

impl Portals {
    /// Checks the configuration and reads the file, or the cached list of a URL. Needs no
    /// runtime. Until a URL's first list is loaded, judging answers `overloaded`.
    ///
    /// `state_dir` holds the cache; it is created when a list is first cached.
    ///
    /// # Errors
    ///
    /// A value in `config` cannot be used, or the file cannot be read or is not a list.
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
                let (source, cached) = opened.map_err(OpenError::Config)?;
                let (list, age) = cached.unzip();
                (Source::Url(source), list, age.unwrap_or_default())
            }
        };
        let portals = Portals::new(config, source, list, clock);
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        portals.shared.confirmed_ms.fetch_sub(age_ms, Ordering::Relaxed);
        Ok(portals)
    }

    /// A policy with a fixed list, from the list's text: for tests, and for a host that has its
    /// list from elsewhere.
    ///
    /// # Errors
    ///
    /// The text is not a list of this format.
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
        let shared = PortalsState {
            mode: config.mode,
            refresh: Duration::from_secs(config.refresh_seconds),
            stale_after: (stale_after > 0).then(|| Duration::from_secs(stale_after)),
            confirmed_ms: AtomicI64::new(monotonic_ms(&*clock)),
            current: ArcSwapOption::from_pointee(list),
            clock,
            source: Arc::new(tokio::sync::Mutex::new(source)),
            health: Mutex::new(Health { loaded_at_ms, ..Health::default() }),
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

    /// Counts of what is in the list, for people.
    pub fn summary(&self) -> Summary {
        let now = self.shared.clock.unix_ms();
        Summary::of(self.shared.current.load().as_deref(), self.shared.mode, now)
    }

    /// The state of the policy.
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let list = shared.current.load();
        let health = shared.health.lock();
        Status {
            count: list.as_ref().map_or(0, |list| list.len()),
            mode: shared.mode,
            loaded_at_ms: health.loaded_at_ms,
            last_failure: health.last_failure.clone(),
            failures: health.failures,
            fresh: !health.failing && (list.is_some() || shared.mode == Mode::Off),
            stale: list.is_some() && shared.is_stale(),
        }
    }

    /// Asks [`Portals::watch`] to read the source at once (SIGHUP). Does not wait for it.
    pub fn reload(&self) {
        self.shared.reload.notify_one();
    }

    /// Looks at the source repeatedly, until `shutdown` is true or its sender is dropped.
    pub async fn watch(self, mut shutdown: watch::Receiver<bool>) {
        // The first look is at once: a URL has not been asked yet.
        let mut pause = Duration::ZERO;
        loop {
            let mode = tokio::select! {
                _ = shutdown.wait_for(|&stop| stop) => return,
                () = self.shared.reload.notified() => RefreshMode::AtOnce,
                () = tokio::time::sleep(pause) => RefreshMode::Routine,
            };
            tokio::select! {
                _ = shutdown.wait_for(|&stop| stop) => return,
                refreshed = self.refresh(mode) => log::trace!("portals: {refreshed:?}"),
            }
            pause = self.pause().await;
        }
    }

    /// Looks at the source once, as [`Portals::watch`] does repeatedly. Needs a tokio runtime.
    pub async fn refresh(&self, mode: RefreshMode) -> Refreshed {
        let source = Arc::clone(&self.shared.source).lock_owned().await;
        let shared = Arc::clone(&self.shared);
        if matches!(*source, Source::Url(_)) {
            return refresh::fetch(source, shared).await;
        }
        // On a blocking thread: a file system may hang, and a million ids take a while to read.
        let look = tokio::task::spawn_blocking(move || shared.look_at_file(source, mode));
        look.await.unwrap_or(Refreshed::Failed)
    }

    /// How long to wait until the next look.
    async fn pause(&self) -> Duration {
        match *self.shared.source.lock().await {
            Source::Fixed | Source::File(_) => self.shared.refresh / LOOKS_PER_REFRESH,
            Source::Url(_) => self.shared.refresh.mul_f64(rand::random_range(0.5..1.0)),
        }
    }
}

impl fmt::Debug for Portals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portals").field("status", &self.status()).finish_non_exhaustive()
    }
}
