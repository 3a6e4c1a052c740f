//! A server that is as strict as HubSpot is said to be: it knows each portal by its token, takes
//! nothing but the exact shape of a request, within its limits, drops occurrences whose `uuid` it
//! knows, and wants a contact before an event that refers to it. Its events are defined with the
//! properties of `docs/hubspot.md`, and match a contact by one of them where the test says so. Each
//! mistake of a caller is recorded as a sentence: see [`Hubspot::check`].
//!
//! Used beside `backend.rs`.
#![allow(dead_code)] // No test uses all of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::backend::{Act, Backend, Request};

pub const EVENTS_PATH: &str = "/events/v3/send/batch";
pub const CONTACTS_PATH: &str = "/crm/v3/objects/contacts/batch/upsert";
/// The portals that an upstream has a token for: `token-1` and so on.
pub const PORTALS: [u64; 3] = [1, 2, 3];
/// One more portal that the server knows.
pub const PORTAL_BESIDES: u64 = 9;

/// A running server (see the module).
pub struct Hubspot {
    pub backend: Backend,
    state: Arc<Mutex<State>>,
}

/// A fault of the server, beside its correct work.
#[derive(Debug, Clone)]
pub enum Fault {
    /// No fault: it works correctly.
    None,
    /// It refuses with this status and these headers, and takes nothing.
    Refuse(u16, Vec<(&'static str, String)>),
    /// It takes the request, and its answer gets lost.
    LoseAnswer,
    /// It takes the request, and says that it failed.
    TakeAndFail(u16),
    /// It takes the request, and the body of its answer, a `207`, breaks off.
    CutAnswer,
}

/// A request that is about to be judged.
pub struct Call {
    pub portal: u64,
    pub is_contacts: bool,
    pub inputs: usize,
    /// How many calls of this portal came before.
    pub before: usize,
}

/// How a contact that is not wanted is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `207`, and the answer names the input.
    Named,
    /// `207`, and the answer names nothing.
    Unnamed,
    /// `400`, and nothing is taken.
    Whole,
}

/// What becomes of an occurrence whose `uuid` is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It is dropped, and the answer is a success.
    Dropped,
    /// It is dropped, and the answer is `207` and names it.
    Named,
}

/// The event property that `customMatchingId` matches, and the contact's that it must equal.
pub const MATCHED: (&str, &str) = ("external_id", "legacy_id");
/// The properties of each event's definition.
const EVENT_PROPERTIES: [&str; 2] = ["revenue", "external_id"];
/// The properties that HubSpot gives each definition if `includeDefaultProperties` is true.
const DEFAULT_PROPERTIES: [&str; 2] = ["hs_user_agent", "hs_referrer"];

type Script = Box<dyn FnMut(&Call) -> Fault + Send>;

