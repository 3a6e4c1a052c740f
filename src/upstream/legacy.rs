//! `legacy`: an existing backend without a batch API (SPEC 7). Each event is replayed as a `GET`
//! request in canonical form (SPEC 3), with the client's `User-Agent`, `Referer` and address
//! (`X-Forwarded-For`), and the headers of `events.context_headers`, such as `Accept-Language`.
//! With `keep_host`, the request has the client's `Host`, and HTTP/2 is not used. Requests run in
//! parallel over connections that stay open.
//!
//! # Requests whose result is unknown
//!
//! Such a backend does not know event ids, so an event that is sent twice counts twice. Usually
//! it is clear whether an event counted: after a refused connection, or a response of 500 or 503,
//! it did not. The result is *unknown* if the request was sent and no response arrived, or if a
//! gateway lost the backend (502, 504). An event without revenue is then sent again. For an event
//! with revenue `on_unknown` decides:
//!
//! - `dead` (default): the event becomes a dead letter. An operator can look up the amount, and
//!   `pixelgate dead replay` sends the event again. A missing amount is in the list of dead
//!   letters; an amount that was booked twice would be in no list.
//! - `retry`: the event is sent again, and may count twice.
//!
//! The result of a request that a stop cuts off is unknown, too. In one case this setting has no
//! effect: events in flight while this process is killed are sent again after the next start, with
//! or without revenue.
//!
//! After a response that shows trouble of the backend, the rest of the batch is not sent, because
//! it would add load and unknown results.

use crate::config_error::ConfigError;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use url::Url;

use super::batch::Batch;
use super::client::Client;
use super::contract::Upstream;
use super::http::{PORTAL, parse_url};
use super::limits::CONNECTION_SECONDS_DEFAULT;
use super::outcome::{Failure, Outcome, Part};
use super::tls::Tls;
use super::{answer, client};
use crate::clock::now;
use crate::env::Secret;
use crate::event::{PORTAL_MAX, Record, canonical_query};

/// Maximum number of batches in flight. The second starts while the first waits for its last
/// responses.
const BATCHES_MAX: usize = 2;
/// The longest time that a connection stays open without a request, in seconds. Old servers close
/// idle connections after 5 s, and if one is closed during a request, the result of its event is
/// unknown.
const IDLE_SECONDS_MAX: u64 = 4;

/// Headers that frame a request or a connection: `events.context_headers` cannot set them here.
const OWN_HEADERS: [HeaderName; 8] = [
    header::HOST,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The settings of an `[[upstream]]` of kind `legacy`.
///
/// ```
/// use pixelgate::config::{LegacyUpstream, Secret, Upstream};
///
/// let mut backend = LegacyUpstream::default();
/// backend.url = Secret::new("http://backend.example/v1/event/");
/// assert!(Upstream::new("backend", backend).validate().is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The URL to which events are sent, with the event path. May hold `${ENV}`, and `{portal}`,
    /// which is replaced by the number of each event's portal.
    pub url: Secret,
    /// Whether each request has the `Host` that the event came with. Default: `false`.
    pub keep_host: bool,
    /// Maximum number of requests in flight, 1 to 64. Default: 8.
    pub concurrency_max: usize,
    /// The longest time for one request, in seconds, 1 to 300. Default: 10.
    pub timeout_seconds: u64,
    /// The longest time that a connection is used, in seconds, 1 to 86,400. Default: 300.
    pub connection_seconds_max: u64,
    /// The proxy for all requests, an `http://` or `https://` URL. Empty: no proxy. `None`, the
    /// default: the proxy that the environment names. May hold `${ENV}`.
    pub proxy: Option<Secret>,
    /// What happens to an event with revenue whose result is unknown. Default: `dead`.
    pub on_unknown: OnUnknown,
}

/// What happens to an event with revenue whose result is unknown: the request was sent, and no
/// response arrived or a gateway lost the backend (502, 504).
///
/// ```
/// use pixelgate::config::{LegacyUpstream, OnUnknown};
///
/// let mut backend = LegacyUpstream::default();
/// backend.on_unknown = OnUnknown::Retry;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// The event is sent again, and may count twice.
    Retry,
    /// The event becomes a dead letter, and an operator decides.
    #[default]
    Dead,
}

/// The upstream of kind `legacy`: see the [module](self).
pub struct Legacy {
    replayer: Arc<Replayer>,
    /// One permit for each request in flight, over all batches.
    requests: Arc<Semaphore>,
    /// Whether a stop cuts off the requests under way.
    cut: watch::Sender<bool>,
}

struct Replayer {
    client: Client,
    address: Address,
    keep_host: bool,
    on_unknown: OnUnknown,
    /// Whether the last batch met trouble. If so, each request waits for the previous response.
    careful: AtomicBool,
}

/// The URL to which events are sent.
struct Address {
    /// The URL. If it is configured with `{portal}`, a portal's number is in its place.
    url: Url,
    /// The URL as configured, if it has `{portal}`.
    template: Option<String>,
}

/// One event as a request.
struct Replay {
    url: Url,
    headers: HeaderMap,
    has_revenue: bool,
}

