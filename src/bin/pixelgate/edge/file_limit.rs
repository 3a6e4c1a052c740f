//! The limit of open files (`ulimit -n`), and the number of connections that it allows.
//!
//! Without this number, connections could use up all files, and the spool could not open its next
//! segment.

use super::config::Config;
use log::info;
use pixelgate::http_server::Limits;
use rustix::process::{Resource, getrlimit, setrlimit};

/// The number of files that are kept free for the lanes and segments of the spool, listeners, logs
/// and connections to upstreams.
const OTHER_FILES: usize = 256;

/// Raises the soft limit of open files to the hard one. If the system refuses, the limit stays, and
/// [`report`] logs how many connections it allows.
pub fn raise() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Returns how many connections the limit allows, at most `edge.connections_max`. A connection
/// takes one file, and a second one if there is an origin.
fn connections_max(edge: &Config) -> usize {
    let Some(files) = getrlimit(Resource::Nofile).current else { return edge.connections_max };
    let free = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    let most = if edge.origin.is_empty() { free } else { free / 2 }.max(1);
    most.min(edge.connections_max)
}

/// Returns the limits of the HTTP server, with as many connections as the limit of files allows.
pub fn limits(edge: &Config) -> Limits {
    let mut limits = edge.limits();
    limits.connections_max = connections_max(edge);
    limits
}

/// Logs if the limit of files allows fewer connections than are configured.
pub fn report(edge: &Config) {
    let most = connections_max(edge);
    if most < edge.connections_max {
        info!(
            "edge.connections_max is lowered to {most}: the limit of open files (ulimit -n) allows \
no more"
        );
    }
}
