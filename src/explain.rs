//! Explains to the author of a link whether its event would be accepted, and why.
//!
//! The command `pixelgate explain` and the admin page both show this explanation. It uses the same
//! gate as a request, without side effects: nothing is recorded, counted, or taken from a portal's
//! rate. An explanation contains what the caller sent, personal data included: return it to that
//! caller only, and never log it.

use crate::event;
use crate::event::{Hint, Judged, ParamHint, Rules, escape_hidden, hints, is_hidden};
use crate::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate};
use crate::policy::portals::PortalVerdict;
use crate::request::path::Reading;
use crate::request::target::Target;
use crate::upstream;
use http::Method;
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use thiserror::Error;
use url::form_urlencoded;

/// The most parameters that an explanation lists as received, one per line.
const RECEIVED_LINES_MAX: usize = 100;

/// The address is not below `events.path`; the edge passes such a request on to the origin.
///
/// ```
/// use pixelgate::custom::PortalFormat;
/// use pixelgate::errors::NotAnEvent;
/// use pixelgate::{Config, PixelGate, tools};
///
/// let builder = PixelGate::builder(Config::default());
/// let judge = builder.portals("62515", PortalFormat::Text).gate()?;
/// let explained = tools::explain(&judge, &[], "https://www.example.com/page?_a=62515");
/// assert_eq!(explained.unwrap_err(), NotAnEvent);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this address is not below events.path: such a request is passed on to the origin")]
pub struct NotAnEvent;

/// The decision about one event, with its reasons.
///
/// ```
/// # use pixelgate::PixelGate;
/// fn show(gate: &PixelGate, link: &str) {
///     match gate.explain(link) {
///         Ok(explanation) => println!("{}", explanation.to_text()),
///         Err(not_an_event) => println!("{not_an_event}"),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Explanation<'a> {
    decision: Decision,
    /// Meaningful only if the decision is [`Decision::Accept`].
    accepted: AcceptedEvent<'a>,
    received: Lines,
    policy: Lines,
    hints: Vec<ParamHint>,
    /// One entry for each upstream of kind `hubspot`; empty unless the event is accepted.
    hubspot: Vec<upstream::Explained>,
    /// The names of the upstreams that would get the event.
    upstreams: Vec<String>,
}

/// Lines of text under a title.
///
/// ```
/// use pixelgate::tools::Section;
///
/// fn print(Section { title, lines }: &Section) {
///     println!("{title}:\n  {}", lines.join("\n  "));
/// }
/// ```
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// What the lines are about.
    pub title: Cow<'static, str>,
    /// At least one line.
    pub lines: Vec<String>,
}

type Lines = Vec<String>;

/// The JSON of an accepted event; SPEC 8 fixes the order of the keys.
#[derive(Serialize)]
struct Accepted<'a> {
    verdict: &'static str,
    event: Box<RawValue>,
    ignored: Vec<IgnoredParam<'a>>,
    upstreams: &'a [String],
    /// Only where an upstream of kind `hubspot` is configured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    translation: Vec<&'a serde_json::Value>,
}

#[derive(Serialize)]
struct IgnoredParam<'a> {
    param: &'a str,
    why: &'static str,
}

/// The JSON of a rejected event; SPEC 8 fixes the order of the keys.
#[derive(Serialize)]
struct Rejected {
    verdict: &'static str,
    reason: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'static str>,
    detail: &'static str,
}

