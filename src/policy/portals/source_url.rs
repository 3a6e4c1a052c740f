//! A list behind a URL, which is fetched repeatedly.
//!
//! Requests are conditional (`ETag`, `Last-Modified`), so that the server can answer 304. A new
//! list is written to a file in the state folder as it arrives, and read from there. A valid list
//! becomes the cache for the next start. A list that the folder refuses is used all the same, and
//! stored as soon as the folder takes it. A response with neither a length nor chunks is not used,
//! because a broken connection would look like its end.
//!
//! Redirects are followed on the same origin only, because the headers may hold a secret.

use std::{
    error::Error as _,
    fmt::Write as _,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::{
    HeaderMap, HeaderValue, StatusCode, Version,
    header::{
        ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE,
        IF_NONE_MATCH, LAST_MODIFIED, TRANSFER_ENCODING,
    },
};
use jiff::Timestamp;
use reqwest::{Client, ClientBuilder, Response, redirect};
use tokio::sync::mpsc;
use url::Url;

use super::cache;
use super::cache::{About, Incoming, Unstored, Validators};
use super::config::url_without_query;
use super::draft::ParseError;
use super::format::{Format, LIST_BYTES_MAX};
use super::list::{Content, List};
use super::look::{FETCH_SECONDS_MAX, Look};
use super::open_error::OpenError;
use super::terms::Terms;
use crate::env::Secret;
use crate::proxy;
use crate::retry_after::retry_after;

/// Limit for connecting, in seconds.
const CONNECT_SECONDS_MAX: u64 = 5;
/// Limit for the silence between two reads, in seconds.
const READ_SECONDS_MAX: u64 = 10;
/// The longest use of one connection, in seconds.
const CONNECTION_SECONDS_MAX: u64 = 300;
/// The most redirects that one request follows.
const REDIRECTS_MAX: usize = 5;
/// The most pieces of a body that wait to be written to the file.
const PIECES_MAX: usize = 8;

/// A list behind a URL.
#[derive(Debug)]
pub(super) struct UrlSource {
    url: Url,
    headers: HeaderMap,
    proxy: Option<Secret>,
    state_dir: PathBuf,
    /// The client and the time at which it was built: at the first look, because `check` and
    /// `explain` need none, and again after [`CONNECTION_SECONDS_MAX`], so that the name of the
    /// server is looked up again.
    client: Option<(Client, Instant)>,
    validators: Validators,
    /// The list that the cache on disk holds.
    cached: Option<Content>,
    /// The list in use, if the state folder did not take it.
    unstored: Option<Unstored>,
}

/// A list from an earlier run, and how long ago the server confirmed it.
pub(super) type Cached = Option<(List, Duration)>;

impl UrlSource {
    /// Opens the source with the cached list, if there is one. Never fails: the error is that of a
    /// build without the feature `http`.
    pub(super) fn open(
        url: Url,
        headers: HeaderMap,
        proxy: Option<Secret>,
        state_dir: &Path,
        terms: &Arc<Terms>,
    ) -> Result<(UrlSource, Cached), OpenError> {
        let mut source = UrlSource {
            url,
            headers,
            proxy,
            state_dir: state_dir.to_owned(),
            client: None,
            validators: Validators::default(),
            cached: None,
            unstored: None,
        };
        let cached = source.take_cache(terms).unwrap_or_else(|error| {
            let folder = state_dir.display();
            log::warn!("portals: the cached list in the folder {folder} cannot be used: {error}");
            None
        });
        Ok((source, cached))
    }

    fn take_cache(&mut self, terms: &Arc<Terms>) -> Result<Cached, ParseError> {
        let Some(mut found) = cache::find(&self.state_dir, self.url.as_str())? else {
            return Ok(None);
        };
        let list = List::read(found.about.format, &mut found.list, terms)?;
        self.validators = found.about.validators;
        self.cached = Some(list.content);
        Ok(Some((list, found.age)))
    }

    /// Asks the server for a list other than the one in use.
    pub(super) async fn look(&mut self, current: Option<Content>, terms: &Arc<Terms>) -> Look {
        match self.fetch(current, terms).await {
            Ok(look) => look,
            Err(fault) => Look::Failed(format!("{}{fault}", url_without_query(&self.url))),
        }
    }

    /// Why the list in use is not in the state folder, if it is not.
    pub(super) fn unstored(&self) -> Option<&str> {
        self.unstored.as_ref().map(|unstored| unstored.why.as_str())
    }

    async fn fetch(
        &mut self,
        current: Option<Content>,
        terms: &Arc<Terms>,
    ) -> Result<Look, String> {
        // A list that is neither stored nor at hand is asked for as a whole, to be stored.
        let is_at_hand = self.unstored.as_ref().is_none_or(Unstored::is_at_hand);
        let conditionally = current.is_some() && is_at_hand;
        let mut response = self.ask(conditionally).await?;
        match response.status() {
            StatusCode::NOT_MODIFIED if conditionally => {
                self.confirm(current).await;
                return Ok(Look::Same);
            }
            StatusCode::OK => {}
            status => {
                let what = format!("{}: answered {status}", url_without_query(&self.url));
                return Ok(match retry_after(response.headers(), now(terms)) {
                    Some(wait) => Look::Deferred(what, wait),
                    None => Look::Failed(what),
                });
            }
        }
        let receipt = self.receipt(&response)?;
        let validators = receipt.about.validators.clone();
        // If the validators are those of the cached list, the cache is not written again.
        let cached = self.cached.filter(|_| validators == self.validators);
        let (pieces, received) = mpsc::channel(PIECES_MAX);
        let terms = Arc::clone(terms);
        let reading = tokio::task::spawn_blocking(move || receipt.read(received, cached, &terms));
        while let Some(piece) = response.chunk().await.map_err(explain)? {
            // Fails if the reader has ended with an error, which is returned below.
            if pieces.send(Some(piece)).await.is_err() {
                break;
            }
        }
        let _ = pieces.send(None).await;
        let (list, unstored) = reading.await.map_err(|error| format!(": {error}"))??;
        self.validators = validators;
        self.cached = unstored.is_none().then_some(list.content);
        self.unstored = unstored;
        match current == Some(list.content) {
            true => Ok(Look::Same),
            false => Ok(Look::New(Box::new(list))),
        }
    }

    /// Notes on disk that the server has confirmed the list in use.
    async fn confirm(&mut self, current: Option<Content>) {
        let Some(unstored) = self.unstored.take() else {
            let folder = self.state_dir.clone();
            let _ = tokio::task::spawn_blocking(move || cache::confirm(&folder)).await;
            return;
        };
        // Fails only if the runtime ends.
        let storing = tokio::task::spawn_blocking(move || unstored.store_again());
        self.unstored = storing.await.ok().flatten();
        if self.unstored.is_none() {
            self.cached = current;
        }
    }

    async fn ask(&mut self, conditionally: bool) -> Result<Response, String> {
        let limit = Duration::from_secs(CONNECTION_SECONDS_MAX);
        let client = match self.client.take_if(|(_, since)| since.elapsed() < limit) {
            Some(known) => self.client.insert(known),
            None => {
                let builder = proxy::proxied(builder(), self.proxy.as_ref());
                let client = builder.map_err(|e| format!(": {e}"))?.build().map_err(explain)?;
                self.client.insert((client, Instant::now()))
            }
        };
        let (client, _) = client;
        let mut request = client.get(self.url.clone()).headers(self.headers.clone());
        request = request.header(ACCEPT_ENCODING, "gzip");
        if conditionally {
            if let Some(etag) = &self.validators.etag {
                request = request.header(IF_NONE_MATCH, etag);
            }
            if let Some(date) = &self.validators.last_modified {
                request = request.header(IF_MODIFIED_SINCE, date);
            }
        }
        request.send().await.map_err(|error| self.explain_request(error))
    }

    /// Does what [`explain`] does, and names the proxy if no connection could be made through it.
    fn explain_request(&self, error: reqwest::Error) -> String {
        let through = proxy::place(self.proxy.as_ref(), &self.url);
        match through.filter(|_| error.is_connect()) {
            Some(proxy) => format!(": through the proxy {proxy}{}", explain(error)),
            None => explain(error),
        }
    }

    /// What the header of an answer says about the list in its body.
    fn receipt(&self, response: &Response) -> Result<Receipt, String> {
        let headers = response.headers();
        let text = |name| headers.get(&name).and_then(|value: &HeaderValue| value.to_str().ok());
        let framed = response.version() >= Version::HTTP_2
            || headers.contains_key(CONTENT_LENGTH)
            || headers.contains_key(TRANSFER_ENCODING);
        if !framed {
            return Err(": the response has no length, so it may be cut off".to_owned());
        }
        let gzip = is_gzip(text(CONTENT_ENCODING).unwrap_or_default())
            .ok_or(": the Content-Encoding is not gzip")?;
        let format = format(text(CONTENT_TYPE), self.url.path());
        let format = format.ok_or(
            ": the format is unknown, because neither Content-Type nor name say toml, json or text",
        )?;
        let validators = Validators {
            etag: text(ETAG).map(str::to_owned),
            last_modified: text(LAST_MODIFIED).map(str::to_owned),
        };
        let about = About { url: self.url.to_string(), format, validators };
        Ok(Receipt { folder: self.state_dir.clone(), about, gzip })
    }
}

/// How to read and cache the list that is being received.
struct Receipt {
    folder: PathBuf,
    about: About,
    gzip: bool,
}

impl Receipt {
    /// Receives a list, reads it, and caches it unless it is the `cached` one. Returns the list as
    /// it was received, too, if the disk does not take it.
    fn read(
        self,
        mut received: mpsc::Receiver<Option<Bytes>>,
        cached: Option<Content>,
        terms: &Arc<Terms>,
    ) -> Result<(List, Option<Unstored>), String> {
        let fault = |error: io::Error| format!(": {error}");
        let disk = |error: io::Error| format!(": cannot be stored in the state folder: {error}");
        let incoming = Incoming::create(&self.folder).map_err(disk)?;
        let bounded = Bounded { incoming, left: LIST_BYTES_MAX };
        let mut body = match self.gzip {
            true => Body::Gzip(Box::new(MultiGzDecoder::new(bounded))),
            false => Body::Plain(bounded),
        };
        loop {
            match received.blocking_recv() {
                Some(Some(piece)) => body.write(&piece).map_err(fault)?,
                Some(None) => break,
                None => return Err(": the response was cut off".to_owned()),
            }
        }
        let mut incoming = body.finish().map_err(fault)?;
        let list = incoming.list().map_err(ParseError::from);
        let list = list.and_then(|file| List::read(self.about.format, file, terms));
        let list = list.map_err(|error| place(&error))?;
        if cached == Some(list.content) {
            cache::confirm(&self.folder);
            return Ok((list, None));
        }
        Ok((list, incoming.store(self.about)))
    }
}

enum Body {
    Plain(Bounded),
    Gzip(Box<MultiGzDecoder<Bounded>>),
}

impl Body {
    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        match self {
            Body::Plain(body) => body.write_all(piece),
            Body::Gzip(body) => body.write_all(piece),
        }
    }

    fn finish(self) -> io::Result<Incoming> {
        match self {
            Body::Plain(body) => Ok(body.incoming),
            Body::Gzip(body) => Ok(body.finish()?.incoming),
        }
    }
}

