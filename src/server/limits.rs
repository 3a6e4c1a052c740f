//! The limits of the HTTP server, and the report of connections that exceed one.
//!
//! Every such connection is counted. Each limit is logged at most once per 10 s, so that a flood of
//! connections does not flood the log.

use crate::plural::counted;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{Limit, Metrics};
use log::warn;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// The shortest time between two log lines about one limit.
const LOG_PAUSE: Duration = Duration::from_secs(10);
/// A lingering close drains a connection for at most 1 s and 256 KiB before it closes. Unread bytes
/// would make the kernel send RST, which can destroy the response on its way (RFC 9112, section
/// 9.6).
pub const LINGER_SECONDS_MAX: u64 = 1;
pub const LINGER_BYTES_MAX: usize = 256 << 10;
/// A client that was answered before it has sent the whole body of its request is drained for at
/// most this time, however much it sends. Many clients read an answer only after they have sent the
/// whole body, and report a failure if the connection breaks before.
pub const LINGER_UPLOAD_SECONDS_MAX: u64 = 30;

/// The limits of the HTTP server.
///
/// ```
/// use pixelgate::Limits;
/// use std::time::Duration;
///
/// let mut limits = Limits::default();
/// limits.header_timeout = Duration::from_secs(5);
/// limits.connections_per_address_max = 100;
/// ```
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Limits {
    /// The deadline for each of: a request's header from its first bytes, the first bytes of a
    /// connection, a PROXY header, a TLS handshake. Also the interval in which the frames of an
    /// HTTP/2 connection are counted. Default: 10 s.
    pub header_timeout: Duration,
    /// The longest time from the end of one request to the first byte of the next. Default: 75 s.
    pub keepalive: Duration,
    /// The longest time for one write of a response. Default: 60 s.
    pub write_timeout: Duration,
    /// The most open connections. Further ones close without a response. Default: 65,536.
    pub connections_max: usize,
    /// The most open connections per address (IPv6: per /64 network); 0: no limit. Trusted proxies
    /// and Unix sockets are exempt. Default: 0.
    pub connections_per_address_max: usize,
    /// The most requests on one connection; 0: no limit. Default: 0.
    pub requests_per_connection_max: u32,
    /// The longest request header, in bytes; a longer one is answered 431. Default: 64 KiB.
    pub header_bytes_max: usize,
    /// The most lines of a request header, not counting the request line; one with more lines is
    /// answered 431. Default: 100.
    pub header_lines_max: usize,
    /// The most concurrent streams on one HTTP/2 connection. Default: 100.
    pub h2_streams_max: u32,
    /// Whether each TCP connection must begin with a PROXY header (version 1 or 2). Default:
    /// `false`.
    pub proxy_protocol: bool,
    /// Whether the fast path answers event requests; if not, all requests take Pingora's path.
    /// Default: `true`.
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

/// Counts and logs connections that end at a limit.
pub struct LimitReporter {
    metrics: Metrics,
    throttles: [Mutex<LogThrottle>; Limit::ALL.len()],
}

impl LimitReporter {
    /// A reporter that has logged nothing yet.
    pub fn new(metrics: Metrics) -> Self {
        let throttle = |_| Mutex::new(LogThrottle::new(1, LOG_PAUSE));
        Self { metrics, throttles: std::array::from_fn(throttle) }
    }

    /// Counts a connection that ends at `limit`, and logs it unless that limit was logged less
    /// than 10 s ago. Idle timeouts and the request limit are counted only.
    pub fn report(&self, limit: Limit) {
        self.metrics.count_refused(limit);
        // These are ordinary ends of a connection.
        if matches!(limit, Limit::IdleTime | Limit::Requests) {
            return;
        }
        let left_out = self.throttles[limit as usize].lock().admit(Instant::now());
        let Some(left_out) = left_out else { return };
        let connections = counted(left_out + 1, "connection");
        warn!("{connections} ended at the limit {} since the last such log line", limit.as_str());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_is_counted_and_few_are_logged() {
        let limit_reporter = LimitReporter::new(Metrics::new());
        for _ in 0..1000 {
            limit_reporter.report(Limit::Connections);
        }
        assert_eq!(limit_reporter.metrics.refused(Limit::Connections), 1000);
        let throttle = &limit_reporter.throttles[Limit::Connections as usize];
        let later = Instant::now() + LOG_PAUSE;
        assert_eq!(throttle.lock().admit(later), Some(999), "one line, of the first");
    }
}
