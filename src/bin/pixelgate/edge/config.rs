//! The `[edge]` section: keys, defaults, units and limits (SPEC 9).

use super::listen;
use super::origin_url::OriginUrl;
use bytesize::ByteSize;
use pixelgate::TrustedProxies;
use pixelgate::http_server::Limits;
use serde::Deserialize;
use serde::de::Error as _;
use std::path::PathBuf;
use std::time::Duration;

/// Most worker threads that may be asked for: more than any machine has cores.
const THREADS_MAX: usize = 1024;
/// Longest of the timeouts below, in seconds: a day.
const SECONDS_MAX: u64 = 86_400;
/// Bounds of `header_bytes_max`: a browser's header with its cookies has to fit, and Pingora's own
/// bound is at the upper one.
const HEADER_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 20;
/// Most lines of a header that may be allowed: Pingora's own bound, less the lines it adds.
const HEADER_LINES_MAX: usize = 250;
/// Most streams at once on one HTTP/2 connection that may be allowed.
const H2_STREAMS_MAX: u32 = 10_000;

/// The `[edge]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Plain listeners: `address:port` or `unix:/path`. Port 0 lets the kernel choose.
    pub listen: Vec<String>,
    /// TLS listeners.
    pub tls: Vec<TlsListener>,
    /// Where everything that is not an event goes; empty: answered 404.
    #[serde(deserialize_with = "one_or_many")]
    pub origin: Vec<String>,
    /// Certificates that origins are verified against, PEM; without it the machine's.
    pub origin_ca: Option<PathBuf>,
    /// What an origin is asked for to learn whether it is well; without it, a connection does.
    pub origin_health_path: Option<String>,
    /// Pause between two checks of an origin's health.
    pub origin_health_seconds: u64,
    /// How long an origin may be silent in the middle of an exchange.
    pub origin_timeout_seconds: u64,
    /// Worker threads; 0 for one a core.
    pub threads: usize,
    /// How long a kept connection may be idle.
    pub keepalive_seconds: u64,
    /// How long a request's header may take from its first byte to its last.
    pub header_timeout_seconds: u64,
    /// How long a client may take to take a piece of its answer.
    pub write_timeout_seconds: u64,
    /// Most connections at once.
    pub connections_max: usize,
    /// Most connections at once from one address; 0: no limit.
    pub connections_per_address_max: usize,
    /// Most requests on one connection; 0: no limit.
    pub requests_per_connection_max: u32,
    /// Largest header of a request.
    pub header_bytes_max: ByteSize,
    /// Most lines of a request's header.
    pub header_lines_max: usize,
    /// Most requests at once on one HTTP/2 connection.
    pub h2_streams_max: u32,
    /// Whether the front door answers plain events itself; if not, all take Pingora's own path.
    pub answer_plain: bool,
    /// How long a stop waits for requests in flight.
    pub shutdown_grace_seconds: u64,
    /// Addresses and networks whose word on the client's address is taken.
    pub trusted_proxies: Vec<String>,
    /// The header in which they give it; without one `X-Forwarded-For` or `Forwarded`.
    pub client_ip_header: Option<String>,
    /// Whether each TCP connection begins with a PROXY header, from one of `trusted_proxies`.
    pub proxy_protocol: bool,
    /// Where small state is kept across restarts.
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
            answer_plain: true,
            shutdown_grace_seconds: 10,
            trusted_proxies: Vec::new(),
            client_ip_header: None,
            proxy_protocol: limits.proxy_protocol,
            state_dir: PathBuf::from("data"),
        }
    }
}

/// One entry of `edge.tls`. Entries with one address share its listener, see [`tls`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsListener {
    /// `address:port`.
    pub listen: String,
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

