//! [`Portals`], the handle to the portal policy: it judges events by the list in use and keeps the
//! list up to date (SPEC 5).

use std::{
    fmt, io,
    path::Path,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::watch;

use super::config::{Location, Mode, REFRESH_SECONDS_MAX, ValidConfig};
use super::format::Format;
use super::judge;
use super::judge::{Moment, PortalDecision};
use super::list::List;
use super::look::{FETCH_SECONDS_MAX, FILE_SECONDS_MAX};
use super::open_error::OpenError;
use super::quota::AcceptedByDay;
use super::refresh;
use super::refresh::{RefreshMode, Refreshed};
use super::source::Source;
use super::source_file::{FileSource, LOOKS_PER_REFRESH};
use super::source_url::UrlSource;
use super::state::{PortalsState, monotonic_ms};
use super::status::{Health, Status};
use super::summary::Summary;
use super::terms::{Bounds, Terms};
use crate::clock::Clock;

/// The portal policy. A clone is another handle to the same policy.
#[derive(Clone)]
pub struct Portals {
    shared: Arc<PortalsState>,
}

impl Portals {
    /// Opens the policy with the list in the file, or with the cached list of the URL. Needs no
    /// runtime. Until the first list of a URL is loaded, events are rejected as `overloaded`.
    ///
    /// `state_dir` is the folder of the cache. It is created when a list is first cached.
    ///
    /// # Errors
    ///
    /// The file cannot be read or is not a list.
    pub fn open(
        config: &ValidConfig,
        state_dir: &Path,
        clock: Arc<dyn Clock>,
    ) -> Result<Portals, OpenError> {
        let terms = Arc::new(Terms { bounds: config.bounds.clone(), clock });
        let (source, list, age) = match config.location.clone() {
            Location::None => (Source::Fixed, None, Duration::ZERO),
            Location::File { path, format } => {
                let (source, list) = FileSource::open(path, format, &terms).map_err(OpenError)?;
                (Source::File(source), Some(list), Duration::ZERO)
            }
            Location::Url { url, headers, proxy } => {
                let opened = UrlSource::open(url, headers, proxy, state_dir, &terms);
                let (source, cached) = opened?;
                let (list, age) = cached.unzip();
                (Source::Url(source), list, age.unwrap_or_default())
            }
        };
        let portals = Portals::new(config, source, list, terms);
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        portals.shared.confirmed_ms.fetch_sub(age_ms, Ordering::Relaxed);
        Ok(portals)
    }

    /// A policy whose list never changes, made from the text of the list. For tests.
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
        let terms = Arc::new(Terms { bounds: Bounds::default(), clock });
        let list = read_text(list, format, &terms)?;
        let config = ValidConfig {
            location: Location::None,
            mode,
            refresh: Duration::from_secs(REFRESH_SECONDS_MAX),
            stale_after: None,
            bounds: Bounds::default(),
        };
        Ok(Portals::new(&config, Source::Fixed, Some(list), terms))
    }

    /// A policy whose lists come from the host: the first one here, later ones by [`Portals::put`].
    /// `portals.source` and `portals.refresh_seconds` are not used.
    ///
    /// # Errors
    ///
    /// The text is not a list of this format.
    pub fn from_host(
        list: &str,
        format: Format,
        config: &ValidConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Portals, OpenError> {
        let terms = Arc::new(Terms { bounds: config.bounds.clone(), clock });
        let list = read_text(list, format, &terms)?;
        let config = ValidConfig { location: Location::None, ..config.clone() };
        Ok(Portals::new(&config, Source::Host, Some(list), terms))
    }

    /// Puts a list of the host in force. It replaces the old list at once and as a whole, and
    /// refuses or delays no request. Blocks while it reads the list, and for up to 0.1 s more until
    /// requests have released the old list.
    ///
    /// # Errors
    ///
    /// The text is not a list in this format, which counts as a failed refresh; or the lists of
    /// this policy do not come from the host. The list in force stays.
    pub fn put(&self, list: &str, format: Format) -> Result<(), OpenError> {
        if !self.shared.is_hosts {
            return Err(OpenError("the gate was opened without a list of the host".to_owned()));
        }
        match read_text(list, format, &self.shared.terms) {
            Ok(list) => self.shared.put(list),
            Err(error) => {
                self.shared.fail(error.0.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    fn new(config: &ValidConfig, source: Source, list: Option<List>, terms: Arc<Terms>) -> Portals {
        let loaded_at_ms = list.as_ref().map(|_| terms.clock.unix_ms());
        // The list from a URL is also written to a file.
        let seconds = match config.location {
            Location::None | Location::File { .. } => FILE_SECONDS_MAX,
            Location::Url { .. } => FETCH_SECONDS_MAX + FILE_SECONDS_MAX,
        };
        let shared = PortalsState {
            mode: config.mode,
            refresh: config.refresh,
            stale_after: config.stale_after,
            confirmed_ms: AtomicI64::new(monotonic_ms(&*terms.clock)),
            current: ArcSwapOption::from_pointee(list),
            terms,
            is_hosts: matches!(source, Source::Host),
            source: Arc::new(tokio::sync::Mutex::new(source)),
            health: Mutex::new(Health { loaded_at_ms, ..Health::default() }),
            source_name: config.location.name(),
            look_max: Duration::from_secs(seconds),
            accepted: OnceLock::new(),
            reload: tokio::sync::Notify::new(),
        };
        Portals { shared: Arc::new(shared) }
    }

    /// Whether both are handles to the same policy.
    pub fn is_same(&self, other: &Portals) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Takes over from an earlier policy the state of each portal's rate and quota. Until the first
    /// list of a URL is loaded, takes over the earlier list as well.
    pub fn succeed(&self, earlier: &Portals) {
        let (own, earlier) = (&*self.shared, &*earlier.shared);
        if let Some(accepted) = earlier.accepted.get() {
            self.count_by(Arc::clone(accepted));
        }
        let Some(list) = earlier.current.load_full() else { return };
        if let Some(new) = &*own.current.load() {
            return new.carry(&list);
        }
        // Only a URL may still be without a list. The lock is free, because `watch` has not begun.
        if !matches!(own.source.try_lock().as_deref(), Ok(Source::Url(_))) {
            return;
        }
        own.confirmed_ms.store(earlier.confirmed_ms.load(Ordering::Relaxed), Ordering::Relaxed);
        own.health.lock().loaded_at_ms = earlier.health.lock().loaded_at_ms;
        own.current.store(Some(list));
    }

    /// Sets the source of the counts of accepted events by day, so that quotas hold over restarts.
    /// Only the first call has an effect.
    pub fn count_by(&self, accepted: Arc<dyn AcceptedByDay>) {
        // Fails if a source is set already, which is the same one then.
        _ = self.shared.accepted.set(accepted);
        self.raise_quotas();
    }

    fn raise_quotas(&self) {
        if let (Some(list), Some(accepted)) =
            (self.shared.current.load_full(), self.shared.accepted.get())
        {
            list.raise_quotas(&**accepted);
        }
    }

    /// Returns an event to the portal's quota: the judge has counted it, but the spool did not take
    /// it.
    #[cold]
    pub fn give_back(&self, portal: u64) {
        let list = self.shared.current.load();
        if self.shared.mode == Mode::Enforce
            && let Some(list) = &*list
            && let Some(entry) = list.find(portal)
        {
            list.give_back(entry);
        }
    }

    /// A portal's quota of a day and the part of it that is used, both in events. `None`: the
    /// portal has no quota.
    pub fn quota_used(&self, portal: u64) -> Option<(u32, u64)> {
        let list = self.shared.current.load();
        list.as_ref()?.quota_used(portal, self.shared.accepted.get().map(|accepted| &**accepted))
    }

    /// Whether a portal's event of this name is accepted. Checks in this order for `overloaded` (no
    /// list, or a list that is too old), `portal_not_allowed` and `event_not_allowed`. Takes no
    /// lock and allocates nothing.
    ///
    /// The rate is not checked here but by [`Policy::take_rate`], because other checks come before
    /// it.
    #[inline]
    pub fn judge(&self, portal: u64, event_name: &str) -> PortalDecision {
        let shared = &*self.shared;
        let (mode, stale) = (shared.mode, shared.is_stale());
        let moment = Moment { mode, stale, clock: &*shared.terms.clock };
        judge::judge(shared.current.load(), portal, event_name, &moment)
    }

    /// Whether the list in force has this portal, expired or not.
    pub fn lists(&self, portal: u64) -> bool {
        self.shared.current.load().as_ref().is_some_and(|list| list.find(portal).is_some())
    }

    /// The names of all upstreams, in the order of the configuration. An event without a route goes
    /// to all of them.
    pub fn upstreams(&self) -> &[String] {
        &self.shared.terms.bounds.upstreams
    }

    /// The summary of the list that `pixelgate check` prints.
    pub fn summary(&self) -> Summary {
        let now = self.shared.terms.clock.unix_ms();
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
            retry_at_ms: health.retry_at_ms,
            unstored: health.unstored.clone(),
        }
    }

    /// Asks [`Portals::watch`] to read the source at once (SIGHUP). Does not wait for it.
    pub fn reload(&self) {
        self.shared.reload.notify_one();
    }

    /// Looks at the source repeatedly, until `shutdown` is true or its sender is dropped.
    pub async fn watch(self, mut shutdown: watch::Receiver<bool>) {
        let mut takeovers = None;
        // No pause before the first look, because a URL was not read yet.
        let mut pause = Duration::ZERO;
        loop {
            let mode = tokio::select! {
                _ = shutdown.wait_for(|&stop| stop) => return,
                () = self.shared.reload.notified() => RefreshMode::AtOnce,
                () = tokio::time::sleep(pause) => RefreshMode::Routine,
            };
            tokio::select! {
                _ = shutdown.wait_for(|&stop| stop) => return,
                refreshed = self.refresh_and_report_delay(mode) => {
                    log::trace!("portals: {refreshed:?}");
                }
            }
            let now = self.shared.accepted.get().map(|accepted| accepted.takeovers());
            if std::mem::replace(&mut takeovers, now) != now {
                self.raise_quotas();
            }
            pause = self.pause().await;
        }
    }

    /// Refreshes the list. A refresh that takes too long counts as failed until it ends.
    async fn refresh_and_report_delay(&self, mode: RefreshMode) -> Refreshed {
        let mut refresh = pin!(self.refresh(mode));
        loop {
            tokio::select! {
                biased;
                refreshed = &mut refresh => return refreshed,
                () = tokio::time::sleep(self.shared.look_max) => self.shared.look_is_overdue(),
            }
        }
    }

    /// Looks at the source once, as [`Portals::watch`] does repeatedly. Needs a tokio runtime.
    pub async fn refresh(&self, mode: RefreshMode) -> Refreshed {
        let source = Arc::clone(&self.shared.source).lock_owned().await;
        let shared = Arc::clone(&self.shared);
        if matches!(*source, Source::Host) {
            return Refreshed::Same;
        }
        if matches!(*source, Source::Url(_)) {
            return refresh::fetch(source, shared).await;
        }
        // Runs on a blocking thread, because a file system may hang and a million ids take time.
        let look = tokio::task::spawn_blocking(move || shared.look_at_file(source, mode));
        look.await.unwrap_or(Refreshed::Failed)
    }

    /// The pause before the next look.
    async fn pause(&self) -> Duration {
        let wait = self.shared.health.lock().wait;
        if let Some(wait) = wait {
            return wait;
        }
        match *self.shared.source.lock().await {
            Source::Fixed | Source::Host | Source::File(_) => {
                self.shared.refresh / LOOKS_PER_REFRESH
            }
            Source::Url(_) => self.shared.refresh.mul_f64(rand::thread_rng().gen_range(0.5..1.0)),
        }
    }
}

/// Reads a list that is in memory.
fn read_text(list: &str, format: Format, terms: &Terms) -> Result<List, OpenError> {
    List::read(format, &mut io::Cursor::new(list.as_bytes()), terms)
        .map_err(|error| OpenError(error.to_string()))
}

impl fmt::Debug for Portals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portals").field("status", &self.status()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::policy::portals::Config;

    #[tokio::test(start_paused = true)]
    async fn a_look_that_does_not_end_is_a_failure_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.txt");
        std::fs::write(&path, "11\n").unwrap();
        let config = Config { source: path.display().to_string(), ..Config::default() };
        let config = config.validate().unwrap();
        let portals = Portals::open(&config, dir.path(), Arc::new(SystemClock)).unwrap();
        // The next look waits for this lock as it would for a file system that hangs.
        let hang = Arc::clone(&portals.shared.source).lock_owned().await;
        let (_stop, stopped) = watch::channel(false);
        tokio::spawn(portals.clone().watch(stopped));
        while portals.status().failures < 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let status = portals.status();
        let failure = status.last_failure.unwrap().what;
        assert_eq!(failure, format!("{}: reading it takes longer than 10 seconds", path.display()));
        assert!(!status.fresh);
        drop(hang);
        while !portals.status().fresh {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
