//! The settings of a `nats` upstream.

use crate::config_error::ConfigError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::ServerAddr;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::Url;

use super::setup::{Login, Setup};
use super::subject::Subject;
use super::upstream::Nats;
use crate::env::{Secret, one_or_many};
use crate::upstream::limits::{
    CONNECTION_SECONDS_DEFAULT, TIMEOUT_SECONDS_MAX, check_connection_seconds, check_within,
};
use crate::upstream::tls::{Tls, tls_config};

/// Maximum number of servers.
pub const URLS_MAX: usize = 16;
/// Longest stream name, in characters.
pub const STREAM_CHARS_MAX: usize = 255;

/// The port of a server whose URL names none.
const PORT_DEFAULT: u16 = 4222;

/// The settings of an `[[upstream]]` of kind `nats`.
///
/// ```
/// use pixelgate::config::{NatsUpstream, Secret, Upstream};
///
/// let mut nats = NatsUpstream::default();
/// nats.urls = vec![Secret::new("nats://nats-1:4222")];
/// nats.subject = "events.{portal}".to_owned();
/// nats.stream = "EVENTS".to_owned();
/// assert!(Upstream::new("nats", nats).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The servers of one cluster, as `nats://` or `tls://` URLs, at most 16. They have
    /// `user:password@` or `token@` if the servers require it, the same in every URL. May hold
    /// `${ENV}`.
    #[serde(deserialize_with = "one_or_many")]
    pub urls: Vec<Secret>,
    /// The subject to which events are published. `{portal}` is replaced by the number of each
    /// event's portal.
    pub subject: String,
    /// The stream that stores the events. It must exist and take the subject.
    pub stream: String,
    /// A credentials file (`.creds`: a JWT and its key), which is read for every connection.
    pub credentials: Option<PathBuf>,
    /// The longest time for one attempt at a batch, in seconds, 1 to 300. Default: 10.
    pub timeout_seconds: u64,
    /// The longest time that a connection is used, in seconds, 1 to 86,400. Default: 300.
    pub connection_seconds_max: u64,
    /// Certificates (PEM) to trust instead of the machine's. If set, TLS is required.
    pub ca: Option<PathBuf>,
    /// Client certificate chain (PEM), for a server that requires one. Needs `key`.
    pub cert: Option<PathBuf>,
    /// The private key (PEM) of `cert`.
    pub key: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            subject: String::new(),
            stream: String::new(),
            credentials: None,
            timeout_seconds: 10,
            connection_seconds_max: CONNECTION_SECONDS_DEFAULT,
            ca: None,
            cert: None,
            key: None,
        }
    }
}

