//! What would become of an event, and why, in words for the person who built the link.
//!
//! One explanation for all who ask: the command (`pixelgate explain`) and the admin page show what
//! is made here. It asks the same judge as a request does, and uses nothing up by asking: nothing
//! is recorded, counted, or taken from a portal's rate. It shows the caller what the caller sent,
//! so it is an answer to them and to nobody else; it must reach no log.

use crate::event;
use crate::event::{Context, Hints, Judged, hints};
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate};
use crate::policy::portals::PortalVerdict;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::upstream::{self, hubspot};
use http::Method;
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use url::form_urlencoded;

/// The most parameters that are shown as they arrived, one a line.
const ARRIVED_LINES_MAX: usize = 100;

/// The address is no event's: a request for it is passed on to the origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAnEvent;

impl fmt::Display for NotAnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "this address is not below events.path: such a request is passed on to the origin",
        )
    }
}

impl std::error::Error for NotAnEvent {}

/// What would become of one event.
#[derive(Debug)]
pub struct Explanation<'a> {
    decision: Decision,
    /// Means nothing where the event would not count.
    accepted: AcceptedEvent<'a>,
    arrived: Lines,
    policy: Lines,
    hints: Vec<Hints<'static>>,
    /// By upstream of kind `hubspot`, where the event would count.
    hubspot: Vec<hubspot::Explained>,
}

/// Some lines under a title.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// What the lines are about.
    pub title: Cow<'static, str>,
    /// At least one.
    pub lines: Vec<String>,
}

type Lines = Vec<String>;

/// The JSON of an accepted event; the order of the keys is the contract's (SPEC 8).
#[derive(Serialize)]
struct Accepted<'a> {
    verdict: &'static str,
    event: Box<RawValue>,
    ignored: Vec<IgnoredParam<'a>>,
    /// Only where an upstream of kind `hubspot` is configured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    translation: Vec<&'a serde_json::Value>,
}

#[derive(Serialize)]
struct IgnoredParam<'a> {
    param: &'a str,
    why: &'static str,
}

/// The JSON of a rejected event, likewise.
#[derive(Serialize)]
struct Rejected {
    verdict: &'static str,
    reason: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'static str>,
    detail: &'static str,
}

/// Explains what `gate` would say of `text`: a whole URL, a host with a path, a path with a query,
/// or a query alone; and what those of `upstreams` that translate would send.
///
/// # Errors
///
/// [`NotAnEvent`] where the text is an address that is not ours to judge.
pub fn explain<'a>(
    gate: &Gate,
    upstreams: &[upstream::Config],
    text: &'a str,
) -> Result<Explanation<'a>, NotAnEvent> {
    let (reading, query) = read(gate, text);
    if reading == Reading::Other {
        return Err(NotAnEvent);
    }
    let context = Context::default();
    let request = EventRequest { method: &Method::GET, reading, query: query.as_bytes(), context };
    let mut accepted = AcceptedEvent::blank();
    let decision = gate.consider(request, &mut accepted);
    let hubspot = match decision {
        Decision::Accept => hubspot::explain(upstreams, &accepted.event),
        _ => Vec::new(),
    };
    Ok(Explanation {
        decision,
        accepted,
        arrived: arrived(query),
        policy: policy(gate, reading, query),
        hints: hints(query.as_bytes(), gate.rules()),
        hubspot,
    })
}

impl Explanation<'_> {
    /// Whether the event would count.
    pub fn is_accepted(&self) -> bool {
        self.decision == Decision::Accept
    }

    /// The verdict in one line.
    pub fn verdict(&self) -> String {
        match &self.decision {
            Decision::Accept => "accepted: this event counts.".to_owned(),
            Decision::Reject(rejection) => {
                let reason = rejection.reason;
                format!("rejected: {} (status {})", reason.as_str(), reason.status())
            }
            // It is asked with GET alone.
            Decision::Head | Decision::Preflight => "nothing to judge".to_owned(),
        }
    }

    /// What there is to say about it, none of it empty.
    pub fn sections(&self) -> Vec<Section> {
        let ([about, ignored], to_do) = match &self.decision {
            Decision::Accept => {
                let why = |(param, why): &(Cow<'_, str>, event::Ignored)| {
                    format!("{}: {}", shown(param), why.detail())
                };
                ([made(&self.accepted), self.accepted.ignored.iter().map(why).collect()], false)
            }
            Decision::Reject(rejection) => {
                let about = rejection.param.map(|p| format!("about {p}: ")).unwrap_or_default();
                ([vec![format!("{about}{}", rejection.detail())], Lines::new()], true)
            }
            Decision::Head | Decision::Preflight => return Vec::new(),
        };
        let likely = self.hints.iter().map(|h| format!("{}: {}", shown(&h.param), h.hint.detail()));
        let all = [
            ("what arrived", self.arrived.clone()),
            (if to_do { "what to do" } else { "what was made of it" }, about),
            ("what was ignored", ignored),
            ("policy", self.policy.clone()),
            ("likely mistakes", likely.collect()),
        ];
        let sent = self.hubspot.iter().map(|told| {
            let lines = told.lines.iter().map(|line| shown(line)).collect();
            (format!("what upstream {} would send to HubSpot", told.upstream).into(), lines)
        });
        let all = all.into_iter().map(|(title, lines)| (Cow::Borrowed(title), lines)).chain(sent);
        let all = all.filter(|(_, lines): &(_, Lines)| !lines.is_empty());
        all.map(|(title, lines)| Section { title, lines }).collect()
    }

    /// All of it for a terminal: the verdict, then each section.
    pub fn to_text(&self) -> String {
        let mut text = self.verdict();
        for Section { title, lines } in self.sections() {
            text.push_str(&format!("\n\n{title}:\n  {}", lines.join("\n  ")));
        }
        text
    }

    /// The JSON of SPEC 8.
    ///
    /// # Errors
    ///
    /// None that is known: an event's wire form is JSON.
    pub fn to_json(&self) -> serde_json::Result<String> {
        match &self.decision {
            Decision::Accept => {
                let AcceptedEvent { event, ignored, .. } = &self.accepted;
                let mut wire = Vec::new();
                event::write_event_json(&mut wire, event);
                let ignored = ignored.iter();
                serde_json::to_string(&Accepted {
                    verdict: "accepted",
                    event: serde_json::from_slice(&wire)?,
                    ignored: ignored
                        .map(|(param, why)| IgnoredParam { param, why: why.as_str() })
                        .collect(),
                    translation: self.hubspot.iter().map(|told| &told.json).collect(),
                })
            }
            Decision::Reject(rejection) => serde_json::to_string(&Rejected {
                verdict: "rejected",
                reason: rejection.reason.as_str(),
                status: rejection.reason.status(),
                param: rejection.param,
                detail: rejection.detail(),
            }),
            Decision::Head | Decision::Preflight => Ok("null".to_owned()),
        }
    }
}