/// The end of a request: the outcome of its event, and the trouble that stops later requests.
struct End {
    outcome: Outcome,
    trouble: Option<Outcome>,
}

/// The outcomes of a batch's events so far.
struct Ends {
    outcomes: Vec<Option<Outcome>>,
    trouble: Option<Outcome>,
    /// The places of the events whose requests are under way, and whether each event has revenue.
    under_way: BTreeMap<usize, bool>,
}

// Implemented by hand, because the URL may hold credentials.
impl fmt::Debug for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Legacy(..)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::new(""),
            keep_host: false,
            concurrency_max: 8,
            timeout_seconds: 10,
            connection_seconds_max: CONNECTION_SECONDS_DEFAULT,
            proxy: None,
            on_unknown: OnUnknown::default(),
        }
    }
}

impl Config {
    /// Checks the limits and the URL.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.setup().validate()?;
        Address::new(&self.url).map(drop)
    }

    fn setup(&self) -> client::Setup {
        client::Setup {
            timeout_seconds: self.timeout_seconds,
            connections: self.concurrency_max,
            idle_seconds: IDLE_SECONDS_MAX,
            connection_seconds_max: self.connection_seconds_max,
            http1_only: self.keep_host,
            proxy: self.proxy.clone(),
        }
    }

    /// Builds the upstream. Resolves no name and opens no connection.
    pub(in crate::upstream) fn build(&self) -> Result<Legacy, ConfigError> {
        let address = Address::new(&self.url)?;
        let replayer = Replayer {
            client: Client::build(&address.url, self.setup(), &Tls::default())?,
            address,
            keep_host: self.keep_host,
            on_unknown: self.on_unknown,
            careful: AtomicBool::new(false),
        };
        let requests = Arc::new(Semaphore::new(self.concurrency_max));
        Ok(Legacy { replayer: Arc::new(replayer), requests, cut: watch::Sender::new(false) })
    }
}

impl Address {
    fn new(url: &Secret) -> Result<Address, ConfigError> {
        let text = url.expose();
        let template = text.contains(PORTAL).then(|| text.to_owned());
        // An event must not choose the machine that it is sent to. The greatest number is too large
        // for a port and for a part of an IPv4 address, so `{portal}` there is refused.
        let greatest = Secret::new(text.replace(PORTAL, &PORTAL_MAX.to_string()));
        let url = parse_url(&greatest)?;
        let least = Url::parse(&text.replace(PORTAL, "1")).ok();
        // Nor must an event choose the credentials of the request.
        let credentials =
            |url: &Url| (url.username().to_owned(), url.password().map(str::to_owned));
        if least.as_ref().map(credentials) != Some(credentials(&url)) {
            let why = "may hold {portal} in its host, its path and its query only";
            return Err(ConfigError::new("url", why));
        }
        Ok(Address { url, template })
    }

    /// The URL for a portal. `None` if it is not a URL, which is not expected of an address that
    /// was checked with the longest number.
    fn of(&self, portal: u64) -> Option<Url> {
        match &self.template {
            None => Some(self.url.clone()),
            Some(template) => Url::parse(&template.replace(PORTAL, &portal.to_string())).ok(),
        }
    }
}

#[async_trait]
impl Upstream for Legacy {
    fn kind(&self) -> &'static str {
        "legacy"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let outcomes = vec![None; batch.records().len()];
        let mut ends = Ends { outcomes, trouble: None, under_way: BTreeMap::new() };
        let mut cut = self.cut.subscribe();
        let is_cut = tokio::select! {
            biased;
            () = self.send_all(batch, &mut ends) => false,
            // Never an error, because the sender lives as long as this upstream.
            _ = cut.wait_for(|cut| *cut) => true,
        };
        if is_cut {
            ends.cut_off(&self.replayer);
        }
        self.replayer.careful.store(ends.trouble.is_some(), Ordering::Relaxed);
        ends.gather()
    }

    fn cut_off(&self) {
        self.cut.send_replace(true);
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }
}

impl Legacy {
    /// Sends the events until the first trouble, and notes their ends. If the future is dropped,
    /// the requests under way stay noted in `ends`.
    async fn send_all(&self, batch: &Batch, ends: &mut Ends) {
        let mut sending = JoinSet::new();
        for (place, record) in batch.records().iter().enumerate() {
            let Some(replay) = self.replayer.prepare(record) else {
                ends.outcomes[place] = Some(Outcome::unreadable());
                continue;
            };
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.requests).acquire_owned().await else { break };
            // Reads the responses that have arrived before sending more.
            while let Some(done) = sending.try_join_next() {
                ends.note(done.ok());
            }
            if ends.trouble.is_some() {
                break;
            }
            let replayer = Arc::clone(&self.replayer);
            ends.under_way.insert(place, replay.has_revenue);
            sending.spawn(async move {
                let end = replayer.send(replay).await;
                drop(permit);
                (place, end)
            });
            if self.replayer.careful.load(Ordering::Relaxed) {
                ends.note(sending.join_next().await.and_then(Result::ok));
            }
        }
        // Waits for all requests that were sent, whose results are known only then.
        while let Some(done) = sending.join_next().await {
            ends.note(done.ok());
        }
    }
}