/// Explains how `gate` would judge `text`: a whole URL, a host with a path, a path with a query, or
/// a query alone. Includes what the `upstreams` of kind `hubspot` would send.
///
/// ```
/// use pixelgate::custom::PortalFormat;
/// use pixelgate::{Config, PixelGate, tools};
///
/// let builder = PixelGate::builder(Config::default());
/// let judge = builder.portals("62515", PortalFormat::Text).gate()?;
/// let explanation = tools::explain(&judge, &[], "/v1/event/?_a=62515&_n=buy&_m=x")?;
/// assert_eq!(explanation.verdict(), "rejected: invalid_revenue (status 400)");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`NotAnEvent`] if the path of the text is not below `events.path`.
pub fn explain<'a>(
    gate: &Gate,
    upstreams: &[upstream::Config],
    text: &'a str,
) -> Result<Explanation<'a>, NotAnEvent> {
    let (reading, link_query) = split_text(gate, text);
    if reading == Reading::Other {
        return Err(NotAnEvent);
    }
    // A browser sends a link without its fragment.
    let query = link_query.split('#').next().unwrap_or_default();
    let request = EventRequest { method: &Method::GET, reading, query: query.as_bytes() };
    let mut accepted = AcceptedEvent::blank();
    let decision = gate.consider(request, &mut accepted);
    let names: Vec<String> = match &accepted.route {
        Some(route) => route.names().map(str::to_owned).collect(),
        None => gate.portals().upstreams().to_vec(),
    };
    let mut hubspot = match decision {
        Decision::Accept => upstream::explain(upstreams, &accepted.event),
        _ => Vec::new(),
    };
    hubspot.retain(|explained| names.contains(&explained.upstream));
    Ok(Explanation {
        decision,
        accepted,
        received: received_params(query, gate.rules()),
        policy: policy_lines(gate, reading, query),
        hints: link_hints(gate, text, link_query),
        hubspot,
        upstreams: names,
    })
}

impl Explanation<'_> {
    /// Whether the event would be accepted.
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
            // Unreachable: `explain` judges a GET.
            Decision::Head | Decision::Preflight => "there is nothing to judge".to_owned(),
        }
    }

    /// The sections of the explanation; empty sections are left out.
    pub fn sections(&self) -> Vec<Section> {
        let ([about, ignored], is_rejected) = match &self.decision {
            Decision::Accept => {
                let why = |(param, why): &(Cow<'_, str>, event::Ignored)| {
                    format!("{}: {}", shown(param), why.detail())
                };
                (
                    [event_lines(&self.accepted), self.accepted.ignored.iter().map(why).collect()],
                    false,
                )
            }
            Decision::Reject(rejection) => {
                let about = rejection.param.map(|p| format!("about {p}: ")).unwrap_or_default();
                let mut lines = vec![format!("{about}{}", rejection.detail())];
                let host = rejection.host_reason;
                lines.extend(host.map(|reason| format!("the host's reason: {}", shown(reason))));
                ([lines, Lines::new()], true)
            }
            Decision::Head | Decision::Preflight => return Vec::new(),
        };
        let likely = self.hints.iter().map(|h| format!("{}: {}", shown(&h.param), h.hint.detail()));
        let all = [
            ("what arrived", self.received.clone()),
            (if is_rejected { "what to do" } else { "what was made of it" }, about),
            ("what was ignored", ignored),
            ("policy", self.policy.clone()),
            ("likely mistakes", likely.collect()),
        ];
        let sent = self.hubspot.iter().map(|explained| {
            let lines = explained.lines.iter().map(|line| shown(line)).collect();
            (format!("what upstream {} would send to HubSpot", explained.upstream).into(), lines)
        });
        let all = all.into_iter().map(|(title, lines)| (Cow::Borrowed(title), lines)).chain(sent);
        let all = all.filter(|(_, lines): &(_, Lines)| !lines.is_empty());
        all.map(|(title, lines)| Section { title, lines }).collect()
    }

    /// The explanation as plain text for a terminal: the verdict, then each section.
    pub fn to_text(&self) -> String {
        let mut text = self.verdict();
        for Section { title, lines } in self.sections() {
            text.push_str(&format!("\n\n{title}:\n  {}", lines.join("\n  ")));
        }
        text
    }

    /// The explanation as JSON (SPEC 8), with hidden characters escaped: a terminal may show it.
    ///
    /// # Errors
    ///
    /// None is known: the wire form of an event is always valid JSON.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let json = match &self.decision {
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
                    upstreams: &self.upstreams,
                    translation: self.hubspot.iter().map(|explained| &explained.json).collect(),
                })?
            }
            Decision::Reject(rejection) => serde_json::to_string(&Rejected {
                verdict: "rejected",
                reason: rejection.reason.as_str(),
                status: rejection.reason.status(),
                param: rejection.param,
                detail: rejection.detail(),
            })?,
            Decision::Head | Decision::Preflight => "null".to_owned(),
        };
        Ok(escape_hidden(&json).into_owned())
    }
}

