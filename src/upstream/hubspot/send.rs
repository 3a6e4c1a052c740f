//! Handing over one portal's events: contacts first, then the events that are about them.
//!
//! # Why in this order
//!
//! An occurrence is tied to a contact by its address when HubSpot takes it, and occurrences can
//! never be changed. The upsert's answer says that the contact is there; the occurrence that
//! follows finds it, with its properties, whatever HubSpot does about an address that nobody has.
//!
//! A failure in between loses and doubles nothing. The events are tried again as a whole: the
//! upsert writes the same values again, and the occurrences carry the event's id as their `uuid`,
//! of which HubSpot takes the first and drops the others.
//!
//! A contact that is refused keeps its events back: they become dead letters before they are
//! sent, and a replay delivers both. So an event is either wholly there or wholly on the list.

use std::collections::HashSet;

use http::header::{self, HeaderValue};
use jiff::Timestamp;
use reqwest::Client;
use serde::Serialize;
use tokio::sync::Semaphore;
use url::Url;

use super::answers::{self, BODY_BYTES_MAX};
use super::contacts;
use super::item::Item;
use super::translate::EventInput;
use crate::upstream::outcome::{Failure, Outcome, Part};
use crate::upstream::{answer, client};

/// Events in one request, at most (HubSpot's limit).
pub const EVENTS_MAX: usize = 500;
/// Contacts in one request, at most (HubSpot's limit).
pub const CONTACTS_MAX: usize = 100;

const CONTACT_REFUSED: &str = "its contact is refused";
const EVENT_REFUSED: &str = "the event is refused";

/// Where requests go, shared by all portals.
pub struct Sender {
    pub client: Client,
    pub events_url: Url,
    /// `None` where contacts are not written.
    pub contacts_url: Option<Url>,
    /// A permit for each request on its way.
    pub requests: Semaphore,
}

/// How a portal's events ended.
#[derive(Debug, Default)]
pub struct Ends {
    /// Those that came to an end. A refusal's places were refused together.
    pub parts: Vec<Part>,
    /// The others, and why: nothing was sent after that.
    pub left: Option<Part>,
}

