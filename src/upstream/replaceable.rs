//! A configured upstream that takes new settings, certificates and keys while it delivers (SPEC 8,
//! SIGHUP).
//!
//! A batch that is being sent ends with the settings that it began with, and the next batch uses
//! the new ones. An upstream that was replaced is closed when its last attempt has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;

use super::batch::Batch;
use super::config::{Config, ValidConfig};
use super::contract::Upstream;
use super::kind::Memory;
use super::outcome::Outcome;
use crate::config_error::ConfigError;
use crate::file_stamp::FileStamp;
use crate::telemetry::faults::{FaultKind, Faults};

/// Pause between two looks at an upstream's files, in seconds.
const LOOK_SECONDS: u64 = 2;
/// Pause between two look-ups of an upstream's servers, in seconds.
const LOOKUP_SECONDS: u64 = 30;
/// The longest wait of an attempt for a look that is due, in milliseconds: a file system may hang.
const LOOK_MS_MAX: u64 = 500;

/// A configured upstream that can be replaced. A clone is another handle to the same upstream.
#[derive(Clone)]
pub struct Replaceable(Arc<Inner>);

struct Inner {
    name: String,
    kind: &'static str,
    keeps_portal_order: bool,
    faults: Faults,
    in_use: Mutex<InUse>,
    /// When the last look began. It is locked during a look, so that one look runs at a time.
    looked_at: Arc<tokio::sync::Mutex<Instant>>,
    /// Replaced upstreams that are not closed yet.
    retired: Mutex<Vec<Arc<dyn Upstream>>>,
}

struct InUse {
    config: ValidConfig,
    /// See [`Upstream::settings_version`].
    version: u64,
    upstream: Arc<dyn Upstream>,
    memory: Memory,
    /// The files that the settings name, with their stamps from just before they were read.
    files: Files,
    since: Instant,
    /// The addresses of the servers that the settings name, and when they were looked up.
    addresses: (Addresses, Instant),
}

/// The addresses of each server whose name could be looked up.
type Addresses = BTreeMap<String, BTreeSet<IpAddr>>;

type Files = Vec<(PathBuf, Option<FileStamp>)>;

/// An upstream with new settings, not in use yet.
pub struct Replacement(InUse);

impl Replaceable {
    /// Builds the upstream.
    ///
    /// # Errors
    ///
    /// The key whose value or file cannot be used.
    pub fn build(config: ValidConfig, faults: Faults) -> Result<Self, ConfigError> {
        let in_use = InUse::build(config, Memory::default())?;
        let upstream = &in_use.upstream;
        Ok(Self(Arc::new(Inner {
            name: in_use.config.name.clone(),
            kind: upstream.kind(),
            keeps_portal_order: upstream.keeps_portal_order(),
            faults,
            looked_at: Arc::new(tokio::sync::Mutex::new(Instant::now())),
            retired: Mutex::default(),
            in_use: Mutex::new(in_use),
        })))
    }

    /// The upstream's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Builds the upstream with those settings of `config` that a running upstream can change.
    /// `None` if no setting and no file has changed.
    ///
    /// # Errors
    ///
    /// The errors of [`Replaceable::build`].
    pub fn prepare(&self, config: &Config) -> Result<Option<Replacement>, ConfigError> {
        let in_use = self.0.in_use.lock();
        let Some(config) = in_use.config.reloaded(config) else { return Ok(None) };
        if *config == *in_use.config && !in_use.has_changed_files() {
            return Ok(None);
        }
        let is_same = config.kind.sends_as(&in_use.config.kind) && !in_use.has_changed_files();
        let memory = if is_same { in_use.memory.clone() } else { Memory::default() };
        drop(in_use);
        InUse::build(config, memory).map(|built| Some(Replacement(built)))
    }

