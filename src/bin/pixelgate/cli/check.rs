//! `pixelgate check`: validates the configuration and everything that it names (SPEC 8).

use super::exit::{NO, UNUSABLE, fail, unwritten};
use super::terminal::{GOOD, Progress};
use crate::causes::with_causes;
use crate::config::Config;
use crate::config::keys::Values;
use crate::config::listeners;
use crate::edge::listen::Bound;
use crate::edge::origin_ca::Authorities;
use crate::edge::running::{NO_EDGE, Running};
use crate::edge::tls::Certificates;
use crate::edge::{handover, metrics_export, upgrade_socket};
use crate::writable::{self, Unwritable};
use pixelgate::config::UpstreamKind;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

/// The longest time for the check of everything that a configuration names, in seconds.
const CHECK_SECONDS_MAX: u64 = 30;

/// Checks everything that the configuration names, and prints a summary.
pub fn run(config: Config) -> ExitCode {
    let places = config.places.clone();
    let summary = match check_in_time(config) {
        Ok(summary) => summary,
        Err(why) => return fail(UNUSABLE, format!("{}: {why}", places.of_message(&why))),
    };
    // The last line of the summary is the verdict, which gets a colour.
    let (body, verdict) = summary.rsplit_once('\n').unwrap_or(("", &summary));
    match writeln!(anstream::stdout(), "{body}\n{GOOD}{verdict}{GOOD:#}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => unwritten(&e),
    }
}

/// Checks the same as [`run`], and prints each key whose value the running edge does not have in
/// force, and whether a reload or an upgrade puts it in force. `path` is the file of the
/// configuration, for messages.
pub fn diff(path: &Path, config: Config) -> ExitCode {
    let (state_dir, values) = (config.edge.state_dir.clone(), Values::of(&config.table));
    let (places, is_blank) = (config.places.clone(), config.is_blank);
    if let Err(why) = check_in_time(config) {
        return fail(UNUSABLE, format!("{}: {why}", places.of_message(&why)));
    }
    let running = match Running::read(&state_dir) {
        Ok(running) => running,
        Err(why) => return fail(NO, why),
    };
    // This answers at once, because the check above has asked the same disk.
    if let Err(Unwritable { why, .. }) = writable::folder(&state_dir) {
        let _ = writeln!(
            anstream::stderr(),
            "pixelgate: edge.state_dir: {why}: the values below may be older than those in force"
        );
    } else if upgrade_socket::is_left_behind(&state_dir.join(handover::SOCKET_NAME)) {
        // Files can be made there, so a running edge would have made its socket.
        return fail(NO, format!("{}: {NO_EDGE}", state_dir.display()));
    }
    let changes = running.changes(&values);
    if let Err(why) = changes.check_not_emptied(is_blank) {
        return fail(UNUSABLE, format!("{}: {why}", path.display()));
    }
    let kinds = [(&changes.reload, "hot"), (&changes.upgrade, "needs an upgrade")];
    let mut lines: Vec<String> = Vec::new();
    for (keys, needs) in kinds {
        lines.extend(keys.iter().map(|key| format!("{key}: {needs}\n")));
    }
    lines.sort_unstable();
    if lines.is_empty() {
        lines.push("no key has changed\n".to_owned());
    }
    match write!(anstream::stdout(), "{}", lines.concat()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => unwritten(&e),
    }
}

/// Runs [`check`] on another thread, because the file system of a file may hang.
fn check_in_time(config: Config) -> Result<String, String> {
    let (sender, checked) = mpsc::channel();
    let check = move || {
        // Fails if the check has taken too long: then nothing receives its result.
        let _ = sender.send(check(&config));
    };
    let started = std::thread::Builder::new().spawn(check);
    started.map_err(|e| format!("the check needs a thread, and none can be started: {e}"))?;
    checked.recv_timeout(Duration::from_secs(CHECK_SECONDS_MAX)).unwrap_or_else(|_| {
        Err(format!(
            "reading the files that the configuration names takes longer than {CHECK_SECONDS_MAX} \
             seconds: does one of their file systems hang?"
        ))
    })
}

/// Checks everything that the configuration names. Returns a summary whose last line is the
/// verdict.
fn check(config: &Config) -> Result<String, String> {
    if let Err(why) = Certificates::load_all(&config.edge.tls) {
        return Err(format!("edge.tls: {why}"));
    }
    Authorities::load(&config.edge)?;
    metrics_export::prepare(&config.otlp).map_err(|e| with_causes(&e))?;
    if let Some(why) = config.access_log.conflict() {
        let path = config.access_log.path.display();
        return Err(format!("access_log.path: {path} cannot be opened: {why}"));
    }
    let mut summary = check_writable(config)?;
    summary += &check_listeners(config)?;
    let spinner = Progress::spinner("reading the portal list");
    let checked = pixelgate::tools::check(&config.gate, &config.edge.state_dir);
    drop(spinner);
    checked.map(|about| summary + &about).map_err(|e| with_causes(&e))
}

/// Checks that the sockets can be opened. Returns a line for each TCP address in use, which is not
/// an error: while an edge runs, the edge itself listens there.
fn check_listeners(config: &Config) -> Result<String, String> {
    listeners::check_sockets(&config.edge, &config.admin)?;
    let mut lines = String::new();
    for (key, address) in listeners::all(&config.edge, &config.admin) {
        let failed = |e: &dyn std::error::Error| format!("{key}: {}", with_causes(e));
        address.check_path(&config.edge.state_dir).map_err(|e| failed(&e))?;
        match Bound::check(&address) {
            Err(e) if e.is_in_use() => {
                lines += &format!(
                    "{key}: {address}: Address already in use: `run --upgrade` takes it over \
                     from a running edge, and beside another process `run` ends with exit code 2\n"
                );
            }
            opened => opened.map_err(|e| failed(&e))?,
        }
    }
    Ok(lines)
}

/// Checks that each file and folder that the edge writes to can be written, or can be made if it is
/// missing. Returns a line for each that a disk does not let be written now, which is not an error:
/// the edge starts and tries again.
fn check_writable(config: &Config) -> Result<String, String> {
    let state_dir = &config.edge.state_dir;
    let upstreams = config.gate.upstreams();
    let files = upstreams.iter().filter_map(|upstream| match &upstream.kind {
        UpstreamKind::File(file) => Some((format!("upstream.{}.dir", upstream.name), &file.dir)),
        _ => None,
    });
    let own = [
        ("edge.state_dir".to_owned(), state_dir),
        ("spool.dir".to_owned(), &config.gate.spool.dir),
    ];
    let folders = own.into_iter().chain(files).map(|(key, dir)| (key, writable::folder(dir)));
    let log = &config.access_log;
    let log = Some(&log.path).filter(|_| log.is_on() && !log.is_stderr());
    let log = log.map(|path| ("access_log.path".to_owned(), writable::file(path, state_dir)));
    let mut lines = String::new();
    for (key, checked) in folders.chain(log) {
        match checked {
            Err(Unwritable { why, is_of_path: true }) => return Err(format!("{key}: {why}")),
            Err(Unwritable { why, .. }) => {
                lines += &format!("{key}: {why}; the edge starts and tries again\n");
            }
            Ok(()) => {}
        }
    }
    Ok(lines)
}
