//! Puts a changed configuration in force while the edge runs: at SIGHUP, and when the file changes
//! (SPEC 9).
//!
//! Everything that a reload can change is checked and built first. Only then does it replace what
//! is in force, so a file with a mistake changes nothing. The keys that need an upgrade are named
//! in the log and in `/status`, until an upgrade puts them in force or the file has their old
//! values again.
//!
//! The files are polled every [`POLL_SECONDS`] and not watched, because a poll also finds a file
//! that an editor has renamed, a changed symbolic link (Kubernetes), and a change in a network file
//! system. A changed configuration is read when two polls have found the same file, because the
//! first half of a file may be valid, too. A certificate is only valid as a whole, so it is read at
//! the first poll.

use super::config::Config as Section;
use super::metrics_export::MetricsExport;
use super::origin::Origins;
use super::running::Running;
use super::tls::Certificates;
use super::within::{START_LIMIT, within};
use super::{file_limit, metrics_export, systemd};
use crate::access_log::config::Config as AccessLogSection;
use crate::access_log::{AccessLogFile, AccessLogs, Opened};
use crate::causes::with_causes;
use crate::config::Config;
use crate::config::keys::{Changes, Values};
use crate::logging;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use log::{error, info, warn};
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use pixelgate::PixelGate;
use pixelgate::admin_pages::{FaultKind, Sampler, TokenHandle};
use pixelgate::custom::Faults;
use pixelgate::http_server::{BufferedBytes, LimitsHandle};
use pixelgate::tools::FileStamp;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The pause between two looks at the files, in seconds.
const POLL_SECONDS: u64 = 2;
/// The longest time of one look, in seconds, before it is a fault: a file system may hang.
const LOOK_SECONDS_MAX: u64 = 10;
/// The subjects of the fault `config_reload`.
const FILE: &str = "configuration";
const CERTIFICATES: &str = "certificates";
const ORIGIN_CA: &str = "origin_ca";
const NOT_IN_FORCE: &str = "upgrade";
const LOOK: &str = "look";
/// The subject of the fault `state_dir`.
const VALUES: &str = "values in force";

/// Everything that a reload changes.
pub struct Handles {
    /// The section `[edge]` in force.
    pub section: Arc<ArcSwap<Section>>,
    pub gate: PixelGate,
    pub limits: LimitsHandle,
    pub buffered_bytes: BufferedBytes,
    pub origins: Origins,
    /// The TLS listeners, by their address.
    pub certificates: Vec<(String, Arc<Certificates>)>,
    pub sampler: Arc<Sampler>,
    pub token: TokenHandle,
    pub access_logs: AccessLogs,
    pub metrics_export: MetricsExport,
}

/// Reads the files and puts their changes in force.
pub struct Reloader {
    /// The path of the configuration file.
    path: PathBuf,
    /// `edge.state_dir`, which only an upgrade changes.
    state_dir: PathBuf,
    handles: Handles,
    state: Mutex<State>,
}

struct State {
    /// The configuration in force.
    table: toml::Table,
    /// The stamp of the configuration file when it was last read, successfully or not.
    read: Option<FileStamp>,
    /// The stamp of the configuration file at the last look.
    seen: Option<FileStamp>,
    /// The stamp of `edge.origin_ca` when it was last read.
    origin_ca: Option<FileStamp>,
    /// Whether the file for `pixelgate check --diff` has the values of `table`.
    is_noted: bool,
}

/// A new configuration, of which every part that can fail is built already. `None` or an empty
/// list: that part has not changed.
struct Built {
    edge: Section,
    log: logging::config::Config,
    metrics: pixelgate::config::Metrics,
    admin: pixelgate::config::Admin,
    table: toml::Table,
    gate: pixelgate::Reload,
    certificates: Vec<(String, Arc<Certificates>)>,
    access_log: Option<Option<AccessLogFile>>,
    collector: Option<metrics_export::Prepared>,
}

impl Reloader {
    /// Returns a reloader of the configuration at `path`. `table` is the configuration in force.
    pub fn new(path: PathBuf, table: toml::Table, handles: Handles) -> Self {
        let seen = FileStamp::read(&path).ok();
        let origin_ca = origin_ca_stamp(&handles.section.load());
        let this = Self {
            state: Mutex::new(State { table, read: seen, seen, origin_ca, is_noted: true }),
            path,
            state_dir: handles.section.load().state_dir.clone(),
            handles,
        };
        this.note_in_force_at_start();
        this
    }

