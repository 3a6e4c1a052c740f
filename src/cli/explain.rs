//! `pixelgate explain`: what would become of an event, and why.
//!
//! Asks the same judge as a request does, through the same public interface, and puts the answer
//! into words for the person who built the link. Nothing is recorded.

use crate::config::Config;
use pixelgate::event::{self, Advice, Context, Judged, Rules, advice};
use pixelgate::gate::{Gate, Hit, Judgement, Kept, Refusal};
use pixelgate::path::Reading;
use pixelgate::portals::Ruling;
use pixelgate::target::Target;
use pixelgate::upstream::hubspot::{self, Explained};
use pixelgate::{OpenError, PixelGate};
use serde::Serialize;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::io::Write;
use url::form_urlencoded;

/// The most parameters that are shown as they arrived, one a line.
const ARRIVED_LINES_MAX: usize = 100;

/// Why there is no answer.
#[derive(Debug)]
pub enum ExplainError {
    /// The judge did not open.
    Open(OpenError),
    /// The address is no event's: it would be passed on to the origin.
    NotAnEvent,
    /// The answer could not be printed.
    Print(std::io::Error),
}

impl std::fmt::Display for ExplainError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open(e) => e.fmt(f),
            Self::NotAnEvent => f.write_str(
                "this address is not below events.path: such a request is passed on to the origin",
            ),
            Self::Print(e) => write!(f, "cannot print: {e}"),
        }
    }
}

/// The JSON of an accepted event; the order of the keys is the contract's (SPEC 8).
#[derive(Serialize)]
struct Accepted<'a> {
    verdict: &'static str,
    event: Box<RawValue>,
    ignored: Vec<IgnoredParam<'a>>,
    /// Only where an upstream of kind `hubspot` is configured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    translation: Vec<serde_json::Value>,
}

#[derive(Serialize)]
struct IgnoredParam<'a> {
    param: &'a str,
    why: &'static str,
}

/// The JSON of a rejected event.
#[derive(Serialize)]
struct Rejected {
    verdict: &'static str,
    reason: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    param: Option<&'static str>,
    detail: &'static str,
}

/// Explains one event on standard output; says whether it would be accepted.
pub fn explain(config: &Config, text: &str, as_json: bool) -> Result<bool, ExplainError> {
    let builder = PixelGate::builder(config.gate()).state_dir(&config.edge.state_dir);
    let gate = builder.gate().map_err(ExplainError::Open)?;
    let (reading, query) = read(&gate, text);
    if reading == Reading::Other {
        return Err(ExplainError::NotAnEvent);
    }
    let context = Context::default();
    let hit = Hit { method: &http::Method::GET, reading, query: query.as_bytes(), context };
    let judgement = gate.judge(hit);
    let hubspot = match &judgement {
        Judgement::Keep(kept) => hubspot::explain(&config.upstream, &kept.event),
        _ => Vec::new(),
    };
    let answer = match as_json {
        true => to_json(&judgement, hubspot).map_err(|e| ExplainError::Print(e.into()))?,
        false => {
            // The gate was built from the same section, so it is in order.
            let rules = Rules::new(&config.events).unwrap_or_default();
            let policy = policy(&gate, reading, query, &rules);
            let hints = advice(query.as_bytes(), &rules);
            to_text(&judgement, arrived(query), policy, &hints, &hubspot)
        }
    };
    writeln!(std::io::stdout().lock(), "{answer}").map_err(ExplainError::Print)?;
    Ok(matches!(judgement, Judgement::Keep(_)))
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

fn to_json(judgement: &Judgement<'_>, hubspot: Vec<Explained>) -> serde_json::Result<String> {
    match judgement {
        Judgement::Keep(Kept { event, ignored, .. }) => {
            let mut wire = Vec::new();
            event::write_event_json(&mut wire, event);
            let ignored = ignored.iter();
            serde_json::to_string(&Accepted {
                verdict: "accepted",
                event: serde_json::from_slice(&wire)?,
                ignored: ignored
                    .map(|(param, why)| IgnoredParam { param, why: why.as_str() })
                    .collect(),
                translation: hubspot.into_iter().map(|told| told.json).collect(),
            })
        }
        Judgement::Refuse(Refusal { reject, .. }) => serde_json::to_string(&Rejected {
            verdict: "rejected",
            reason: reject.reason.as_str(),
            status: reject.reason.status(),
            param: reject.param,
            detail: reject.detail(),
        }),
        // `explain` asks with GET alone.
        Judgement::Head | Judgement::Preflight => Ok("null".to_owned()),
    }
}

type Lines = Vec<String>;

fn to_text(
    judgement: &Judgement<'_>,
    arrived: Lines,
    policy: Lines,
    hints: &[Advice<'_>],
    hubspot: &[Explained],
) -> String {
    let (verdict, outcome) = match judgement {
        Judgement::Keep(kept) => {
            let ignored = kept.ignored.iter();
            let ignored = ignored.map(|(param, why)| format!("{}: {}", shown(param), why.detail()));
            let made =
                [("what was made of it", made(kept)), ("what was ignored", ignored.collect())];
            ("accepted: this event counts.".to_owned(), made)
        }
        Judgement::Refuse(Refusal { reject, .. }) => {
            let about = reject.param.map(|param| format!("about {param}: ")).unwrap_or_default();
            let to_do = vec![format!("{about}{}", reject.detail())];
            let verdict =
                format!("rejected: {} (status {})", reject.reason.as_str(), reject.reason.status());
            (verdict, [("what to do", to_do), ("what was ignored", Lines::new())])
        }
        Judgement::Head | Judgement::Preflight => return "nothing to judge".to_owned(),
    };
    let likely = hints.iter().map(|a| format!("{}: {}", shown(&a.param), a.hint.detail()));
    let [made, ignored] = outcome;
    let likely = ("likely mistakes", likely.collect());
    let sections = [("what arrived", arrived), made, ignored, ("policy", policy), likely];
    let sections = sections.map(|(title, lines)| (title.to_owned(), lines)).into_iter();
    let sent = hubspot.iter().map(|told| {
        let lines = told.lines.iter().map(|line| shown(line)).collect();
        (format!("what upstream {} would send to HubSpot", told.upstream), lines)
    });
    let mut text = verdict;
    for (title, lines) in sections.chain(sent).filter(|(_, lines)| !lines.is_empty()) {
        text.push_str(&format!("\n\n{title}:\n  {}", lines.join("\n  ")));
    }
    text
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

fn made(kept: &Kept<'_>) -> Lines {
    let event = &kept.event;
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
fn policy(gate: &Gate, reading: Reading, query: &str, rules: &Rules) -> Lines {
    let parsed = event::parse(query.as_bytes(), rules);
    let (Reading::Event, Ok(Judged { event, .. })) = (reading, parsed) else {
        return Lines::new();
    };
    let decision = gate.portals().judge(event.portal, &event.name);
    let mut lines = vec![decision.explain(&event.name)];
    match decision.ruling {
        Ruling::Allowed => {}
        Ruling::WouldRefuse(reason) => {
            lines.push(format!("a dry run: enforce would answer {}", reason.as_str()));
        }
        Ruling::Refused(_) => return lines,
    }
    let names = event.properties.iter().map(|(name, _)| name);
    let dropped = names.filter(|name| decision.policy.drops(name));
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
