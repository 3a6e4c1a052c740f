//! `pixelgate check`: validates the configuration and everything that it names.

use super::exit::{UNUSABLE, fail, unwritten, with_causes};
use super::terminal::{GOOD, Progress};
use crate::config::Config;
use crate::edge::origin_ca;
use crate::edge::tls::Certificates;
use std::io::Write;
use std::process::ExitCode;

/// Checks certificates, trust file, access log, portal list and upstreams, and prints a summary.
pub fn run(config: &Config) -> ExitCode {
    if let Err(why) = Certificates::load_all(&config.edge.tls) {
        return fail(UNUSABLE, format!("edge.tls: {why}"));
    }
    let origin_ca = config.edge.origin_ca.as_deref();
    if let Some(why) = origin_ca.and_then(|path| origin_ca::check(path).err()) {
        return fail(UNUSABLE, format!("edge.origin_ca: {why}"));
    }
    if let Err(why) = config.access_log.check_path() {
        return fail(UNUSABLE, format!("access_log.path: {why}"));
    }
    let spinner = Progress::spinner("reading the portal list");
    let checked = pixelgate::tools::check(&config.gate, &config.edge.state_dir);
    drop(spinner);
    match checked {
        Ok(summary) => {
            // Its last line is the verdict.
            let (body, verdict) = summary.rsplit_once('\n').unwrap_or(("", &summary));
            match writeln!(anstream::stdout(), "{body}\n{GOOD}{verdict}{GOOD:#}") {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => unwritten(&e),
            }
        }
        Err(e) => fail(UNUSABLE, with_causes(&e)),
    }
}