/// What the server knows.
pub struct State {
    script: Script,
    /// Which inputs the server refuses.
    pub is_bad_event: fn(&Value) -> bool,
    pub is_bad_contact: fn(&BTreeMap<String, String>) -> bool,
    pub refusal: Refusal,
    pub repeat: Repeat,
    /// Whether the definitions match a contact by [`MATCHED`].
    pub matches_ids: bool,
    /// Whether the definitions have the default properties.
    pub has_default_properties: bool,
    /// Cookies whose visitor is known.
    pub utks: BTreeSet<String>,
    /// Whether contacts are expected before occurrences.
    pub wants_contacts: bool,
    /// Occurrences by their uuid, as they came first, with their portal.
    pub occurrences: BTreeMap<String, (u64, Value)>,
    /// The number of occurrences whose uuid was known already.
    pub repeats: usize,
    pub contacts: BTreeMap<(u64, String), BTreeMap<String, String>>,
    /// Requests by portal: when, to which path, with how many inputs.
    pub calls: Vec<(u64, Instant, String, usize)>,
    /// The mistakes of callers, a sentence each.
    pub wrong: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inputs<T> {
    inputs: Vec<T>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Occurrence {
    event_name: String,
    email: Option<String>,
    utk: Option<String>,
    occurred_at: String,
    uuid: String,
    properties: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Contact {
    id: String,
    id_property: String,
    object_write_trace_id: String,
    properties: BTreeMap<String, String>,
}

impl Hubspot {
    /// Starts a server that works correctly.
    pub async fn start() -> Hubspot {
        let state = State {
            script: Box::new(|_| Fault::None),
            is_bad_event: |_| false,
            is_bad_contact: |_| false,
            refusal: Refusal::Named,
            repeat: Repeat::Dropped,
            matches_ids: false,
            has_default_properties: false,
            utks: BTreeSet::new(),
            wants_contacts: true,
            occurrences: BTreeMap::new(),
            repeats: 0,
            contacts: BTreeMap::new(),
            calls: Vec::new(),
            wrong: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let judge = Arc::clone(&state);
        let judge: Arc<dyn Fn(&Request) -> Act + Send + Sync> =
            Arc::new(move |request| judge.lock().unwrap().judge(request));
        let backend = Backend::start(move |_| Act::Judge(Arc::clone(&judge))).await;
        Hubspot { backend, state }
    }

    /// Starts a server that first fails as this script says.
    pub async fn failing(script: impl FnMut(&Call) -> Fault + Send + 'static) -> Hubspot {
        let hubspot = Hubspot::start().await;
        hubspot.script(script);
        hubspot
    }

    /// Replaces the script for all further requests.
    pub fn script(&self, script: impl FnMut(&Call) -> Fault + Send + 'static) {
        self.state().script = Box::new(script);
    }

    /// An `[[upstream]]` of this server, named `crm`, with tokens for [`PORTALS`].
    pub fn upstream(&self, rest: &str) -> String {
        let tokens: Vec<String> =
            PORTALS.iter().map(|p| format!("\"{p}\" = \"token-{p}\"")).collect();
        format!(
            "[[upstream]]\nname = \"crm\"\nkind = \"hubspot\"\nurl = \"{}\"\n\
             tokens = {{ {} }}\n{rest}\n",
            self.backend.url(""),
            tokens.join(", ")
        )
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Asserts that no request broke a rule, and that the occurrences are exactly the events that
    /// were accepted (`accepted`: wire forms by id) and are no dead letters. Gives the repeats.
    pub fn check(&self, accepted: &BTreeMap<String, Value>, dead: &BTreeSet<String>) -> usize {
        let state = self.state();
        assert_eq!(state.wrong, Vec::<String>::new());
        for (uuid, (portal, occurrence)) in &state.occurrences {
            let event = accepted.get(uuid).expect("an event that was never accepted");
            assert_eq!(event["portal"], *portal);
            assert_eq!(*occurrence, expected(event, state.has_default_properties), "{event}");
        }
        for id in accepted.keys().filter(|id| !dead.contains(*id)) {
            assert!(state.occurrences.contains_key(id), "{id} is lost");
        }
        state.repeats
    }
}

/// The occurrence that an event must become.
fn expected(event: &Value, has_default_properties: bool) -> Value {
    let mut properties = json!({});
    if has_default_properties {
        for (name, of) in DEFAULT_PROPERTIES.into_iter().zip(["user_agent", "referer"]) {
            if let Some(value) = event["context"].get(of) {
                properties[name] = value.clone();
            }
        }
    }
    if let Some(revenue) = event.get("revenue") {
        properties["revenue"] = json!(revenue.to_string());
    }
    if let Some(id) = event.get("external_id") {
        properties["external_id"] = id.clone();
    }
    let name = match event["event"].as_str().unwrap() {
        "000000001625" => "bought",
        "Signed Up" => "signed_up",
        other => other,
    };
    let mut occurrence = json!({
        "eventName": format!("pe{}_{name}", event["portal"]),
        "occurredAt": event["received_at"],
        "uuid": event["id"],
        "properties": properties,
    });
    for (name, value) in [("email", &event["email"]), ("utk", &event["context"]["utk"])] {
        if !value.is_null() {
            occurrence[name] = value.clone();
        }
    }
    occurrence
}

impl State {
    fn judge(&mut self, request: &Request) -> Act {
        let token = request.header("authorization").strip_prefix("Bearer token-");
        let portal = token.and_then(|portal| portal.parse().ok());
        let Some(portal) =
            portal.filter(|portal| PORTALS.contains(portal) || *portal == PORTAL_BESIDES)
        else {
            return refuse(401, "INVALID_AUTHENTICATION");
        };
        let is_contacts = request.target == CONTACTS_PATH;
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let inputs = body["inputs"].as_array().map_or(0, Vec::len);
        let before = self.calls.iter().filter(|(p, ..)| *p == portal).count();
        self.calls.push((portal, Instant::now(), request.target.clone(), inputs));
        let call = Call { portal, is_contacts, inputs, before };
        let fault = (self.script)(&call);
        if let Fault::Refuse(status, headers) = fault {
            return Act::Say(status, headers, "{\"status\":\"error\"}".into());
        }
        let answer = match self.take(portal, request, body) {
            Ok(answer) => answer,
            Err(wrong) => {
                self.wrong.push(wrong);
                return refuse(400, "VALIDATION_ERROR");
            }
        };
        match fault {
            Fault::LoseAnswer => Act::ResetAfterBody,
            Fault::CutAnswer => Act::CutBody(207),
            Fault::TakeAndFail(status) => Act::Say(status, Vec::new(), String::new()),
            Fault::None | Fault::Refuse(..) => answer,
        }
    }

    /// Answers a request as HubSpot does; the error says what the caller did wrong.
    fn take(&mut self, portal: u64, request: &Request, body: Value) -> Result<Act, String> {
        if request.method != "POST" || request.header("content-type") != "application/json" {
            return Err(format!("{} {}", request.method, request.header("content-type")));
        }
        match request.target.as_str() {
            EVENTS_PATH => self.take_events(portal, body),
            CONTACTS_PATH => self.take_contacts(portal, body),
            other => Err(format!("there is no {other}")),
        }
    }

    fn take_events(&mut self, portal: u64, body: Value) -> Result<Act, String> {
        let raw = body["inputs"].clone();
        let read: Inputs<Occurrence> = serde_json::from_value(body).map_err(|e| e.to_string())?;
        if !(1..=500).contains(&read.inputs.len()) {
            return Err(format!("{} events at once", read.inputs.len()));
        }
        let prefix = format!("pe{portal}_");
        for occurrence in &read.inputs {
            if !occurrence.event_name.starts_with(&prefix) {
                return Err(format!("{} in portal {portal}", occurrence.event_name));
            }
            uuid::Uuid::parse_str(&occurrence.uuid).map_err(|e| e.to_string())?;
            let at = &occurrence.occurred_at;
            at.parse::<jiff::Timestamp>().map_err(|e| e.to_string())?;
            if let Some(email) = &occurrence.email
                && self.wants_contacts
                && !self.contacts.contains_key(&(portal, email.clone()))
            {
                return Err("an occurrence before its contact".into());
            }
        }
        let raw = raw.as_array().unwrap();
        if raw.iter().any(self.is_bad_event) {
            return Ok(refuse(400, "VALIDATION_ERROR"));
        }
        if !read.inputs.iter().all(|occurrence| self.are_defined(&occurrence.properties)) {
            return Ok(refuse(400, "PROPERTY_DOESNT_EXIST"));
        }
        let mut errors = Vec::new();
        for (occurrence, raw) in read.inputs.into_iter().zip(raw) {
            if !self.is_tied(portal, &occurrence) {
                errors.push((occurrence.uuid, "OBJECT_NOT_FOUND"));
                continue;
            }
            match self.occurrences.entry(occurrence.uuid) {
                Entry::Occupied(place) => {
                    self.repeats += 1;
                    if self.repeat == Repeat::Named {
                        errors.push((place.key().clone(), "CONFLICT"));
                    }
                }
                Entry::Vacant(place) => _ = place.insert((portal, raw.clone())),
            }
        }
        if errors.is_empty() {
            return Ok(Act::Say(204, Vec::new(), String::new()));
        }
        let error = |(uuid, category): (String, &str)| {
            let context = json!({ "uuid": [uuid] });
            json!({ "status": "error", "category": category, "context": context })
        };
        let errors: Vec<Value> = errors.into_iter().map(error).collect();
        let body = json!({ "status": "COMPLETE", "results": [], "errors": errors });
        Ok(Act::Say(207, Vec::new(), body.to_string()))
    }

    fn are_defined(&self, properties: &BTreeMap<String, String>) -> bool {
        let is_default =
            |name: &str| self.has_default_properties && DEFAULT_PROPERTIES.contains(&name);
        properties.keys().all(|name| EVENT_PROPERTIES.contains(&&**name) || is_default(name))
    }

    /// Whether a contact is found for an occurrence.
    fn is_tied(&self, portal: u64, occurrence: &Occurrence) -> bool {
        let (of_event, of_contact) = MATCHED;
        let id = occurrence.properties.get(of_event).filter(|_| self.matches_ids);
        let mut contacts = self.contacts.iter().filter(|((of, _), _)| *of == portal);
        occurrence.email.is_some()
            || occurrence.utk.as_ref().is_some_and(|utk| self.utks.contains(utk))
            || id.is_some_and(|id| contacts.any(|(_, said)| said.get(of_contact) == Some(id)))
    }

    fn take_contacts(&mut self, portal: u64, body: Value) -> Result<Act, String> {
        if !self.wants_contacts {
            return Err("a contact that no request asked for".into());
        }
        let read: Inputs<Contact> = serde_json::from_value(body).map_err(|e| e.to_string())?;
        let ids: BTreeSet<&str> = read.inputs.iter().map(|c| c.id.as_str()).collect();
        let traces: BTreeSet<&str> =
            read.inputs.iter().map(|c| c.object_write_trace_id.as_str()).collect();
        let count = read.inputs.len();
        if !(1..=100).contains(&count) || ids.len() != count || traces.len() != count {
            return Err(format!("{count} contacts, {} of them different", ids.len()));
        }
        let named =
            |c: &Contact| c.id_property == "email" && c.properties.get("email") == Some(&c.id);
        if !read.inputs.iter().all(named) {
            return Err("a contact is not named by its address".into());
        }
        let (bad, good): (Vec<Contact>, Vec<Contact>) =
            read.inputs.into_iter().partition(|c| (self.is_bad_contact)(&c.properties));
        if !bad.is_empty() && self.refusal == Refusal::Whole {
            return Ok(refuse(400, "PROPERTY_DOESNT_EXIST"));
        }
        let error = |c: &Contact| match self.refusal {
            Refusal::Named => json!({
                "status": "error", "category": "VALIDATION_ERROR",
                "message": "Property values were not valid",
                "context": { "objectWriteTraceId": [c.object_write_trace_id] },
            }),
            _ => json!({ "status": "error", "category": "VALIDATION_ERROR" }),
        };
        let errors: Vec<Value> = bad.iter().map(error).collect();
        for contact in good {
            let known = self.contacts.entry((portal, contact.id)).or_default();
            known.extend(contact.properties);
        }
        let status = if errors.is_empty() { 200 } else { 207 };
        let body = json!({ "status": "COMPLETE", "results": [], "errors": errors });
        Ok(Act::Say(status, Vec::new(), body.to_string()))
    }
}

fn refuse(status: u16, category: &str) -> Act {
    let body = json!({ "status": "error", "message": "no", "category": category });
    Act::Say(status, Vec::new(), body.to_string())
}
