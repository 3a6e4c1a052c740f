//! Sends one portal's events: first their contacts, then the events.
//!
//! # The reason for this order
//!
//! HubSpot links an occurrence to a contact when it receives the occurrence, and an occurrence
//! cannot be changed. After the upsert, the contact exists with its properties, so the link does
//! not depend on what HubSpot does with an unknown address, or with an unknown id that the event's
//! definition matches.
//!
//! A failure between the two requests neither loses nor duplicates an event. All events are
//! retried: the upsert writes the same values again, and an occurrence has the event's id as its
//! `uuid`, so that HubSpot drops a second occurrence.
//!
//! The events of a rejected contact are not sent: they become dead letters, and a replay sends
//! contact and events. So an event is either delivered completely or a dead letter.

use std::collections::HashSet;

use http::header::{self, HeaderValue};
use serde::Serialize;
use tokio::sync::Semaphore;
use url::Url;

use super::answers::{self, BODY_BYTES_MAX};
use super::contacts;
use super::item::Item;
use super::translate::EventInput;
use crate::clock::now;
use crate::upstream::client;
use crate::upstream::client::Client;
use crate::upstream::outcome::{Failure, Outcome, Part};

/// Maximum number of events in one request (HubSpot's limit).
pub const EVENTS_MAX: usize = 500;
/// Maximum number of contacts in one request (HubSpot's limit).
pub const CONTACTS_MAX: usize = 100;

const CONTACT_REFUSED: &str = "its contact is refused";
const EVENT_REFUSED: &str = "the event is refused";

/// The HTTP client and the URLs of the API, which all portals share.
pub struct Sender {
    pub client: Client,
    pub events_url: Url,
    /// `None` if contacts are not written.
    pub contacts_url: Option<Url>,
    /// One permit for each request in flight.
    pub requests: Semaphore,
}

/// The outcomes of one portal's events.
#[derive(Debug, Default)]
pub struct Ends {
    /// The events with a final outcome. The events of a rejected part were rejected together.
    pub parts: Vec<Part>,
    /// The events that must be retried, with the reason. No request was sent after this failure.
    pub left: Option<Part>,
}

/// A response. Its `status` is 0 if the request failed.
struct Answer {
    outcome: Outcome,
    status: u16,
    body: Option<Vec<u8>>,
}

#[derive(Serialize)]
struct Inputs<'a> {
    inputs: Vec<EventInput<'a>>,
}

impl Sender {
    /// Sends one portal's events in stretches. A stretch fits into one request for contacts and one
    /// for events. Stops at the first stretch that must be retried; earlier stretches count as
    /// delivered, so that a rate-limited portal makes progress with every attempt.
    pub async fn hand_over(&self, authorization: &HeaderValue, items: Vec<Item>) -> Ends {
        let mut ends = Ends::default();
        let mut rest = &items[..];
        while !rest.is_empty() {
            let (stretch, after) = rest.split_at(self.stretch_len(rest));
            let stopped = self.hand_over_stretch(authorization, stretch, &mut ends.parts).await;
            if let Some(Part { mut places, outcome }) = stopped {
                places.extend(after.iter().map(|item| item.place));
                ends.left = Some(Part { places, outcome });
                break;
            }
            rest = after;
        }
        ends
    }

    /// The number of `items` in the first stretch, by [`EVENTS_MAX`] and [`CONTACTS_MAX`].
    fn stretch_len(&self, items: &[Item]) -> usize {
        let most = items.len().min(EVENTS_MAX);
        if self.contacts_url.is_none() {
            return most;
        }
        let mut emails = HashSet::new();
        let mut fits = |item: &&Item| {
            item.translation.email.as_deref().is_none_or(|email| {
                emails.contains(email)
                    || (emails.len() < CONTACTS_MAX && emails.insert(email.to_owned()))
            })
        };
        items[..most].iter().position(|item| !fits(&item)).unwrap_or(most)
    }

    /// Sends one stretch. Returns the events that must be retried, with the reason.
    async fn hand_over_stretch(
        &self,
        authorization: &HeaderValue,
        stretch: &[Item],
        parts: &mut Vec<Part>,
    ) -> Option<Part> {
        let mut to_send: Vec<&Item> = stretch.iter().collect();
        if let Some(url) = &self.contacts_url {
            let refused = match self.upsert(url, authorization, stretch).await {
                Ok(refused) => refused,
                Err(outcome) => {
                    let places = stretch.iter().map(|item| item.place).collect();
                    return split_final(Part { places, outcome }, parts);
                }
            };
            for part in refused {
                to_send.retain(|item| !part.places.contains(&item.place));
                parts.push(part);
            }
        }
        if to_send.is_empty() {
            return None;
        }
        self.send_events(authorization, &to_send, parts).await
    }