impl Config {
    /// Checks the limits, the URLs and the names.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_within("timeout_seconds", self.timeout_seconds, TIMEOUT_SECONDS_MAX)?;
        check_connection_seconds(self.connection_seconds_max)?;
        Subject::parse(&self.subject).map_err(|why| ConfigError::new("subject", why))?;
        check_stream(&self.stream)?;
        self.servers().map(drop)
    }

    /// Builds the upstream. Reads the certificates and credentials; opens no connection.
    pub(in crate::upstream) fn build(&self) -> Result<Nats, ConfigError> {
        let (servers, login) = self.servers()?;
        let subject =
            Subject::parse(&self.subject).map_err(|why| ConfigError::new("subject", why))?;
        if let Some(path) = &self.credentials {
            check_credentials(path)?;
        }
        let tls_required = self.ca.is_some()
            || self.cert.is_some()
            || servers.iter().any(ServerAddr::tls_required);
        Ok(Nats::new(Setup {
            tls: self.tls(tls_required)?,
            tls_required,
            servers,
            login,
            credentials: self.credentials.clone(),
            subject,
            stream: self.stream.clone(),
            timeout: Duration::from_secs(self.timeout_seconds),
        }))
    }

    /// The servers, each as `host:port`.
    pub fn hosts(&self) -> Vec<String> {
        let urls = self.urls.iter().filter_map(|url| Url::parse(url.expose()).ok());
        let host = |url: Url| {
            let port = url.port().unwrap_or(PORT_DEFAULT);
            url.host_str().map(|host| format!("{host}:{port}"))
        };
        urls.filter_map(host).collect()
    }

    /// The files that are read when the upstream is built.
    pub fn files(&self) -> [Option<&Path>; 4] {
        let Self { credentials, ca, cert, key, .. } = self;
        [credentials, ca, cert, key].map(|file| file.as_deref())
    }

    fn tls(&self, required: bool) -> Result<rustls::ClientConfig, ConfigError> {
        let tls =
            Tls { ca: self.ca.as_deref(), cert: self.cert.as_deref(), key: self.key.as_deref() };
        match tls_config(&tls, true) {
            // A server may require TLS even if the configuration does not. Without the machine's
            // certificates, such a server is not trusted, and servers without TLS still work.
            Err(_) if !required => tls_config(&tls, false),
            config => config,
        }
        .map_err(|e| if e.key() == "url" { ConfigError::new("urls", e.reason()) } else { e })
    }

    fn servers(&self) -> Result<(Vec<ServerAddr>, Login), ConfigError> {
        let wrong = |reason: String| ConfigError::new("urls", reason);
        if self.urls.is_empty() {
            let reason = "is missing: name a server, as in `[\"nats://nats.example:4222\"]`";
            return Err(wrong(reason.to_owned()));
        }
        if self.urls.len() > URLS_MAX {
            return Err(wrong(format!("must be at most {URLS_MAX}, and are {}", self.urls.len())));
        }
        let mut servers = Vec::new();
        let mut login: Option<Login> = None;
        for text in &self.urls {
            let mut url = Url::parse(text.expose())
                .map_err(|e| ConfigError::caused("urls", "must each be a URL", e))?;
            if !matches!(url.scheme(), "nats" | "tls") || !url.has_host() {
                let reason = "must each begin with nats:// or tls:// and a host";
                return Err(wrong(reason.to_owned()));
            }
            let own = Login::of(&url).map_err(|why| wrong(why.to_owned()))?;
            if *login.get_or_insert(own.clone()) != own {
                return Err(wrong("must all hold the same user and password".to_owned()));
            }
            // Cannot fail, because the URL has a host.
            let _ = (url.set_username(""), url.set_password(None));
            let server = ServerAddr::from_url(url);
            servers.push(server.map_err(|e| ConfigError::caused("urls", "cannot be used", e))?);
        }
        let login = login.unwrap_or(Login::Anonymous);
        if login != Login::Anonymous && self.credentials.is_some() {
            let reason = "cannot be used beside the user or token in `urls`";
            return Err(ConfigError::new("credentials", reason));
        }
        Ok((servers, login))
    }
}

impl Login {
    /// Reads the part before the `@`, which is `user:password` or a token, as NATS defines it.
    fn of(url: &Url) -> Result<Login, &'static str> {
        let plain = |text: &str| {
            let text = percent_decode_str(text).decode_utf8();
            text.map(String::from).map_err(|_| "hold a user or password that is not UTF-8")
        };
        match (url.username(), url.password()) {
            ("", None) => Ok(Login::Anonymous),
            (token, None) => Ok(Login::Token(plain(token)?)),
            (user, Some(password)) => Ok(Login::User(plain(user)?, plain(password)?)),
        }
    }
}

fn check_stream(stream: &str) -> Result<(), ConfigError> {
    if stream.is_empty() {
        return Err(ConfigError::new("stream", "is missing"));
    }
    let fits = |c: char| !c.is_whitespace() && !c.is_control() && !".*>/\\".contains(c);
    if stream.chars().count() <= STREAM_CHARS_MAX && stream.chars().all(fits) {
        return Ok(());
    }
    let reason = format!(
        "must be 1 to {STREAM_CHARS_MAX} characters without white space, `.`, `*`, `>`, `/`, `\\`"
    );
    Err(ConfigError::new("stream", reason))
}

fn check_credentials(path: &std::path::Path) -> Result<(), ConfigError> {
    let file = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError::caused("credentials", format!("{file} cannot be read"), e))?;
    let parsed = async_nats::ConnectOptions::new().credentials(&text);
    // The cause is dropped, because it may hold a part of the file.
    let reason = || format!("{file} does not hold a JWT and its key");
    parsed.map(drop).map_err(|_| ConfigError::new("credentials", reason()))
}
