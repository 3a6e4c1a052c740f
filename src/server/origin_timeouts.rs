//! The timeouts of connections to origins.

use std::time::Duration;

/// The timeouts of a connection to an origin. Those of a Pingora peer do the same, but register a
/// timer for each wait, which costs a thirtieth of a small request.
///
/// While the client of a [`Server`](crate::Server) takes nothing, nothing is read from the origin.
/// That time does not count for `io`, although it counts for Pingora's `read_timeout`.
///
/// A wait that lasts too long ends with [`TimedOut`](std::io::ErrorKind::TimedOut). Pingora passes
/// that on as the cause of a `ReadError` or a `WriteError`, not as a `ReadTimedout` or a
/// `WriteTimedout`.
///
/// ```
/// use pixelgate::http_server::OriginTimeouts;
/// use std::time::Duration;
///
/// let mut timeouts = OriginTimeouts::default();
/// timeouts.io = Some(Duration::from_secs(60));
/// timeouts.idle = Some(Duration::from_secs(60));
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct OriginTimeouts {
    /// The longest wait for an origin to send some bytes, or to take some. `None`: no limit.
    pub io: Option<Duration>,
    /// The longest time that a connection stays open between two requests. `None`: no limit. It
    /// limits each wait outside of the requests of a [`Server`](crate::Server).
    pub idle: Option<Duration>,
}
