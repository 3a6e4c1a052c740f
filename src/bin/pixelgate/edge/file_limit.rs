//! The limit of open files, and how many connections it allows.

use super::config::Config;
use log::info;
use pixelgate::http_server::Limits;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Open files that are not client connections: the spool's lanes and segments, listeners, logs,
/// connections to upstreams.
const OTHER_FILES: usize = 256;

/// Raises the soft limit of open files to the hard one. A refusal leaves the limit as it was, and
/// [`connections_max`] reports what that allows.
pub fn raise() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many connections fit under the limit, at most `edge.connections_max`. A connection takes one
/// file, and a second one where there is an origin. Without this limit, connections could use up
/// all files, and no segment of the spool could be opened.
fn connections_max(edge: &Config) -> usize {
    let Some(files) = getrlimit(Resource::Nofile).current else { return edge.connections_max };
    let free = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES);
    let most = if edge.origin.is_empty() { free } else { free / 2 }.max(1);
    most.min(edge.connections_max)
}

/// The limits of the HTTP server, with as many connections as fit.
pub fn limits(edge: &Config) -> Limits {
    let mut limits = edge.limits();
    limits.connections_max = connections_max(edge);
    limits
}

/// Logs that fewer connections fit than configured.
pub fn report(edge: &Config) {
    let most = connections_max(edge);
    if most < edge.connections_max {
        info!("the limit of open files lowers edge.connections_max to {most}");
    }
}
