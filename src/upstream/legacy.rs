//! `legacy`: an existing backend without a batch API. Each event is replayed as the `GET` that it
//! came as, in canonical form (SPEC 3), with the caller's `User-Agent`, `Referer` and
//! `X-Forwarded-For`; several at once over kept connections.
//!
//! # Money
//!
//! Such a backend knows no event ids, so an event that is sent twice counts twice. Mostly one
//! knows whether it counted: a connection that was refused did not count it, and a backend that
//! answers 500 or 503 says so itself. But where the request went out and no answer came, or a
//! gateway answers for a backend that it lost (502, 504), *nobody knows*. An event without
//! revenue is then sent again. For one with revenue `on_unknown` decides:
//!
//! - `dead` (default): it becomes a dead letter. A person can look the amount up, and
//!   `pixelgate dead replay` sends it again. A missing amount is found on a list; one that was
//!   booked twice is found by nobody.
//! - `retry`: it is sent again, and may count twice.
//!
//! One case is left: what is on its way while this process is killed is sent again after the
//! next start, with revenue or without.
//!
//! When an answer says that the backend is in trouble, the rest of the batch is not sent: it
//! would only make more of the same, and more unknowns.

use crate::config_error::ConfigError;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use url::Url;

use super::batch::Batch;
use super::contract::Upstream;
use super::http::{CONCURRENCY_MAX, TIMEOUT_SECONDS_MAX, check_within, parse_url};
use super::outcome::{Failure, Outcome, Part};
use super::{answer, client};
use crate::env::Secret;
use crate::event::{Record, canonical_query};

/// Batches on their way at once: the next one begins while the last answers of this one come in.
const BATCHES_MAX: usize = 2;
/// How long an idle connection is kept. Old servers close theirs after five seconds; one that
/// closes while we send leaves an event of which nobody knows whether it counted.
const IDLE_SECONDS_MAX: u64 = 4;

/// The settings of an `[[upstream]]` of kind `legacy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where events are sent, the event path included. May hold `${ENV}`.
    pub url: Secret,
    /// Requests on their way at once, at most.
    pub concurrency_max: usize,
    /// Time for one event, in seconds.
    pub timeout_seconds: u64,
    /// What becomes of an event with revenue of which nobody knows whether it counted.
    pub on_unknown: OnUnknown,
}

/// See [the module](self).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// Send it again: it may count twice.
    Retry,
    /// Keep it as a dead letter for a person to decide.
    #[default]
    Dead,
}

/// See the module.
pub struct Legacy {
    replayer: Arc<Replayer>,
    /// A permit for each request on its way, over all batches.
    requests: Arc<Semaphore>,
}

struct Replayer {
    client: Client,
    url: Url,
    on_unknown: OnUnknown,
    /// Whether the last answer was trouble. Then one event goes first, alone.
    careful: AtomicBool,
}

/// One event as a request.
struct Replay {
    url: Url,
    headers: HeaderMap,
    has_revenue: bool,
}

/// How a request ended: for its event, and for those that would be sent after it.
struct End {
    outcome: Outcome,
    trouble: Option<Outcome>,
}

/// What is known of a batch's events so far.
struct Ends {
    outcomes: Vec<Option<Outcome>>,
    trouble: Option<Outcome>,
}

// By hand: the URL may hold credentials.
impl fmt::Debug for Legacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Legacy(..)")
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: Secret::new(""),
            concurrency_max: 8,
            timeout_seconds: 10,
            on_unknown: OnUnknown::default(),
        }
    }
}

impl Config {
    /// Checks limits and the URL.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_within("timeout_seconds", self.timeout_seconds, TIMEOUT_SECONDS_MAX)?;
        check_within("concurrency_max", self.concurrency_max as u64, CONCURRENCY_MAX as u64)?;
        parse_url(&self.url).map(drop)
    }

    /// Builds the upstream: resolves nothing, connects nowhere.
    pub fn build(&self) -> Result<Legacy, ConfigError> {
        self.validate()?;
        let url = parse_url(&self.url)?;
        let setup = client::Setup {
            timeout_seconds: self.timeout_seconds,
            connections: self.concurrency_max,
            idle_seconds: IDLE_SECONDS_MAX,
        };
        let replayer = Replayer {
            client: client::build(&url, &setup, &client::Tls::default())?,
            url,
            on_unknown: self.on_unknown,
            careful: AtomicBool::new(false),
        };
        let requests = Arc::new(Semaphore::new(self.concurrency_max));
        Ok(Legacy { replayer: Arc::new(replayer), requests })
    }
}