/// What stands in a text: a whole URL, a host with a path, a path, or a query alone.
fn read<'a>(gate: &Gate, text: &'a str) -> (Reading, &'a str) {
    let text = text.trim();
    let before_query = text.split('?').next().unwrap_or_default();
    let has_path = before_query.contains('/') && !before_query.contains(['=', '&']);
    if !has_path {
        let query = text.strip_prefix('?').unwrap_or(text);
        return (Reading::Event, query.split('#').next().unwrap_or_default());
    }
    let mut target = Target::split(text.as_bytes());
    if !text.starts_with('/') && !text.contains("://") {
        // `track.example.com/v1/event/?…`, as people copy it.
        let slash = target.path.iter().position(|&b| b == b'/').unwrap_or(0);
        target.path = &target.path[slash..];
    }
    // Cut at ASCII characters, so it is UTF-8 as before.
    (gate.read(target.path), std::str::from_utf8(target.query).unwrap_or_default())
}

/// The parameters, decoded and otherwise as they are.
fn arrived(query: &str) -> Lines {
    let pieces: Vec<&str> = query.split('&').filter(|piece| !piece.is_empty()).collect();
    let mut lines: Lines = pieces.iter().take(ARRIVED_LINES_MAX).map(|piece| line(piece)).collect();
    if pieces.len() > lines.len() {
        lines.push(format!("and {} more", pieces.len() - lines.len()));
    }
    lines
}

fn line(piece: &str) -> String {
    let name = form_urlencoded::parse(piece.as_bytes()).next().map(|(name, _)| name);
    let name = name.unwrap_or_default().trim().to_ascii_lowercase();
    // Whatever a broken link puts before them, as in `amp;hapikey`.
    if event::WITHHELD.iter().any(|withheld| name.ends_with(withheld)) {
        return format!("{} (its value is not shown)", shown(&name));
    }
    // A raw `+` stands for itself in these two (SPEC 3).
    let piece = match name.as_str() {
        "email" | "_m" => Cow::Owned(piece.replace('+', "%2B")),
        _ => Cow::Borrowed(piece),
    };
    match form_urlencoded::parse(piece.as_bytes()).next() {
        Some((name, value)) => format!("{} = {}", shown(&name), shown(&value)),
        None => "=".to_owned(),
    }
}

fn made(accepted: &AcceptedEvent<'_>) -> Lines {
    let event = &accepted.event;
    let row = |name: &str, value: &str| format!("{name:<12} {}", shown(value));
    let mut lines = vec![row("portal", &event.portal.to_string()), row("event", &event.name)];
    lines.extend(event.email.iter().map(|email| row("email", email)));
    lines.extend(event.revenue.iter().map(|revenue| row("revenue", &revenue.to_string())));
    lines.extend(event.external_id.iter().map(|id| row("external id", id)));
    let properties = event.properties.iter();
    lines.extend(properties.map(|(name, value)| row("property", &format!("{name} = {value}"))));
    lines
}

/// Which rule of the portal list decided, and what the rules take away: asked of every event
/// whose parameters are in order.
fn policy(gate: &Gate, reading: Reading, query: &str) -> Lines {
    let parsed = event::parse(query.as_bytes(), gate.rules());
    let (Reading::Event, Ok(Judged { event, .. })) = (reading, parsed) else {
        return Lines::new();
    };
    let portal = gate.portals().judge(event.portal, &event.name);
    let mut lines = vec![portal.explain(&event.name)];
    match portal.verdict {
        PortalVerdict::Allowed => {}
        PortalVerdict::WouldReject(reason) => {
            lines.push(format!("a dry run: enforce would answer {}", reason.as_str()));
        }
        PortalVerdict::Rejected(_) => return lines,
    }
    let names = event.properties.iter().map(|(name, _)| name);
    let dropped = names.filter(|name| portal.policy.drops(name));
    lines.extend(dropped.map(|name| format!("{name}: not passed on (drop_properties)")));
    lines
}

/// A caller's text on a terminal: what could steer it, or cannot be seen, is shown by its code.
fn shown(text: &str) -> String {
    let is_hidden = |c: char| {
        let invisible = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}');
        c.is_control() || invisible
    };
    let show = |c: char| match is_hidden(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(show).collect()
}