/// An answer, or the lack of one.
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
    /// Hands over one portal's events, stretch by stretch, and stops at the first that neither
    /// arrives nor is refused. What arrived before it has arrived: a portal that is limited gets
    /// on, by a stretch at least, whenever it lets us.
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

    /// How many of these items one request of each sort takes: both limits are HubSpot's.
    fn stretch_len(&self, items: &[Item]) -> usize {
        let most = items.len().min(EVENTS_MAX);
        if self.contacts_url.is_none() {
            return most;
        }
        let mut emails = HashSet::new();
        let mut fits = |item: &&Item| {
            let email = &*item.translation.email;
            emails.contains(email)
                || (emails.len() < CONTACTS_MAX && emails.insert(email.to_owned()))
        };
        items[..most].iter().position(|item| !fits(&item)).unwrap_or(most)
    }

    /// What neither arrived nor was refused, and why.
    async fn hand_over_stretch(
        &self,
        authorization: &HeaderValue,
        stretch: &[Item],
        parts: &mut Vec<Part>,
    ) -> Option<Part> {
        let mut going: Vec<&Item> = stretch.iter().collect();
        if let Some(url) = &self.contacts_url {
            let refused = match self.upsert(url, authorization, stretch).await {
                Ok(refused) => refused,
                Err(outcome) => {
                    let places = stretch.iter().map(|item| item.place).collect();
                    return settle(Part { places, outcome }, parts);
                }
            };
            for part in refused {
                going.retain(|item| !part.places.contains(&item.place));
                parts.push(part);
            }
        }
        if going.is_empty() {
            return None;
        }
        self.send_events(authorization, &going, parts).await
    }

    /// Writes the contacts of a stretch; gives the places of those that were refused.
    async fn upsert(
        &self,
        url: &Url,
        authorization: &HeaderValue,
        stretch: &[Item],
    ) -> Result<Vec<Part>, Outcome> {
        let contacts = contacts::merge(stretch);
        let Ok(body) = contacts::body(&contacts) else { return Err(unencodable()) };
        let mut answer = self.post(url, authorization, body.clone()).await;
        if answer.status == 409 {
            // Somebody else was creating one of them. Now it is there.
            answer = self.post(url, authorization, body).await;
        }
        match (&answer.outcome, answer.status) {
            (Outcome::Delivered, 207) => {}
            (Outcome::Delivered, _) => return Ok(Vec::new()),
            _ => return Err(refused(CONTACT_REFUSED, &answer)),
        }
        let keys: Vec<String> = (0..contacts.len()).map(|index| index.to_string()).collect();
        let failure = Outcome::Rejected(refusal_of(CONTACT_REFUSED, &answer));
        let named = answers::refused(answer.body.as_deref(), "objectWriteTraceId", &keys);
        let named = named.ok_or_else(|| failure.clone())?;
        // Each contact by itself: what several events say of one person is refused together, and
        // halving finds out which of them it is.
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
        going: &[&Item],
        parts: &mut Vec<Part>,
    ) -> Option<Part> {
        let inputs = going
            .iter()
            .map(|item| item.translation.input(Some(&item.occurred_at), Some(&item.uuid)));
        let all = || going.iter().map(|item| item.place).collect();
        let Ok(body) = serde_json::to_vec(&Inputs { inputs: inputs.collect() }) else {
            return settle(Part { places: all(), outcome: unencodable() }, parts);
        };
        let answer = self.post(&self.events_url, authorization, body).await;
        let mut rest = Part { places: all(), outcome: refused(EVENT_REFUSED, &answer) };
        if answer.status == 207 {
            let keys: Vec<String> = going.iter().map(|item| item.uuid.clone()).collect();
            let failure = Outcome::Rejected(refusal_of(EVENT_REFUSED, &answer));
            match answers::refused(answer.body.as_deref(), "uuid", &keys) {
                None => rest.outcome = failure,
                Some(named) => {
                    for place in named.into_iter().map(|index| going[index].place) {
                        rest.places.retain(|other| *other != place);
                        parts.push(Part { places: vec![place], outcome: failure.clone() });
                    }
                }
            }
        }
        settle(rest, parts)
    }

    /// One request, and what came of it.
    async fn post(&self, url: &Url, authorization: &HeaderValue, body: Vec<u8>) -> Answer {
        // It is never closed.
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
                let outcome = answers::outcome(status, headers, Timestamp::now());
                let status = status.as_u16();
                let tells = matches!(status, 207 | 400..=499);
                let body = match tells {
                    true => client::body(response, BODY_BYTES_MAX).await,
                    false => {
                        client::drain(response).await;
                        None
                    }
                };
                Answer { outcome, status, body }
            }
            Err(error) => {
                let outcome = Outcome::Retry(Failure::new(answer::describe(&error)));
                Answer { outcome, status: 0, body: None }
            }
        }
    }
}

/// Puts an end among the parts; gives back what is none.
fn settle(part: Part, parts: &mut Vec<Part>) -> Option<Part> {
    match part.outcome {
        Outcome::Retry(_) | Outcome::Fault(_) => return Some(part),
        _ if part.places.is_empty() => {}
        _ => parts.push(part),
    }
    None
}

/// The answer's outcome, a refusal told in `what` and in HubSpot's word for it.
fn refused(what: &'static str, answer: &Answer) -> Outcome {
    match &answer.outcome {
        Outcome::Rejected(_) => Outcome::Rejected(refusal_of(what, answer)),
        Outcome::Fault(failure) => {
            let what = told(&failure.what, answer.body.as_deref());
            Outcome::Fault(Failure { what: what.into(), ..failure.clone() })
        }
        other => other.clone(),
    }
}

fn refusal_of(what: &'static str, answer: &Answer) -> Failure {
    let answered = Failure::answered(answer.status);
    let what = told(&format!("{what}: {}", answered.what), answer.body.as_deref());
    Failure { what: what.into(), ..answered }
}

fn told(what: &str, body: Option<&[u8]>) -> String {
    match body.and_then(answers::code) {
        Some(code) => format!("{what} ({code})"),
        None => what.to_owned(),
    }
}

/// Serde fails only on maps whose keys are no texts, and there are none.
fn unencodable() -> Outcome {
    Outcome::Rejected(Failure::new("it cannot be written as JSON"))
}
