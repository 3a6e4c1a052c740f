//! What the front door allows, and what it tells of connections that end at a limit: each is
//! counted, and each limit has one log line in a while, so that a flood does not flood the log.

use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{Limit, Metrics};
use log::warn;
use parking_lot::Mutex;
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
    throttles: [Mutex<LogThrottle>; Limit::ALL.len()],
}

impl LimitReporter {
    /// A teller that has told nothing yet.
    pub fn new(metrics: Metrics) -> Self {
        let throttle = |_| Mutex::new(LogThrottle::new(1, LOG_PAUSE));
        Self { metrics, throttles: std::array::from_fn(throttle) }
    }

    /// Counts one, and logs it unless that was done a moment ago.
    pub fn tell(&self, limit: Limit) {
        self.metrics.count_refused(limit);
        // These are the ordinary end of a connection.
        if matches!(limit, Limit::IdleTime | Limit::Requests) {
            return;
        }
        let left_out = self.throttles[limit as usize].lock().admit(Instant::now());
        let Some(left_out) = left_out else { return };
        let since = left_out + 1;
        warn!("{since} connections ended at the limit {} since this was last told", limit.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_and_few_are_logged() {
        let teller = LimitReporter::new(Metrics::new());
        for _ in 0..1000 {
            teller.tell(Limit::Connections);
        }
        assert_eq!(teller.metrics.refused(Limit::Connections), 1000);
        let throttle = &teller.throttles[Limit::Connections as usize];
        let later = Instant::now() + LOG_PAUSE;
        assert_eq!(throttle.lock().admit(later), Some(999), "one line, of the first");
    }
}
