//! `pixelgate check`: validates the configuration and everything that it names.

use super::exit::{NO, UNUSABLE, fail, unwritten};
use super::terminal::{GOOD, Progress};
use crate::causes::with_causes;
use crate::config::Config;
use crate::edge::origin_ca;
use crate::edge::running::Running;
use crate::edge::tls::Certificates;
use std::io::Write;
use std::process::ExitCode;

/// Checks certificates, trust file, portal list and upstreams, and prints a summary.
pub fn run(config: &Config) -> ExitCode {
    let summary = match check(config) {
        Ok(summary) => summary,
        Err(why) => return fail(UNUSABLE, why),
    };
    // Its last line is the verdict.
    let (body, verdict) = summary.rsplit_once('\n').unwrap_or(("", &summary));
    match writeln!(anstream::stdout(), "{body}\n{GOOD}{verdict}{GOOD:#}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => unwritten(&e),
    }
}

/// Checks the same, and prints each key that differs from what the running edge has in force, with
/// what it needs.
pub fn diff(config: &Config) -> ExitCode {
    if let Err(why) = check(config) {
        return fail(UNUSABLE, why);
    }
    let running = match Running::read(&config.edge.state_dir) {
        Ok(running) => running,
        Err(why) => return fail(NO, why),
    };
    let changes = running.changes(&config.values);
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

/// Checks all that the configuration names. Returns a summary whose last line is the verdict.
fn check(config: &Config) -> Result<String, String> {
    if let Err(why) = Certificates::load_all(&config.edge.tls) {
        return Err(format!("edge.tls: {why}"));
    }
    let origin_ca = config.edge.origin_ca.as_deref();
    if let Some(why) = origin_ca.and_then(|path| origin_ca::check(path).err()) {
        return Err(format!("edge.origin_ca: {why}"));
    }
    let spinner = Progress::spinner("reading the portal list");
    let checked = pixelgate::check(&config.gate, &config.edge.state_dir);
    drop(spinner);
    checked.map_err(|e| with_causes(&e))
}