    /// Writes the contacts of a stretch. Returns the events whose contacts were rejected.
    async fn upsert(
        &self,
        url: &Url,
        authorization: &HeaderValue,
        stretch: &[Item],
    ) -> Result<Vec<Part>, Outcome> {
        let contacts = contacts::merge(stretch);
        if contacts.is_empty() {
            return Ok(Vec::new());
        }
        let Ok(body) = contacts::body(&contacts) else { return Err(unencodable()) };
        let mut answer = self.post(url, authorization, body.clone()).await;
        if answer.status == 409 {
            // Another client created one of the contacts at the same time, so it exists now.
            answer = self.post(url, authorization, body).await;
        }
        match (&answer.outcome, answer.status) {
            (Outcome::Delivered, 207) => {}
            (Outcome::Delivered, _) => return Ok(Vec::new()),
            _ => return Err(refused(CONTACT_REFUSED, &answer)),
        }
        let keys: Vec<String> = (0..contacts.len()).map(|index| index.to_string()).collect();
        let failure = Outcome::Rejected(rejection(CONTACT_REFUSED, &answer));
        let named = answers::refused(answer.body.as_deref(), "objectWriteTraceId", &keys);
        let named = named.ok_or_else(|| failure.clone())?;
        // One part for each contact. Its events were rejected together, and delivery splits the
        // part to find the event at fault.
        let part = |index: usize| {
            let members = contacts[index].members.iter();
            let places = members.map(|member| stretch[*member].place).collect();
            Part { places, outcome: failure.clone() }
        };
        Ok(named.into_iter().map(part).collect())
    }

    async fn send_events(
        &self,
        authorization: &HeaderValue,
        to_send: &[&Item],
        parts: &mut Vec<Part>,
    ) -> Option<Part> {
        let inputs = to_send
            .iter()
            .map(|item| item.translation.input(Some(&item.occurred_at), Some(&item.uuid)));
        let all = || to_send.iter().map(|item| item.place).collect();
        let Ok(body) = serde_json::to_vec(&Inputs { inputs: inputs.collect() }) else {
            return split_final(Part { places: all(), outcome: unencodable() }, parts);
        };
        let answer = self.post(&self.events_url, authorization, body).await;
        let mut rest = Part { places: all(), outcome: refused(EVENT_REFUSED, &answer) };
        if answer.status == 207 {
            let keys: Vec<String> = to_send.iter().map(|item| item.uuid.clone()).collect();
            let failure = Outcome::Rejected(rejection(EVENT_REFUSED, &answer));
            match answers::refused(answer.body.as_deref(), "uuid", &keys) {
                None => rest.outcome = failure,
                Some(named) => {
                    for place in named.into_iter().map(|index| to_send[index].place) {
                        rest.places.retain(|other| *other != place);
                        parts.push(Part { places: vec![place], outcome: failure.clone() });
                    }
                }
            }
        }
        split_final(rest, parts)
    }

    /// Sends one request and reads the response.
    async fn post(&self, url: &Url, authorization: &HeaderValue, body: Vec<u8>) -> Answer {
        // The semaphore is never closed.
        let _permit = self.requests.acquire().await;
        let request = self
            .client
            .post(url.clone())
            .header(header::AUTHORIZATION, authorization)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body);
        match request.send().await {
            Ok(response) => {
                let (status, headers) = (response.status(), response.headers());
                let outcome = answers::outcome(status, headers, now());
                let status = status.as_u16();
                let is_body_of_use = matches!(status, 207 | 400..=499);
                let body = match is_body_of_use {
                    true => client::body(response, BODY_BYTES_MAX).await,
                    false => {
                        client::drain(response).await;
                        None
                    }
                };
                if status == 207 && body.is_none() {
                    // Only the body says which inputs were refused.
                    let what = "answered 207 with a body that cannot be read";
                    return Answer { outcome: Outcome::Retry(Failure::new(what)), status: 0, body };
                }
                Answer { outcome, status, body }
            }
            Err(error) => {
                let outcome = Outcome::Retry(Failure::new(self.client.describe(&error)));
                Answer { outcome, status: 0, body: None }
            }
        }
    }
}

/// Adds a part with a final outcome to `parts`. Returns a part that must be retried.
fn split_final(part: Part, parts: &mut Vec<Part>) -> Option<Part> {
    match part.outcome {
        Outcome::Retry(_) | Outcome::Fault(_) => return Some(part),
        _ if part.places.is_empty() => {}
        _ => parts.push(part),
    }
    None
}

/// The outcome of a response. A rejection is described by `what` and HubSpot's error code.
fn refused(what: &'static str, answer: &Answer) -> Outcome {
    match &answer.outcome {
        Outcome::Rejected(_) => Outcome::Rejected(rejection(what, answer)),
        Outcome::Fault(failure) => {
            let what = with_code(&failure.what, answer.body.as_deref());
            Outcome::Fault(Failure { what: what.into(), ..failure.clone() })
        }
        other => other.clone(),
    }
}

fn rejection(what: &'static str, answer: &Answer) -> Failure {
    let answered = Failure::answered(answer.status);
    let what = with_code(&format!("{what}: {}", answered.what), answer.body.as_deref());
    Failure { what: what.into(), ..answered }
}

fn with_code(what: &str, body: Option<&[u8]>) -> String {
    match body.and_then(answers::code) {
        Some(code) => format!("{what} ({code})"),
        None => what.to_owned(),
    }
}

/// The outcome of inputs that cannot be encoded. Not expected: serde fails only for maps whose keys
/// are not strings.
fn unencodable() -> Outcome {
    Outcome::Rejected(Failure::new("the event cannot be written as JSON"))
}