    /// Looks at every file, and puts those that have changed in force. With `at_once`, as at
    /// SIGHUP, reads all of them, changed or not.
    fn look(&self, at_once: bool) {
        let mut state = self.state.lock();
        let now = FileStamp::read(&self.path).ok();
        let is_at_rest = now == std::mem::replace(&mut state.seen, now);
        if at_once || (is_at_rest && now != state.read) {
            self.reload(&mut state);
            // Set only after the reload: if the reload panics, the next look tries again.
            state.read = now;
        }
        if !state.is_noted {
            self.note_in_force(&mut state);
        }
        self.handles.certificates.iter().for_each(|(_, each)| each.reload(at_once));
        self.note_certificates();
        self.look_at_origin_ca(&mut state);
        self.handles.gate.reload_upstream_files();
        if at_once {
            self.handles.gate.reload_portals();
        }
    }

    /// Reads the configuration, puts it in force, and reports the result.
    fn reload(&self, state: &mut State) {
        let in_force = self.try_reload(state);
        let faults = self.handles.gate.faults();
        match in_force {
            Ok(changes) => {
                faults.clear(FaultKind::ConfigReload, FILE);
                self.report(&changes);
            }
            Err(why) => {
                let text = format!("{why}; the configuration in force stays");
                error!("{text}");
                let advice = "Correct the file. It is read again when it changes, and at SIGHUP.";
                faults.raise(FaultKind::ConfigReload, FILE, text, advice);
            }
        }
    }

    /// Reads the configuration and puts it in force. Returns the keys that have changed.
    fn try_reload(&self, state: &mut State) -> Result<Changes, String> {
        let file = Config::load(&self.path).map_err(|e| e.to_string())?;
        let changes = Values::of(&state.table).changes(&Values::of(&file.table));
        let failed = |why: String| format!("{}: {why}", file.places.of_message(&why));
        changes.check_not_emptied(file.is_blank).map_err(failed)?;
        let new = file.over(&state.table, &self.path).map_err(|e| e.to_string())?;
        let built = self.build(new, &changes).map_err(failed)?;
        self.put(built, state);
        Ok(changes)
    }

    /// Checks what `new` names, and builds everything that can fail. The origins come last, because
    /// they are in force as soon as they are built.
    fn build(&self, new: Config, changes: &Changes) -> Result<Built, String> {
        let handles = &self.handles;
        let changed = |keys: &str| changes.reload.iter().any(|key| key.starts_with(keys));
        let of = |key: &'static str| move |why: String| format!("{key}: {why}");
        let certificates = match changed("edge.tls") {
            true => Certificates::load_all(&new.edge.tls).map_err(of("edge.tls"))?,
            false => Vec::new(),
        };
        let access_log = match changed("access_log.") {
            true => Some(self.open_access_log(&new.access_log).map_err(of("access_log.path"))?),
            false => None,
        };
        let collector = match changed("otlp.") {
            true => Some(metrics_export::prepare(&new.otlp).map_err(|e| with_causes(&e))?),
            false => None,
        };
        let trusted = new.edge.trust().map_err(|e| e.to_string())?;
        let gate = handles.gate.prepare(new.gate).map_err(|e| with_causes(&e))?;
        let gate = gate.trusted_proxies(trusted);
        handles.origins.reload(&new.edge)?;
        let Config { edge, log, metrics, admin, table, .. } = new;
        Ok(Built { edge, log, metrics, admin, table, gate, certificates, access_log, collector })
    }

