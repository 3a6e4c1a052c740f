//! The `[edge]` section: keys, defaults, units and limits (SPEC 9).

use super::listen;
use super::origin_url::OriginUrl;
use bytesize::ByteSize;
use pixelgate::config::TrustedProxies;
use pixelgate::config::{expanded, expanded_list, one_or_many};
use pixelgate::http_server::Limits;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// The most worker threads: more than any machine has cores.
const THREADS_MAX: usize = 1024;
/// The longest timeout, in seconds: a day.
const SECONDS_MAX: u64 = 86_400;
/// Limits of `header_bytes_max`, in bytes. The header of a browser with its cookies must fit, and
/// Pingora accepts no more than the upper limit.
const HEADER_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 20;
/// The largest `header_lines_max`: the limit of Pingora less the lines that the edge adds.
const HEADER_LINES_MAX: usize = 250;
/// The least `buffered_bytes_max`, in bytes: the window of one HTTP/2 connection that uploads, and
/// the same for responses.
const BUFFERED_BYTES_MIN: u64 = 8 << 20;
/// The largest `h2_streams_max`.
const H2_STREAMS_MAX: u32 = 10_000;

/// The `[edge]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The listeners without TLS: `address:port` with an IP address, or `unix:/path`. With port 0
    /// the kernel chooses the port. May hold `${NAME}`, as all addresses of this section. Default:
    /// `127.0.0.1:8080`.
    #[serde(deserialize_with = "expanded_list")]
    pub listen: Vec<String>,
    /// The TLS listeners. Default: none.
    #[serde(deserialize_with = "one_or_many")]
    pub tls: Vec<TlsListener>,
    /// The URLs of the servers that get every request that is not an event. Empty (the default):
    /// these requests are answered with status 404.
    #[serde(deserialize_with = "expanded_list")]
    pub origin: Vec<String>,
    /// The PEM file of the authorities that the certificates of origins are verified with. `None`
    /// (the default): those of the system.
    pub origin_ca: Option<PathBuf>,
    /// The path that health checks request from an origin. `None` (the default): a health check
    /// only connects.
    pub origin_health_path: Option<String>,
    /// The pause between two health checks of an origin, in seconds. Default: 5.
    pub origin_health_seconds: u64,
    /// The longest wait for one read from or one write to an origin, in seconds. Default: 60.
    pub origin_timeout_seconds: u64,
    /// How long an idle connection to an origin stays open, in seconds. Default: 60.
    pub origin_idle_seconds: u64,
    /// How long a connection to an origin is used for further requests, in seconds. Default: 300.
    pub connection_seconds_max: u64,
    /// The number of worker threads. 0 (the default): one per core.
    pub threads: usize,
    /// The longest idle time of a client's persistent connection, in seconds. Default: 75.
    pub keepalive_seconds: u64,
    /// The longest time from the first byte of a request header to the last, in seconds.
    /// Default: 10.
    pub header_timeout_seconds: u64,
    /// The longest time for one write of a response to a client, in seconds. Default: 60.
    pub write_timeout_seconds: u64,
    /// The most client connections at once. Default: see [`Limits`].
    pub connections_max: usize,
    /// The most connections at once from one client address. 0: no limit. Default: see [`Limits`].
    pub connections_per_address_max: usize,
    /// The most requests on one connection. 0: no limit. Default: see [`Limits`].
    pub requests_per_connection_max: u32,
    /// The most bytes of a request header. Default: see [`Limits`].
    pub header_bytes_max: ByteSize,
    /// The most lines of a request header. Default: see [`Limits`].
    pub header_lines_max: usize,
    /// The most open streams on one HTTP/2 connection. Default: see [`Limits`].
    pub h2_streams_max: u32,
    /// The bytes of bodies that wait in the memory of the process, above which each further
    /// exchange gets small buffers. Default: 256 MiB.
    pub buffered_bytes_max: ByteSize,
    /// Whether the fast path of the server answers plain event requests. If not, all requests take
    /// the path through Pingora. Default: true.
    pub answer_plain: bool,
    /// How long a stopping edge is unready but still accepts, before it closes its listeners, in
    /// seconds. Default: 0.
    pub drain_seconds: u64,
    /// The longest wait for requests in flight at a stop, in seconds. Default: 10.
    pub shutdown_grace_seconds: u64,
    /// The addresses and networks of proxies that may report the client's address. Default: none.
    #[serde(deserialize_with = "expanded_list")]
    pub trusted_proxies: Vec<String>,
    /// The header in which trusted proxies report the client's address. `None` (the default):
    /// `X-Forwarded-For` or `Forwarded`.
    pub client_ip_header: Option<String>,
    /// Whether each TCP connection begins with a PROXY protocol header from a trusted proxy.
    /// Default: false.
    pub proxy_protocol: bool,
    /// The folder of small files that must survive a restart, such as the last good portal list.
    /// Default: `data`.
    pub state_dir: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            listen: vec!["127.0.0.1:8080".to_owned()],
            tls: Vec::new(),
            origin: Vec::new(),
            origin_ca: None,
            origin_health_path: None,
            origin_health_seconds: 5,
            origin_timeout_seconds: 60,
            origin_idle_seconds: 60,
            connection_seconds_max: 300,
            threads: 0,
            keepalive_seconds: 75,
            header_timeout_seconds: 10,
            write_timeout_seconds: 60,
            connections_max: limits.connections_max,
            connections_per_address_max: limits.connections_per_address_max,
            requests_per_connection_max: limits.requests_per_connection_max,
            header_bytes_max: ByteSize::b(limits.header_bytes_max as u64),
            header_lines_max: limits.header_lines_max,
            h2_streams_max: limits.h2_streams_max,
            buffered_bytes_max: ByteSize::mib(256),
            answer_plain: true,
            drain_seconds: 0,
            shutdown_grace_seconds: 10,
            trusted_proxies: Vec::new(),
            client_ip_header: None,
            proxy_protocol: limits.proxy_protocol,
            state_dir: PathBuf::from("data"),
        }
    }
}