    /// Puts a replacement in use. Attempts under way end with the settings that they began with.
    pub fn put(&self, Replacement(mut new): Replacement) {
        let mut in_use = self.0.in_use.lock();
        new.version = in_use.version + u64::from(!new.sends_as(&in_use));
        let old = std::mem::replace(&mut *in_use, new);
        drop(in_use);
        self.0.retired.lock().push(old.upstream);
        self.0.faults.clear(FaultKind::ConfigReload, &self.subject());
        // Outside of a runtime, the next attempt closes the old upstream.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let this = self.clone();
            runtime.spawn(async move { this.close_retired().await });
        }
    }

    /// Reads the files of the upstream again if they have changed, and renews its connections if
    /// they are too old or its servers have other addresses. Blocks.
    pub fn look(&self) {
        let (config, has_changed) = {
            let in_use = self.0.in_use.lock();
            (in_use.config.clone(), in_use.has_changed_files())
        };
        if !has_changed {
            return self.renew_connections(config);
        }
        // The stamps are taken before the files are read, so that the next look finds a change in
        // between.
        let files = stamps(&config);
        match InUse::build(config, Memory::default()) {
            Ok(built) => {
                self.put(Replacement(built));
                log::info!("upstream {}: its changed files are in use from now on", self.0.name);
            }
            Err(why) => {
                // The files count as read, so that each change is reported once.
                self.0.in_use.lock().files = files;
                let text = format!("{why}; what was read before stays in use");
                log::error!("{text}");
                let advice = "Correct the file. It is read again when it changes, and at SIGHUP.";
                self.0.faults.raise(FaultKind::ConfigReload, &self.subject(), text, advice);
            }
        }
    }

    /// Renews the connections of a kind whose client does not, if that is due.
    fn renew_connections(&self, config: ValidConfig) {
        let Some(seconds_max) = config.connection_seconds_max() else { return };
        let (since, looked_up, memory) = {
            let in_use = self.0.in_use.lock();
            (in_use.since, in_use.addresses.1, in_use.memory.clone())
        };
        let mut is_due = since.elapsed() >= Duration::from_secs(seconds_max);
        if !is_due && looked_up.elapsed() >= Duration::from_secs(LOOKUP_SECONDS) {
            let found = look_up(&config);
            let mut in_use = self.0.in_use.lock();
            let known = &in_use.addresses.0;
            // A name that cannot be looked up counts as unchanged.
            is_due = found.iter().any(|(name, now)| known.get(name).is_some_and(|was| was != now));
            in_use.addresses = (found, Instant::now());
        }
        if is_due && let Ok(built) = InUse::build(config, memory) {
            log::debug!("upstream {}: its connections are renewed", self.0.name);
            self.put(Replacement(built));
        }
    }

    fn subject(&self) -> String {
        format!("upstream {}", self.0.name)
    }

    fn upstream(&self) -> Arc<dyn Upstream> {
        Arc::clone(&self.0.in_use.lock().upstream)
    }

    /// Takes a look if one is due and none is under way. Waits for it for at most [`LOOK_MS_MAX`].
    async fn look_if_due(&self) {
        let Ok(mut looked_at) = Arc::clone(&self.0.looked_at).try_lock_owned() else { return };
        if looked_at.elapsed() < Duration::from_secs(LOOK_SECONDS) {
            return;
        }
        *looked_at = Instant::now();
        let this = self.clone();
        let look = tokio::task::spawn_blocking(move || {
            this.look();
            drop(looked_at);
        });
        // A look that takes longer goes on during this attempt.
        let _ = tokio::time::timeout(Duration::from_millis(LOOK_MS_MAX), look).await;
    }

    /// Closes the replaced upstreams that no attempt uses any more.
    async fn close_retired(&self) {
        let mut idle = Vec::new();
        self.0.retired.lock().retain(|upstream| {
            let is_idle = Arc::strong_count(upstream) == 1;
            if is_idle {
                idle.push(Arc::clone(upstream));
            }
            !is_idle
        });
        for upstream in idle {
            upstream.close().await;
        }
    }
}

#[async_trait]
impl Upstream for Replaceable {
    fn kind(&self) -> &'static str {
        self.0.kind
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        self.look_if_due().await;
        let outcome = self.upstream().send(batch).await;
        if !self.0.retired.lock().is_empty() {
            self.close_retired().await;
        }
        outcome
    }

    fn concurrency_max(&self) -> usize {
        self.upstream().concurrency_max()
    }

    fn keeps_portal_order(&self) -> bool {
        self.0.keeps_portal_order
    }

    fn settings_version(&self) -> u64 {
        self.0.in_use.lock().version
    }

    fn cut_off(&self) {
        self.0.retired.lock().iter().for_each(|upstream| upstream.cut_off());
        self.upstream().cut_off();
    }

    async fn close(&self) {
        self.close_retired().await;
        self.upstream().close().await;
    }
}