#[async_trait]
impl Upstream for Legacy {
    fn kind(&self) -> &'static str {
        "legacy"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let count = batch.records().len();
        let mut ends = Ends { outcomes: vec![None; count], trouble: None };
        let mut sending = JoinSet::new();
        for (place, record) in batch.records().iter().enumerate() {
            let Some(replay) = self.replayer.prepare(record) else {
                let failure = Failure::new("a spool record cannot be read");
                ends.outcomes[place] = Some(Outcome::Rejected(failure));
                continue;
            };
            // It is never closed.
            let Ok(permit) = Arc::clone(&self.requests).acquire_owned().await else { break };
            // Look at the answers that have come meanwhile before sending more.
            while let Some(done) = sending.try_join_next() {
                ends.note(done.ok());
            }
            if ends.trouble.is_some() {
                break;
            }
            let replayer = Arc::clone(&self.replayer);
            sending.spawn(async move {
                let end = replayer.send(replay).await;
                drop(permit);
                (place, end)
            });
            if self.replayer.careful.load(Ordering::Relaxed) {
                ends.note(sending.join_next().await.and_then(Result::ok));
            }
        }
        // What has gone out is waited for: nobody else will learn what became of it.
        while let Some(done) = sending.join_next().await {
            ends.note(done.ok());
        }
        self.replayer.careful.store(ends.trouble.is_some(), Ordering::Relaxed);
        ends.gather()
    }

    fn concurrency_max(&self) -> usize {
        BATCHES_MAX
    }
}

impl Replayer {
    fn prepare(&self, record: &[u8]) -> Option<Replay> {
        let record = Record::decode(record).ok()?;
        let event = record.event().ok()?;
        let query = canonical_query(&event);
        let mut url = self.url.clone();
        let query = match self.url.query() {
            Some(own) if !own.is_empty() => format!("{own}&{query}"),
            _ => query,
        };
        url.set_query(Some(&query));
        let mut headers = HeaderMap::new();
        let mut set = |name: HeaderName, value: Option<&str>| {
            // What cannot stand in a header is left out: the event counts without it.
            if let Some(value) = value.and_then(|v| HeaderValue::from_bytes(v.as_bytes()).ok()) {
                headers.insert(name, value);
            }
        };
        let ip = record.context.ip.map(|ip| ip.to_string());
        set(header::USER_AGENT, record.context.user_agent.as_deref());
        set(header::REFERER, record.context.referer.as_deref());
        set(HeaderName::from_static("x-forwarded-for"), ip.as_deref());
        Some(Replay { url, headers, has_revenue: event.revenue.is_some() })
    }

    async fn send(&self, replay: Replay) -> End {
        let has_revenue = replay.has_revenue;
        match self.client.get(replay.url).headers(replay.headers).send().await {
            Ok(answer) => {
                let status = answer.status();
                let outcome = match status.as_u16() {
                    // Too long a URI or header is the `GET`'s way of being too large.
                    414 | 431 => Outcome::TooLarge(Failure::answered(status.as_u16())),
                    _ => answer::outcome(status, answer.headers(), Timestamp::now()),
                };
                client::drain(answer).await;
                let unknown = matches!(status.as_u16(), 502 | 504);
                self.end(outcome, unknown && has_revenue)
            }
            Err(error) => {
                let unknown = !error.is_connect();
                let outcome = Outcome::Retry(Failure::new(answer::describe(&error)));
                self.end(outcome, unknown && has_revenue)
            }
        }
    }

    /// `at_stake`: nobody knows whether the event counted, and it would matter.
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
        // A request that panicked has no end: its event is tried again.
        let Some((place, end)) = done else { return };
        self.outcomes[place] = Some(end.outcome);
        self.trouble = self.trouble.take().or(end.trouble);
    }

    /// One outcome for the batch, or one for each sort of end.
    fn gather(self) -> Outcome {
        let not_sent = self.trouble.clone();
        let not_sent = not_sent.unwrap_or_else(|| Outcome::Retry(Failure::new("not attempted")));
        let mut parts: Vec<Part> = Vec::new();
        for (place, outcome) in self.outcomes.into_iter().enumerate() {
            let outcome = outcome.unwrap_or_else(|| not_sent.clone());
            // A refusal is about one event: two of them together would be halved and sent again.
            let alone = matches!(outcome, Outcome::Rejected(_) | Outcome::TooLarge(_));
            match parts.iter_mut().find(|part| !alone && part.outcome == outcome) {
                Some(part) => part.places.push(place),
                None => parts.push(Part { places: vec![place], outcome }),
            }
        }
        // Also where every event has come to an end: the backend is still in trouble.
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