/// A writer that fails after [`LIST_BYTES_MAX`] bytes: a short gzip stream can become a long text.
struct Bounded {
    incoming: Incoming,
    left: u64,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            let what = format!("larger than {} MiB", LIST_BYTES_MAX >> 20);
            io::Error::new(io::ErrorKind::FileTooLarge, what)
        })?;
        self.incoming.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn builder() -> ClientBuilder {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread has just installed a provider, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    let same_origin = redirect::Policy::custom(|attempt| {
        let from = attempt.previous().first().map(Url::origin);
        match from.is_some_and(|from| from == attempt.url().origin()) {
            true if attempt.previous().len() <= REDIRECTS_MAX => attempt.follow(),
            true => attempt.error("too many redirects"),
            false => attempt.error("redirected to another origin"),
        }
    });
    Client::builder()
        .user_agent(concat!("pixelgate/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(CONNECT_SECONDS_MAX))
        .read_timeout(Duration::from_secs(READ_SECONDS_MAX))
        .timeout(Duration::from_secs(FETCH_SECONDS_MAX))
        .redirect(same_origin)
}

/// The time of the edge's clock.
fn now(terms: &Terms) -> Timestamp {
    let unix_ms = i64::try_from(terms.clock.unix_ms()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(unix_ms).unwrap_or(Timestamp::MAX)
}

/// The error with the chain of its causes, without the URL, whose query may hold a secret.
fn explain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut what = format!(": {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(what, ": {error}");
        cause = error.source();
    }
    what
}

fn place(ParseError { line, column, what }: &ParseError) -> String {
    match (line, column) {
        (Some(line), Some(column)) => format!(":{line}:{column}: {what}"),
        (Some(line), None) => format!(":{line}: {what}"),
        (None, _) => format!(": {what}"),
    }
}

/// Whether a `Content-Encoding` is gzip; `None` for an unknown one. Its names have no case (RFC
/// 9110, 8.4.1).
fn is_gzip(content_encoding: &str) -> Option<bool> {
    match content_encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Some(false),
        "gzip" | "x-gzip" => Some(true),
        _ => None,
    }
}

/// The format that `Content-Type` names. If it says no more than text or is unknown, the format
/// that the name in the URL ends in.
fn format(content_type: Option<&str>, path: &str) -> Option<Format> {
    let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    match content_type.trim().to_ascii_lowercase().as_str() {
        "application/toml" | "text/toml" | "text/x-toml" => Some(Format::Toml),
        "application/json" | "text/json" => Some(Format::Json),
        "text/plain" => Format::of_name(path).or(Some(Format::Text)),
        // Probably an error page that was sent with the status 200.
        "text/html" => None,
        _ => Format::of_name(path),
    }
}