    /// Puts everything in force. Nothing here can fail.
    fn put(&self, built: Built, state: &mut State) {
        let handles = &self.handles;
        for ((_, running), (_, loaded)) in handles.certificates.iter().zip(&built.certificates) {
            running.replace(loaded);
        }
        handles.limits.set(file_limit::limits(&built.edge));
        handles.buffered_bytes.set_max(built.edge.buffered_bytes_max());
        state.origin_ca = origin_ca_stamp(&built.edge);
        handles.section.store(Arc::new(built.edge));
        built.gate.apply();
        if let Some(file) = built.access_log {
            handles.access_logs.put(file);
        }
        if let Some(collector) = built.collector {
            handles.metrics_export.put(collector);
        }
        handles.sampler.set_verdicts(built.log.verdicts);
        handles.sampler.set_portals_max(built.metrics.portals_max);
        handles.token.set(built.admin.token);
        logging::reload(&built.log);
        state.table = built.table;
        self.note_in_force(state);
    }

    /// Opens the file of the access log and starts its writer, if an access log is configured.
    fn open_access_log(&self, config: &AccessLogSection) -> Result<Option<AccessLogFile>, String> {
        let cannot = |e| format!("{} cannot be opened: {e}", config.path.display());
        let opened = Opened::open(config).map_err(cannot)?;
        opened.map(|log| log.start(&self.handles.gate)).transpose().map_err(|e| e.to_string())
    }

    /// Logs which keys are in force from now on and which need an upgrade, and names the latter in
    /// `/status`.
    fn report(&self, changes: &Changes) {
        match changes.reload.as_slice() {
            [] => info!("{}: no key has changed that a reload puts in force", self.path.display()),
            keys => info!("{}: in force from now on: {}", self.path.display(), keys.join(", ")),
        }
        if logging::is_overridden() && changes.reload.iter().any(|key| key == "log.level") {
            warn!(
                "log.level: RUST_LOG of the environment comes before it, until an upgrade without"
            );
        }
        let faults = self.handles.gate.faults();
        if changes.upgrade.is_empty() {
            return faults.clear(FaultKind::ConfigReload, NOT_IN_FORCE);
        }
        let keys = changes.upgrade.join(", ");
        let text = format!("{}: not in force, needs an upgrade: {keys}", self.path.display());
        warn!("{text}");
        let advice = "Run `pixelgate run --upgrade`, then send SIGQUIT to this process.";
        faults.raise(FaultKind::ConfigReload, NOT_IN_FORCE, text, advice);
    }