/// What is wrong: the key below `edge.`, and why.
type Wrong = (&'static str, String);

impl Config {
    /// Checks what can be checked without touching the network.
    pub fn validate(&self) -> Result<(), Wrong> {
        if self.listen.is_empty() && self.tls.is_empty() {
            return Err(("listen", "names no listener, and edge.tls has none either".to_owned()));
        }
        for address in &self.listen {
            listen::Address::parse(address).map_err(|why| ("listen", why))?;
        }
        for tls in &self.tls {
            match listen::Address::parse(&tls.listen).map_err(|why| ("tls", why))? {
                listen::Address::Tcp(_) => {}
                listen::Address::Unix(_) => {
                    return Err(("tls", "listens on TCP addresses only".to_owned()));
                }
            }
        }
        for url in &self.origin {
            OriginUrl::parse(url).map_err(|why| ("origin", why))?;
        }
        if let Some(path) = &self.origin_health_path
            && !(path.starts_with('/') && path.parse::<http::uri::PathAndQuery>().is_ok())
        {
            return Err((
                "origin_health_path",
                format!("`{path}` is no path, such as \"/health\""),
            ));
        }
        self.trust().map_err(|e| match e {
            pixelgate::TrustError::Network(_) => ("trusted_proxies", e.to_string()),
            pixelgate::TrustError::Header(_) => ("client_ip_header", e.to_string()),
        })?;
        if self.threads > THREADS_MAX {
            return Err(("threads", format!("{THREADS_MAX} are the most")));
        }
        if self.connections_max == 0 {
            return Err(("connections_max", "must be at least 1".to_owned()));
        }
        for (key, seconds) in [
            ("keepalive_seconds", self.keepalive_seconds),
            ("header_timeout_seconds", self.header_timeout_seconds),
            ("origin_health_seconds", self.origin_health_seconds),
            ("origin_timeout_seconds", self.origin_timeout_seconds),
            ("write_timeout_seconds", self.write_timeout_seconds),
        ] {
            if !(1..=SECONDS_MAX).contains(&seconds) {
                return Err((key, format!("must be 1 to {SECONDS_MAX}")));
            }
        }
        if self.shutdown_grace_seconds > SECONDS_MAX {
            return Err(("shutdown_grace_seconds", format!("{SECONDS_MAX} are the most")));
        }
        self.validate_limits()
    }

    fn validate_limits(&self) -> Result<(), Wrong> {
        if !HEADER_BYTES.contains(&self.header_bytes_max.as_u64()) {
            return Err(("header_bytes_max", "must be 1KiB to 1MiB".to_owned()));
        }
        if !(1..=HEADER_LINES_MAX).contains(&self.header_lines_max) {
            return Err(("header_lines_max", format!("must be 1 to {HEADER_LINES_MAX}")));
        }
        if !(1..=H2_STREAMS_MAX).contains(&self.h2_streams_max) {
            return Err(("h2_streams_max", format!("must be 1 to {H2_STREAMS_MAX}")));
        }
        if self.proxy_protocol && self.trusted_proxies.is_empty() {
            let why = "needs edge.trusted_proxies: who may name the client's address?";
            return Err(("proxy_protocol", why.to_owned()));
        }
        Ok(())
    }

    /// What the front door allows.
    pub fn limits(&self) -> Limits {
        Limits {
            header_timeout: Duration::from_secs(self.header_timeout_seconds),
            keepalive: Duration::from_secs(self.keepalive_seconds),
            write_timeout: Duration::from_secs(self.write_timeout_seconds),
            connections_max: self.connections_max,
            connections_per_address_max: self.connections_per_address_max,
            requests_per_connection_max: self.requests_per_connection_max,
            // At most a mebibyte, see `validate`.
            header_bytes_max: self.header_bytes_max.as_u64() as usize,
            header_lines_max: self.header_lines_max,
            h2_streams_max: self.h2_streams_max,
            proxy_protocol: self.proxy_protocol,
            answer_plain: self.answer_plain,
        }
    }

    /// Whose word on the client's address is taken.
    pub fn trust(&self) -> Result<TrustedProxies, pixelgate::TrustError> {
        TrustedProxies::new(&self.trusted_proxies, self.client_ip_header.as_deref())
    }

    /// Worker threads in number.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// One value or a list of them, as `edge.origin` takes it.
fn one_or_many<'de, D>(deserializer: D) -> Result<Vec<String>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    match toml::Value::deserialize(deserializer)? {
        toml::Value::String(one) => Ok(vec![one]),
        toml::Value::Array(many) => {
            let text = |value: toml::Value| match value {
                toml::Value::String(text) => Ok(text),
                other => {
                    Err(D::Error::custom(format!("expected a text, found {}", other.type_str())))
                }
            };
            many.into_iter().map(text).collect()
        }
        other => {
            Err(D::Error::custom(format!("expected a text or a list, found {}", other.type_str())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_the_edge_are_the_front_doors_own() {
        assert_eq!(format!("{:?}", Config::default().limits()), format!("{:?}", Limits::default()));
    }

    #[test]
    fn each_limit_has_its_own_limits() {
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
        assert_eq!(refused(|c| c.proxy_protocol = true), Some("proxy_protocol"));
        let trusting = |c: &mut Config| {
            c.proxy_protocol = true;
            c.trusted_proxies = vec!["10.0.0.0/8".to_owned()];
        };
        assert_eq!(refused(trusting), None);
    }
}