impl Replayer {
    fn prepare(&self, record: &[u8]) -> Option<Replay> {
        let record = Record::decode(record).ok()?;
        let event = record.event().ok()?;
        let query = canonical_query(&event);
        let mut url = self.address.of(record.portal)?;
        let query = match url.query() {
            Some(own) if !own.is_empty() => format!("{own}&{query}"),
            _ => query,
        };
        url.set_query(Some(&query));
        Some(Replay { url, headers: self.headers(&record), has_revenue: event.revenue.is_some() })
    }

    /// The stored headers that the event came with.
    fn headers(&self, record: &Record<'_>) -> HeaderMap {
        let context = &record.context;
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: Option<&str>| {
            // A value that is not valid in a header is left out, because the event counts without
            // it.
            if let Some(value) = value.and_then(|v| HeaderValue::from_bytes(v.as_bytes()).ok()) {
                headers.insert(name, value);
            }
        };
        for (name, value) in &context.further().headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok();
            if let Some(name) = name.filter(|name| !OWN_HEADERS.contains(name)) {
                set(name, Some(value));
            }
        }
        let ip = context.ip.map(|ip| ip.to_string());
        set(header::USER_AGENT, context.user_agent.as_deref());
        set(header::REFERER, context.referer.as_deref());
        set(HeaderName::from_static("x-forwarded-for"), ip.as_deref());
        if self.keep_host {
            set(header::HOST, context.further().host.as_deref());
        }
        headers
    }

    async fn send(&self, replay: Replay) -> End {
        let has_revenue = replay.has_revenue;
        match self.client.get(replay.url).headers(replay.headers).send().await {
            Ok(answer) => {
                let status = answer.status();
                let outcome = match status.as_u16() {
                    // A `GET` is too large if its URI (414) or its header (431) is too long.
                    414 | 431 => Outcome::TooLarge(Failure::answered(status.as_u16())),
                    _ => answer::outcome(status, answer.headers(), now()),
                };
                client::drain(answer).await;
                let unknown = matches!(status.as_u16(), 502 | 504);
                self.end(outcome, unknown && has_revenue)
            }
            Err(error) => {
                let unknown = !error.is_connect();
                let outcome = Outcome::Retry(Failure::new(self.client.describe(&error)));
                self.end(outcome, unknown && has_revenue)
            }
        }
    }

    /// The end of a request with this outcome. `at_stake` says that the result is unknown and the
    /// event has revenue.
    fn end(&self, outcome: Outcome, at_stake: bool) -> End {
        match outcome {
            Outcome::Retry(failure) => {
                let trouble = Some(Outcome::Retry(failure.clone()));
                if at_stake && self.on_unknown == OnUnknown::Dead {
                    let what = format!("{}; it may have counted, and has revenue", failure.what);
                    let dead = Failure { what: what.into(), ..failure };
                    return End { outcome: Outcome::Dead(dead), trouble };
                }
                End { outcome: Outcome::Retry(failure), trouble }
            }
            Outcome::Fault(_) => End { trouble: Some(outcome.clone()), outcome },
            _ => End { outcome, trouble: None },
        }
    }
}

impl Ends {
    fn note(&mut self, done: Option<(usize, End)>) {
        // A request that panicked has no outcome: its event is retried.
        let Some((place, end)) = done else { return };
        self.under_way.remove(&place);
        self.outcomes[place] = Some(end.outcome);
        self.trouble = self.trouble.take().or(end.trouble);
    }

    /// Ends the requests that a stop has cut off. Their results are unknown.
    fn cut_off(&mut self, replayer: &Replayer) {
        for (place, has_revenue) in std::mem::take(&mut self.under_way) {
            let failure = Failure::new("cut off by a stop");
            self.outcomes[place] = Some(replayer.end(Outcome::Retry(failure), has_revenue).outcome);
        }
    }

    /// The outcome of the batch: `Mixed` if its events ended differently.
    fn gather(self) -> Outcome {
        let not_sent = self.trouble.clone();
        let not_sent = not_sent.unwrap_or_else(|| Outcome::Retry(Failure::new("not attempted")));
        let mut parts: Vec<Part> = Vec::new();
        for (place, outcome) in self.outcomes.into_iter().enumerate() {
            let outcome = outcome.unwrap_or_else(|| not_sent.clone());
            // Each rejected event is a part of its own: delivery would split a part of two and send
            // both again.
            let alone = matches!(outcome, Outcome::Rejected(_) | Outcome::TooLarge(_));
            match parts.iter_mut().find(|part| !alone && part.outcome == outcome) {
                Some(part) => part.places.push(place),
                None => parts.push(Part { places: vec![place], outcome }),
            }
        }
        // Reports the trouble even if no event must be retried.
        if let Some(outcome) = self.trouble
            && !parts.iter().any(|part| part.outcome == outcome)
        {
            parts.push(Part { places: Vec::new(), outcome });
        }
        match &mut parts[..] {
            [only] => std::mem::replace(&mut only.outcome, Outcome::Delivered),
            _ => Outcome::Mixed(parts),
        }
    }
}
