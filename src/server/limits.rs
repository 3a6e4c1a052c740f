//! What the front door allows, and what it tells of connections that end at a limit: each is
//! counted, and each limit has one log line in a while, so that a flood does not flood the log.

use crate::telemetry::metrics::{Limit, Metrics};
use log::warn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Shortest time between two log lines about one limit.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// What the front door allows.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From the first byte of a request to the end of its header; also for a PROXY header, and
    /// for the first request of a connection.
    pub header_timeout: Duration,
    /// From the end of one request to the first byte of the next.
    pub keepalive: Duration,
    /// How long a client may take to take one piece of an answer.
    pub write_timeout: Duration,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections at once from one address (of IPv6: one /64 network), trusted proxies aside;
    /// 0: no limit.
    pub connections_per_address_max: usize,
    /// Requests on one connection; 0: no limit.
    pub requests_per_connection_max: u32,
    /// Bytes of one request's header.
    pub header_bytes_max: usize,
    /// Lines of one request's header, the request line aside.
    pub header_lines_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Whether each TCP connection begins with a PROXY header (version 1 or 2).
    pub proxy_protocol: bool,
    /// Whether plain event requests are answered here; if not, all take Pingora's path.
    pub answer_plain: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(75),
            write_timeout: Duration::from_secs(60),
            connections_max: 65_536,
            connections_per_address_max: 0,
            requests_per_connection_max: 0,
            header_bytes_max: 64 << 10,
            header_lines_max: 100,
            h2_streams_max: 100,
            proxy_protocol: false,
            answer_plain: true,
        }
    }
}

/// Tells of connections that end at a limit.
pub struct LimitReporter {
    metrics: Metrics,
    started: Instant,
    told: [Told; Limit::ALL.len()],
}

/// What the log knows of one limit.
#[derive(Default)]
struct Told {
    /// Milliseconds after the start from which the next line may be written.
    next_ms: AtomicU64,
    /// The count when the last line was written.
    count: AtomicU64,
}

impl LimitReporter {
    /// A teller that has told nothing yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, started: Instant::now(), told: Default::default() }
    }

    /// Counts one, and logs it unless that was done a moment ago.
    pub fn tell(&self, limit: Limit) {
        self.metrics.count_refused(limit);
        // These are the ordinary end of a connection.
        if matches!(limit, Limit::IdleTime | Limit::Requests) {
            return;
        }
        let told = &self.told[limit as usize];
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = told.next_ms.load(Relaxed);
        let later = now.saturating_add(LOG_PAUSE.as_millis() as u64);
        if now < next || told.next_ms.compare_exchange(next, later, Relaxed, Relaxed).is_err() {
            return;
        }
        let count = self.metrics.refused(limit);
        let since = count.saturating_sub(told.count.swap(count, Relaxed)).max(1);
        warn!("{since} connections ended at the limit {} since this was last told", limit.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_and_few_are_logged() {
        let limit_reporter = LimitReporter::new(Metrics::new());
        for _ in 0..1000 {
            limit_reporter.tell(Limit::Connections);
        }
        assert_eq!(limit_reporter.metrics.refused(Limit::Connections), 1000);
        let told = &limit_reporter.told[Limit::Connections as usize];
        assert_eq!(told.count.load(Relaxed), 1, "one line, of the first");
    }
}