impl InUse {
    fn build(config: ValidConfig, memory: Memory) -> Result<Self, ConfigError> {
        let (files, now) = (stamps(&config), Instant::now());
        let addresses = (Addresses::new(), now);
        let upstream = config.build_with(&memory)?;
        Ok(Self { upstream, memory, version: 0, files, since: now, addresses, config })
    }

    fn sends_as(&self, other: &InUse) -> bool {
        self.config.kind.sends_as(&other.config.kind) && self.files == other.files
    }

    fn has_changed_files(&self) -> bool {
        self.files.iter().any(|(path, seen)| FileStamp::read(path).ok() != *seen)
    }
}

fn look_up(config: &Config) -> Addresses {
    let mut found = Addresses::new();
    for server in config.servers() {
        if let Ok(addresses) = server.to_socket_addrs() {
            found.insert(server, addresses.map(|address| address.ip()).collect());
        }
    }
    found
}

fn stamps(config: &Config) -> Files {
    config.files().into_iter().map(|path| (path.clone(), FileStamp::read(&path).ok())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rest: &str) -> ValidConfig {
        let text = format!("name = 'a'\nkind = 'http'\nurl = 'https://h/'\n{rest}");
        let config: Config = toml::from_str(&text).expect(rest);
        Config::validate_all(&[config]).unwrap().remove(0)
    }

    #[test]
    #[cfg(feature = "http")]
    fn what_needs_a_new_process_stays_and_the_rest_is_replaced() {
        let upstream = Replaceable::build(config(""), Faults::unregistered()).unwrap();
        let prepared = |rest: &str| upstream.prepare(&config(rest)).unwrap();
        assert!(prepared("").is_none());
        assert!(prepared("order = 'portal'\nattempts_max = 3").is_none());
        upstream.put(prepared("concurrency_max = 2").unwrap());
        assert_eq!(upstream.concurrency_max(), 2);
        upstream.put(prepared("").unwrap());
        let replacement = prepared("headers = { A = 'b' }\norder = 'portal'").unwrap();
        let in_use = Config::clone(&replacement.0.config);
        assert_eq!(in_use, Config::clone(&config("headers = { A = 'b' }")));
        upstream.put(replacement);
        assert!(prepared("headers = { A = 'b' }").is_none());
        let file = config("").reloaded(&Config { name: "a".into(), ..Config::embedded() });
        assert!(file.is_none(), "another kind");
    }

    #[test]
    #[cfg(feature = "http")]
    fn the_version_counts_the_changes_that_are_no_limits() {
        let upstream = Replaceable::build(config(""), Faults::unregistered()).unwrap();
        let limits = "concurrency_max = 2\ntimeout_seconds = 9\nconnection_seconds_max = 9";
        for (rest, version) in [
            (limits.to_owned(), 0),
            (format!("{limits}\nproxy = 'http://p:1'"), 1),
            (format!("{limits}\nheaders = {{ A = 'b' }}"), 2),
            ("headers = { A = 'b' }".to_owned(), 2),
        ] {
            upstream.put(upstream.prepare(&config(&rest)).unwrap().unwrap());
            assert_eq!(upstream.settings_version(), version, "{rest}");
        }
    }

    #[test]
    #[cfg(feature = "http")]
    fn a_file_that_cannot_be_used_is_a_fault_until_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        let good = || rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap().cert.pem();
        std::fs::write(&ca, good()).unwrap();
        let faults = Faults::unregistered();
        let rest = format!("ca = {:?}", ca.display().to_string());
        let upstream = Replaceable::build(config(&rest), faults.clone()).unwrap();
        let first = upstream.upstream();
        upstream.look();
        assert!(Arc::ptr_eq(&first, &upstream.upstream()), "no file has changed");
        std::fs::write(&ca, "no certificate").unwrap();
        upstream.look();
        assert!(Arc::ptr_eq(&first, &upstream.upstream()));
        let fault = faults.list().remove(0);
        assert_eq!((fault.what, fault.subject.as_str()), (FaultKind::ConfigReload, "upstream a"));
        assert!(fault.text.starts_with("upstream.a.ca: "), "{}", fault.text);
        std::fs::write(dir.path().join("new"), good()).unwrap();
        std::fs::rename(dir.path().join("new"), &ca).unwrap();
        upstream.look();
        assert!(!Arc::ptr_eq(&first, &upstream.upstream()) && faults.list().is_empty());
        assert_eq!(upstream.settings_version(), 1, "the good file alone is in use");
    }
}