/// One entry of `edge.tls`. Entries with the same address share one listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsListener {
    /// The address: `address:port`.
    #[serde(deserialize_with = "expanded")]
    pub listen: String,
    /// The PEM file of the certificate chain.
    pub cert: PathBuf,
    /// The PEM file of the certificate's private key.
    pub key: PathBuf,
}

/// A key that cannot be used, without `edge.`, and the reason.
type Mistake = (&'static str, String);

impl Config {
    /// Checks every key. Uses neither disk nor network.
    ///
    /// # Errors
    ///
    /// The first key that cannot be used, and the reason.
    pub fn validate(&self) -> Result<(), Mistake> {
        if self.listen.is_empty() && self.tls.is_empty() {
            return Err(("listen", "names no listener, and edge.tls has none either".to_owned()));
        }
        let entry = |n: usize, why: String| format!("entry {} {why}", n + 1);
        for (n, address) in self.listen.iter().enumerate() {
            listen::Address::parse(address).map_err(|why| ("listen", entry(n, why)))?;
        }
        for (n, tls) in self.tls.iter().enumerate() {
            match listen::Address::parse(&tls.listen).map_err(|why| ("tls", entry(n, why)))? {
                listen::Address::Tcp(_) => {}
                listen::Address::Unix(_) => {
                    return Err(("tls", "listens on TCP addresses only".to_owned()));
                }
            }
        }
        for (n, url) in self.origin.iter().enumerate() {
            OriginUrl::parse(url).map_err(|why| ("origin", entry(n, why)))?;
        }
        if let Some(path) = &self.origin_health_path
            && !(path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok())
        {
            return Err(("origin_health_path", "is not a path such as \"/health\"".to_owned()));
        }
        if self.state_dir.as_os_str().is_empty() {
            return Err(("state_dir", "must name a folder".to_owned()));
        }
        self.trust().map_err(|e| match e {
            pixelgate::errors::TrustError::Network(_) => {
                let why = "must hold IP addresses, networks such as 10.0.0.0/8 and unix: only";
                ("trusted_proxies", why.to_owned())
            }
            pixelgate::errors::TrustError::Header(_) => {
                ("client_ip_header", "is not a header name".to_owned())
            }
        })?;
        if self.threads > THREADS_MAX {
            return Err(("threads", format!("must be at most {THREADS_MAX}")));
        }
        if self.connections_max == 0 {
            return Err(("connections_max", "must be at least 1".to_owned()));
        }
        for (key, seconds) in [
            ("keepalive_seconds", self.keepalive_seconds),
            ("header_timeout_seconds", self.header_timeout_seconds),
            ("origin_health_seconds", self.origin_health_seconds),
            ("origin_timeout_seconds", self.origin_timeout_seconds),
            ("origin_idle_seconds", self.origin_idle_seconds),
            ("connection_seconds_max", self.connection_seconds_max),
            ("write_timeout_seconds", self.write_timeout_seconds),
        ] {
            if !(1..=SECONDS_MAX).contains(&seconds) {
                return Err((key, format!("must be 1 to {SECONDS_MAX} seconds")));
            }
        }
        for (key, seconds) in [
            ("drain_seconds", self.drain_seconds),
            ("shutdown_grace_seconds", self.shutdown_grace_seconds),
        ] {
            if seconds > SECONDS_MAX {
                return Err((key, format!("must be at most {SECONDS_MAX} seconds")));
            }
        }
        self.validate_limits()
    }

    fn validate_limits(&self) -> Result<(), Mistake> {
        if !HEADER_BYTES.contains(&self.header_bytes_max.as_u64()) {
            return Err(("header_bytes_max", "must be 1KiB to 1MiB".to_owned()));
        }
        if !(1..=HEADER_LINES_MAX).contains(&self.header_lines_max) {
            return Err(("header_lines_max", format!("must be 1 to {HEADER_LINES_MAX}")));
        }
        if !(1..=H2_STREAMS_MAX).contains(&self.h2_streams_max) {
            return Err(("h2_streams_max", format!("must be 1 to {H2_STREAMS_MAX}")));
        }
        if self.buffered_bytes_max.as_u64() < BUFFERED_BYTES_MIN {
            return Err(("buffered_bytes_max", "must be at least 8MiB".to_owned()));
        }
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            let why = "needs edge.trusted_proxies: the proxies that may report a client's address";
            return Err(("proxy_protocol", why.to_owned()));
        }
        Ok(())
    }

    /// Returns the limits of the HTTP server.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.header_timeout = Duration::from_secs(self.header_timeout_seconds);
        limits.keepalive = Duration::from_secs(self.keepalive_seconds);
        limits.write_timeout = Duration::from_secs(self.write_timeout_seconds);
        limits.connections_max = self.connections_max;
        limits.connections_per_address_max = self.connections_per_address_max;
        limits.requests_per_connection_max = self.requests_per_connection_max;
        // `validate` has limited it to 1 MiB.
        limits.header_bytes_max = self.header_bytes_max.as_u64() as usize;
        limits.header_lines_max = self.header_lines_max;
        limits.h2_streams_max = self.h2_streams_max;
        limits.proxy_protocol = self.proxy_protocol;
        limits.answer_plain = self.answer_plain;
        limits
    }

    /// Returns `buffered_bytes_max` as a length in memory.
    pub fn buffered_bytes_max(&self) -> usize {
        usize::try_from(self.buffered_bytes_max.as_u64()).unwrap_or(usize::MAX)
    }

    /// Returns the proxies that may report the client's address.
    pub fn trust(&self) -> Result<TrustedProxies, pixelgate::errors::TrustError> {
        TrustedProxies::new(&self.trusted_proxies, self.client_ip_header.as_deref())
    }

    /// Returns the number of worker threads.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_limits_are_those_of_the_server() {
        assert_eq!(format!("{:?}", Config::default().limits()), format!("{:?}", Limits::default()));
    }

    #[test]
    fn each_limit_has_a_smallest_and_a_largest_value() {
        let refused = |set: fn(&mut Config)| {
            let mut config = Config::default();
            set(&mut config);
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(refused(|c| c.header_bytes_max = ByteSize::kib(1)), None);
        assert_eq!(refused(|c| c.header_bytes_max = ByteSize::b(1023)), Some("header_bytes_max"));
        assert_eq!(refused(|c| c.header_bytes_max = ByteSize::mib(1)), None);
        assert_eq!(refused(|c| c.header_bytes_max = ByteSize::mib(2)), Some("header_bytes_max"));
        assert_eq!(refused(|c| c.header_lines_max = 1), None);
        assert_eq!(refused(|c| c.header_lines_max = 0), Some("header_lines_max"));
        assert_eq!(refused(|c| c.header_lines_max = 250), None);
        assert_eq!(refused(|c| c.header_lines_max = 251), Some("header_lines_max"));
        assert_eq!(refused(|c| c.h2_streams_max = 1), None);
        assert_eq!(refused(|c| c.h2_streams_max = 0), Some("h2_streams_max"));
        assert_eq!(refused(|c| c.h2_streams_max = 10_001), Some("h2_streams_max"));
        assert_eq!(refused(|c| c.write_timeout_seconds = 0), Some("write_timeout_seconds"));
        assert_eq!(refused(|c| c.buffered_bytes_max = ByteSize::mib(8)), None);
        let small = |c: &mut Config| c.buffered_bytes_max = ByteSize::b((8 << 20) - 1);
        assert_eq!(refused(small), Some("buffered_bytes_max"));
        assert_eq!(refused(|c| c.proxy_protocol = true), Some("proxy_protocol"));
        let trusting = |c: &mut Config| {
            c.proxy_protocol = true;
            c.trusted_proxies = vec!["10.0.0.0/8".to_owned()];
        };
        assert_eq!(refused(trusting), None);
    }
}