/// Splits a text into its reading and its query, with the fragment of a link. The text may be a
/// whole URL, a host with a path, a path, or a query alone.
fn split_text<'a>(gate: &Gate, text: &'a str) -> (Reading, &'a str) {
    let text = text.trim();
    // The slash of a path or of `://` comes before any parameter, also where the path holds a `=`.
    let first = text.find(['/', '=', '&', '?']).map(|at| text.as_bytes()[at]);
    if first != Some(b'/') {
        return (Reading::Event, text.strip_prefix('?').unwrap_or(text));
    }
    let mut path = Target::split(text.as_bytes()).path;
    let before_query = text.split('?').next().unwrap_or_default();
    if !text.starts_with('/') && !before_query.contains("://") {
        // A link copied without its scheme: `track.example.com/v1/event/?…`.
        let slash = path.iter().position(|&b| b == b'/').unwrap_or(0);
        path = &path[slash..];
    }
    let query = match text.split_once(['?', '#']) {
        Some((before, query)) if text[before.len()..].starts_with('?') => query,
        Some((before, _)) => &text[before.len()..],
        None => "",
    };
    (gate.read(path), query)
}

/// The likely mistakes in a link and in its query.
fn link_hints(gate: &Gate, text: &str, link_query: &str) -> Vec<ParamHint> {
    let scheme = text.trim().starts_with("//");
    let scheme = scheme.then(|| ParamHint { param: "//".to_owned(), hint: Hint::NoScheme });
    scheme.into_iter().chain(hints(link_query.as_bytes(), gate.rules())).collect()
}

/// The received parameters, decoded but not normalized.
fn received_params(query: &str, rules: &Rules) -> Lines {
    let pieces: Vec<&str> = query.split('&').filter(|piece| !piece.is_empty()).collect();
    let mut lines: Lines =
        pieces.iter().take(RECEIVED_LINES_MAX).map(|piece| param_line(piece, rules)).collect();
    if pieces.len() > lines.len() {
        lines.push(format!("and {} more", pieces.len() - lines.len()));
    }
    lines
}

fn param_line(piece: &str, rules: &Rules) -> String {
    let name = form_urlencoded::parse(piece.as_bytes()).next().map(|(name, _)| name);
    let name = name.unwrap_or_default().trim().to_ascii_lowercase();
    // A broken link may put text before the name, as in `amp;hapikey`.
    let is_name_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let last_word = name.rsplit(|c| !is_name_part(c)).next().unwrap_or_default();
    if rules.withholds(&name) || rules.withholds(last_word) {
        return format!("{} (its value is not shown)", shown(&name));
    }
    // In `email` and `_m` a raw `+` is a plus sign, not a space (SPEC 3).
    let piece = match name.as_str() {
        "email" | "_m" => Cow::Owned(piece.replace('+', "%2B")),
        _ => Cow::Borrowed(piece),
    };
    match form_urlencoded::parse(piece.as_bytes()).next() {
        Some((name, value)) => format!("{} = {}", shown(&name), shown(&value)),
        None => "=".to_owned(),
    }
}

fn event_lines(accepted: &AcceptedEvent<'_>) -> Lines {
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

/// The rule of the portal list that decided, and what the other rules of the portal do to the
/// event. Empty if the path or the parameters are invalid.
fn policy_lines(gate: &Gate, reading: Reading, query: &str) -> Lines {
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
    let names = event.properties.iter().map(|(name, _)| name.as_ref());
    let email = event.email.iter().map(|_| "email");
    let id = event.external_id.iter().map(|_| "id");
    let dropped = email.chain(id).chain(names).filter(|name| portal.policy.drops(name));
    lines.extend(dropped.map(|name| format!("{name}: not passed on (drop_properties)")));
    lines.extend(portal.policy.route().map(|route| {
        let names: Vec<&str> = route.names().collect();
        format!("goes to {} only (upstreams)", names.join(", "))
    }));
    lines.extend(portal.policy.stricter().map(|rule| format!("stricter privacy: {rule}")));
    let quota = |events: u32| format!("at most {events} events a UTC day at each edge (quota)");
    lines.extend(portal.policy.quota().map(quota));
    lines
}

/// The caller's text, safe to print on a terminal: hidden characters are escaped.
fn shown(text: &str) -> String {
    let show = |c: char| match is_hidden(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(show).collect()
}