    /// Writes the values in force at a start. If the disk does not answer, the next look tries
    /// again.
    fn note_in_force_at_start(&self) {
        let mut state = self.state.lock();
        let (dir, values) = (self.state_dir.clone(), Values::of(&state.table));
        // An error of the sender means that the start has gone on without it.
        let written = within(START_LIMIT, move |done| _ = done.send(Running::write(&dir, &values)));
        let no_answer = || Err(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer"));
        let written = written.unwrap_or_else(no_answer);
        self.note_written(&mut state, written);
    }

    /// Writes the values in force to the file for `pixelgate check --diff`. After a failure each
    /// look tries again.
    fn note_in_force(&self, state: &mut State) {
        let written = Running::write(&self.state_dir, &Values::of(&state.table));
        self.note_written(state, written);
    }

    /// Shows in `/status` that the values are not written, and logs the first of several failures.
    fn note_written(&self, state: &mut State, written: io::Result<()>) {
        let was_noted = std::mem::replace(&mut state.is_noted, written.is_ok());
        let (dir, faults) = (self.state_dir.display(), self.handles.gate.faults());
        let Err(e) = written else { return faults.clear(FaultKind::StateDir, VALUES) };
        let text = format!(
            "{dir}: the values in force cannot be written, so `pixelgate check --diff` compares \
             with older ones: {e}"
        );
        if was_noted {
            warn!("{text}");
        }
        let advice = "Make edge.state_dir writable, with room for a file. It is tried again every \
                      2 seconds. Events are not affected.";
        faults.raise(FaultKind::StateDir, VALUES, text, advice);
    }

    /// Names in `/status` the certificates that cannot be used.
    fn note_certificates(&self) {
        let failed: Vec<String> =
            self.handles.certificates.iter().flat_map(|(_, each)| each.failures()).collect();
        let faults = self.handles.gate.faults();
        if failed.is_empty() {
            return faults.clear(FaultKind::ConfigReload, CERTIFICATES);
        }
        let text = format!("edge.tls: {}; the certificate in use stays", failed.join("; "));
        let advice = "Correct the files. They are read again when they change, and at SIGHUP.";
        faults.raise(FaultKind::ConfigReload, CERTIFICATES, text, advice);
    }

    /// Reads `edge.origin_ca` again if the file has changed.
    fn look_at_origin_ca(&self, state: &mut State) {
        let section = self.handles.section.load_full();
        let now = origin_ca_stamp(&section);
        let Some(path) = section.origin_ca.as_ref().filter(|_| now != state.origin_ca) else {
            return;
        };
        state.origin_ca = now;
        let faults = self.handles.gate.faults();
        match self.handles.origins.reload(&section) {
            Ok(()) => {
                info!("edge.origin_ca: {} is in use from now on", path.display());
                faults.clear(FaultKind::ConfigReload, ORIGIN_CA);
            }
            Err(why) => {
                let text = format!("{why}; the certificates in use stay");
                error!("{text}");
                let advice = "Correct the file. It is read again when it changes.";
                faults.raise(FaultKind::ConfigReload, ORIGIN_CA, text, advice);
            }
        }
    }

    async fn look_apart(self: &Arc<Self>, at_once: bool) {
        let this = Arc::clone(self);
        let limit = Duration::from_secs(LOOK_SECONDS_MAX);
        apart(self.handles.gate.faults(), limit, move || this.look(at_once)).await;
    }
}

/// Runs `look` on another thread, which may hang, and waits for its end. `/status` shows a fault
/// while it takes longer than `limit`.
async fn apart(faults: &Faults, limit: Duration, look: impl FnOnce() + Send + 'static) {
    let mut looking = tokio::task::spawn_blocking(look);
    let mut ended = tokio::time::timeout(limit, &mut looking).await;
    if ended.is_err() {
        let text = format!(
            "a look at the configuration and its files takes longer than {} seconds; what is in \
             force stays",
            limit.as_secs()
        );
        error!("{text}");
        let advice = "Look at the file systems of these files: one of them hangs. The files are \
                      read again when it answers.";
        faults.raise(FaultKind::ConfigReload, LOOK, text, advice);
        ended = Ok(looking.await);
        info!("the look at the configuration and its files has ended");
    }
    let Ok(Err(_)) = ended else { return faults.clear(FaultKind::ConfigReload, LOOK) };
    // A crate that reads certificates has panicked.
    let text = "a look at the configuration and its files failed; what is in force stays";
    error!("{text}");
    let advice = "The lines before this one in the log name the reason. The files are read again \
                  every 2 seconds.";
    faults.raise(FaultKind::ConfigReload, LOOK, text.to_owned(), advice);
}

fn origin_ca_stamp(edge: &Section) -> Option<FileStamp> {
    edge.origin_ca.as_ref().and_then(|path| FileStamp::read(path).ok())
}

/// The service that looks at the files until the stop.
pub struct Watch {
    reloader: Arc<Reloader>,
    /// A notification asks for a reload at once.
    at_once: Arc<Notify>,
}

impl Watch {
    /// Returns the service. It reloads when a file changes, and whenever `at_once` is notified.
    pub fn new(reloader: Reloader, at_once: Arc<Notify>) -> Self {
        Self { reloader: Arc::new(reloader), at_once }
    }
}

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Self { reloader, at_once } = self;
        loop {
            let is_asked = tokio::select! {
                _ = shutdown.changed() => return,
                () = at_once.notified() => true,
                () = tokio::time::sleep(Duration::from_secs(POLL_SECONDS)) => false,
            };
            if is_asked {
                info!("SIGHUP: reloading the configuration, the portals and the certificates");
                systemd::reloading();
            }
            tokio::select! {
                _ = shutdown.changed() => return,
                () = reloader.look_apart(is_asked) => {}
            }
            if is_asked {
                systemd::ready();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_look_that_hangs_is_a_fault_until_it_ends() {
        let faults = Faults::unregistered();
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let look = apart(&faults, Duration::ZERO, move || _ = hung.recv());
        let seen = async {
            while faults.list().is_empty() {
                tokio::task::yield_now().await;
            }
            let fault = faults.list().remove(0);
            assert_eq!((fault.what, fault.subject.as_str()), (FaultKind::ConfigReload, LOOK));
            drop(release);
        };
        tokio::join!(look, seen);
        assert!(faults.list().is_empty());
    }
}
