//! Keeping the list up to date: looking at the source, swapping, and telling what came of it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::{OwnedMutexGuard, watch};

use super::list::List;
use super::source_file::{FileSource, LOOKS_PER_REFRESH, Look};
use super::source_url::UrlSource;
use super::{Mode, Portals, Shared, monotonic_ms};

/// Where lists come from.
#[derive(Debug)]
pub(super) enum Source {
    /// There will be no other list.
    Fixed,
    File(FileSource),
    Url(UrlSource),
}

/// How sure to be that a file is complete before reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshMode {
    /// A changed file is read when a second look finds it the same as the first.
    Routine,
    /// The source is read now: somebody says that it is complete.
    AtOnce,
}

/// What a look at the source came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The source still has the list in use.
    Same,
    /// A new list is in use.
    Swapped,
    /// The source is changing, and will be looked at again.
    Unsettled,
    /// The source has no list to take; the one in use stays.
    Failed,
}

/// How the policy is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Portals in the list, expired ones included.
    pub count: usize,
    /// The configured mode.
    pub mode: Mode,
    /// When the list in use was loaded: milliseconds since 1970, UTC. None: there is none yet.
    pub loaded_at_ms: Option<u64>,
    /// The last failure to refresh the list, be it over or not.
    pub last_failure: Option<RefreshFailure>,
    /// Failures to refresh the list since start, each look counted.
    pub failures: u64,
    /// Whether there is a list, and the last look at its source found nothing wrong.
    pub fresh: bool,
    /// Whether the list is older than `portals.stale_seconds_max`.
    pub stale: bool,
}

/// A failure to refresh the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefreshFailure {
    /// When: milliseconds since 1970, UTC.
    pub at_ms: u64,
    /// What, with the file or URL and, where there is one, the line. No personal data.
    pub what: String,
}

/// What there is to tell about the refreshing.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub loaded_at_ms: Option<u64>,
    pub last_failure: Option<RefreshFailure>,
    pub failures: u64,
    pub failing: bool,
    /// Whether it has been told that the list is too old.
    pub stale_told: bool,
}

impl Portals {
    /// How the policy is doing.
    pub fn status(&self) -> Status {
        let shared = &*self.shared;
        let list = shared.current.load();
        let health = shared.health();
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

    /// Looks at the source for ever, until `shutdown` says true or its sender is gone.
    pub async fn watch(self, mut shutdown: watch::Receiver<bool>) {
        // A URL has not been asked yet.
        let mut pause = Duration::ZERO;
        loop {
            let haste = tokio::select! {
                _ = shutdown.wait_for(|&stop| stop) => return,
                () = self.shared.reload.notified() => RefreshMode::AtOnce,
                () = tokio::time::sleep(pause) => RefreshMode::Routine,
            };
            tokio::select! {
                _ = shutdown.wait_for(|&stop| stop) => return,
                refreshed = self.refresh(haste) => log::trace!("portals: {refreshed:?}"),
            }
            pause = self.pause().await;
        }
    }

    /// Looks at the source once: what [`Portals::watch`] does again and again. Needs a runtime.
    pub async fn refresh(&self, haste: RefreshMode) -> Refreshed {
        let source = Arc::clone(&self.shared.source).lock_owned().await;
        let shared = Arc::clone(&self.shared);
        if matches!(*source, Source::Url(_)) {
            return Source::fetch(source, shared).await;
        }
        // A thread of its own: a file system may hang, and a million ids take a while.
        let look = tokio::task::spawn_blocking(move || shared.look_at_file(source, haste));
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

impl Source {
    async fn fetch(mut source: OwnedMutexGuard<Source>, shared: Arc<Shared>) -> Refreshed {
        let content = shared.current.load().as_ref().map(|list| list.content);
        match &mut *source {
            Source::Url(url) => {
                let look = url.look(content, &shared.clock).await;
                // A new list may have to wait for the last hit that holds the old one.
                let settled = tokio::task::spawn_blocking(move || shared.settle(look));
                settled.await.unwrap_or(Refreshed::Failed)
            }
            Source::Fixed | Source::File(_) => Refreshed::Same,
        }
    }
}

impl Shared {
    fn look_at_file(&self, mut source: OwnedMutexGuard<Source>, haste: RefreshMode) -> Refreshed {
        let content = self.current.load().as_ref().map(|list| list.content);
        let look = match &mut *source {
            Source::File(file) => file.look(content, haste == RefreshMode::AtOnce, &self.clock),
            Source::Fixed | Source::Url(_) => Look::Same,
        };
        self.settle(look)
    }

    /// Puts a look's outcome into effect.
    fn settle(&self, look: Look) -> Refreshed {
        match look {
            Look::Same => {
                self.confirm();
                Refreshed::Same
            }
            Look::New(list) => {
                self.swap(*list);
                self.confirm();
                Refreshed::Swapped
            }
            Look::Unsettled => Refreshed::Unsettled,
            Look::Failed(what) => {
                self.fail(what);
                Refreshed::Failed
            }
        }
    }

    fn swap(&self, list: List) {
        let list = Arc::new(list);
        let earlier = self.current.load_full();
        if let Some(earlier) = &earlier {
            list.carry_rates(earlier);
        }
        log::info!("portals: {} in the new list", list.len());
        self.current.store(Some(list));
        self.health().loaded_at_ms = Some(self.clock.unix_ms());
        // A hit that still holds the old list would have to free it: wait for the last to let go.
        // They hold it for microseconds, so this ends at once; the bound is for a host that keeps
        // a policy in hand.
        if let Some(mut earlier) = earlier {
            for _ in 0..1_000 {
                if Arc::get_mut(&mut earlier).is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn confirm(&self) {
        self.confirmed_ms.store(monotonic_ms(&*self.clock), Ordering::Relaxed);
        let mut health = self.health();
        health.stale_told = false;
        if std::mem::replace(&mut health.failing, false) {
            log::info!("portals: the source is well again");
        }
    }

    fn fail(&self, what: String) {
        let mut health = self.health();
        let known = health.failing && health.last_failure.as_ref().is_some_and(|f| f.what == what);
        if !known {
            log::error!("portals: the list in use stays: {what}");
        }
        let stale = self.is_stale() && self.current.load().is_some();
        if stale && !std::mem::replace(&mut health.stale_told, true) {
            log::error!("portals: the list in use is too old: every event is overloaded");
        }
        health.failing = true;
        health.failures += 1;
        health.last_failure = Some(RefreshFailure { at_ms: self.clock.unix_ms(), what });
    }

    fn health(&self) -> std::sync::MutexGuard<'_, Health> {
        // Whoever panicked while holding it left it whole: each change is a plain store.
        self.health.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
