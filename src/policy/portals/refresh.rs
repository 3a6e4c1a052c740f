//! Keeps the list up to date: looks at the source, swaps the list, and logs failures.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::OwnedMutexGuard;

use super::config::Mode;
use super::list::List;
use super::look::Look;
use super::source::Source;
use super::state::{PortalsState, monotonic_ms};
use super::status::RefreshFailure;
use crate::plural::counted;

/// Whether a changed file is read at once or only when it is at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefreshMode {
    /// A changed file is read when a second look finds it the same as the first.
    Routine,
    /// The source is read now. A start or SIGHUP implies that the operator has completed the file.
    AtOnce,
}

/// The result of one look at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// The source still has the list in use.
    Same,
    /// A new list is in use.
    Swapped,
    /// The source is changing, and the next look will read it.
    Unsettled,
    /// The source has no usable list. A list in use stays.
    Failed,
}

/// Asks a URL source once, and puts the result into effect.
pub(super) async fn fetch(
    mut source: OwnedMutexGuard<Source>,
    shared: Arc<PortalsState>,
) -> Refreshed {
    let content = shared.current.load().as_ref().map(|list| list.content);
    match &mut *source {
        Source::Url(url) => {
            let look = url.look(content, &shared.terms).await;
            shared.note_unstored(url.unstored());
            // Swapping may wait for the last request that holds the old list.
            let settled = tokio::task::spawn_blocking(move || shared.settle(look));
            settled.await.unwrap_or(Refreshed::Failed)
        }
        Source::Fixed | Source::Host | Source::File(_) => Refreshed::Same,
    }
}

impl PortalsState {
    /// Looks at a file source once, and puts the result into effect. Blocks.
    pub(super) fn look_at_file(
        &self,
        mut source: OwnedMutexGuard<Source>,
        mode: RefreshMode,
    ) -> Refreshed {
        let content = self.current.load().as_ref().map(|list| list.content);
        let look = match &mut *source {
            Source::File(file) => file.look(content, mode == RefreshMode::AtOnce, &self.terms),
            Source::Fixed | Source::Host | Source::Url(_) => Look::Same,
        };
        self.settle(look)
    }

    /// Puts the outcome of a look into effect.
    pub(super) fn settle(&self, look: Look) -> Refreshed {
        self.note_wait(match look {
            Look::Deferred(_, wait) => Some(wait),
            _ => None,
        });
        match look {
            Look::Same => {
                self.confirm();
                Refreshed::Same
            }
            Look::New(list) => {
                self.put(*list);
                Refreshed::Swapped
            }
            Look::Unsettled => Refreshed::Unsettled,
            Look::Failed(what) | Look::Deferred(what, _) => {
                self.fail(what);
                Refreshed::Failed
            }
        }
    }

    /// Puts a new list in force.
    pub(super) fn put(&self, list: List) {
        self.swap(list);
        self.confirm();
    }

    fn swap(&self, list: List) {
        let list = Arc::new(list);
        let earlier = self.current.load_full();
        if let Some(earlier) = &earlier {
            list.carry(earlier);
        }
        if let Some(accepted) = self.accepted.get() {
            list.raise_quotas(&**accepted);
        }
        log::info!("portals: a new list is in force (portals: {})", list.len());
        self.current.store(Some(list));
        self.health.lock().loaded_at_ms = Some(self.terms.clock.unix_ms());
        // Wait until no request holds the old list, so that it is freed here and not by a request.
        // Requests hold it for microseconds. The limit of 1,000 waits of 100 µs is for a host that
        // does not drop a `Policy`.
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
        self.confirmed_ms.store(monotonic_ms(&*self.terms.clock), Ordering::Relaxed);
        let mut health = self.health.lock();
        health.stale_logged = false;
        if std::mem::replace(&mut health.failing, false) {
            log::info!("portals: the source can be read again: {}", self.source_name);
        }
    }

    /// Records why the list in use is not in the state folder, if it is not.
    fn note_unstored(&self, why: Option<&str>) {
        let mut health = self.health.lock();
        match (&health.unstored, why) {
            (None, Some(why)) => {
                log::warn!("portals: the list cannot be stored for the next start: {why}");
            }
            (Some(_), None) => log::info!("portals: the list is stored in the state folder again"),
            _ => {}
        }
        health.unstored = why.map(str::to_owned);
    }

    /// Records the wait before the server of a URL is asked again, if it asked for one.
    fn note_wait(&self, asked: Option<Duration>) {
        let wait = asked.map(|asked| asked.max(self.refresh));
        let mut health = self.health.lock();
        if let (Some(wait), None) = (wait, health.wait) {
            let wait = counted(wait.as_secs(), "second");
            log::warn!(
                "portals: the server asked for a wait (Retry-After), so it is asked again in \
                 {wait}, or at once on SIGHUP"
            );
        }
        let retry_at = wait.and_then(|wait| {
            self.terms.clock.unix_ms().checked_add(u64::try_from(wait.as_millis()).ok()?)
        });
        (health.wait, health.retry_at_ms) = (wait, retry_at);
    }

    /// Records that a look at the source has not ended in time, as when its file system hangs. The
    /// look goes on, and its outcome counts when it ends.
    pub(super) fn look_is_overdue(&self) {
        let (name, seconds) = (&self.source_name, self.look_max.as_secs());
        self.fail(format!("{name}: reading it takes longer than {seconds} seconds"));
    }

    pub(super) fn fail(&self, what: String) {
        let mut health = self.health.lock();
        let known = health.failing && health.last_failure.as_ref().is_some_and(|f| f.what == what);
        let has_list = self.current.load().is_some();
        if !known {
            if has_list {
                log::error!(
                    "portals: the list cannot be refreshed, so the list in use stays: {what}"
                );
            } else {
                let follows = without_list(self.mode);
                log::error!("portals: no list could be loaded yet, {follows}: {what}");
            }
        }
        let stale = self.is_stale() && has_list;
        if stale && !std::mem::replace(&mut health.stale_logged, true) {
            log::error!(
                "portals: the list in use is too old (older than portals.stale_seconds_max), \
                 {} until the list can be refreshed",
                without_list(self.mode)
            );
        }
        health.failing = true;
        health.failures += 1;
        health.last_failure = Some(RefreshFailure { at_ms: self.terms.clock.unix_ms(), what });
    }
}

/// What becomes of events before the first list, and while the list is too old.
fn without_list(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "so every event is rejected as overloaded",
        Mode::DryRun => "so every event is accepted as one that enforce would reject",
        Mode::Off => "and every event is accepted because portals.mode is off",
    }
}
