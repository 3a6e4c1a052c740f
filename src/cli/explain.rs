//! `pixelgate explain`: what would become of an event, and why.
//!
//! Asks the same judge as a request does, through the same public interface, and puts the answer
//! into words for the person who built the link. Nothing is recorded.

use crate::config::Config;
use pixelgate::event::{self, Advice, Context, Rules, advice};
use pixelgate::gate::{Gate, Hit, Judgement, Kept, Refusal};
use pixelgate::path::Reading;
use pixelgate::portals::Because;
use pixelgate::target::Target;
use pixelgate::{OpenError, PixelGate};
use serde_json::{Value, json};
use std::io::Write;

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

/// Explains one event on standard output; says whether it would be accepted.
pub fn explain(config: &Config, text: &str, as_json: bool) -> Result<bool, ExplainError> {
    let builder = PixelGate::builder(config.gate()).state_dir(&config.edge.state_dir);
    let gate = builder.gate().map_err(ExplainError::Open)?;
    let (reading, query) = read(&gate, text);
    if reading == Reading::Other {
        return Err(ExplainError::NotAnEvent);
    }
    let context = Context::default();
    let judgement = gate.judge(Hit { method: &http::Method::GET, reading, query, context });
    let rules = Rules::new(&config.events).unwrap_or_default();
    let hints = advice(query, &rules);
    let accepted = matches!(judgement, Judgement::Keep(_));
    let mut out = std::io::stdout().lock();
    let printed = match as_json {
        true => writeln!(out, "{}", to_json(&judgement)),
        false => write!(out, "{}", to_text(&gate, &judgement, &hints)),
    };
    printed.map_err(ExplainError::Print)?;
    Ok(accepted)
}

/// What stands in a text: a whole URL, a host with a path, a path, or a query alone.
fn read<'a>(gate: &Gate, text: &'a str) -> (Reading, &'a [u8]) {
    let text = text.trim();
    let before_query = text.split('?').next().unwrap_or_default();
    let has_path = before_query.contains('/') && !before_query.contains(['=', '&']);
    if !has_path {
        let query = text.strip_prefix('?').unwrap_or(text);
        let query = query.split('#').next().unwrap_or_default();
        return (Reading::Event, query.as_bytes());
    }
    let mut target = Target::split(text.as_bytes());
    if !text.starts_with('/') && !text.contains("://") {
        // `track.example.com/v1/event/?…`, as people copy it.
        let slash = target.path.iter().position(|&b| b == b'/').unwrap_or(0);
        target.path = &target.path[slash..];
    }
    (gate.read(target.path), target.query)
}

fn to_json(judgement: &Judgement<'_>) -> Value {
    match judgement {
        Judgement::Keep(kept) => {
            let ignored = kept
                .ignored
                .iter()
                .map(|(param, why)| json!({ "param": param, "why": why.as_str() }));
            json!({
                "verdict": "accepted",
                "event": event_value(kept),
                "ignored": ignored.collect::<Vec<_>>(),
            })
        }
        Judgement::Refuse(Refusal { reject, .. }) => {
            let mut answer = json!({
                "verdict": "rejected",
                "reason": reject.reason.as_str(),
                "status": reject.reason.status(),
                "detail": reject.detail(),
            });
            if let Some(param) = reject.param {
                answer["param"] = param.into();
            }
            answer
        }
        // `explain` asks with GET alone.
        Judgement::Head | Judgement::Preflight => json!({ "verdict": "not_judged" }),
    }
}

fn event_value(kept: &Kept<'_>) -> Value {
    let mut wire = Vec::new();
    event::write_event_json(&mut wire, &kept.event);
    serde_json::from_slice(&wire).unwrap_or_default()
}

fn to_text(gate: &Gate, judgement: &Judgement<'_>, hints: &[Advice<'_>]) -> String {
    let mut lines = Vec::new();
    match judgement {
        Judgement::Keep(kept) => {
            lines.push("accepted: this event counts.".to_owned());
            lines.push(String::new());
            push_event(&mut lines, kept);
            push_ignored(&mut lines, kept);
            lines.push(String::new());
            lines.push(format!("policy: {}", policy(gate, kept)));
        }
        Judgement::Refuse(Refusal { reject, .. }) => {
            let (reason, status) = (reject.reason.as_str(), reject.reason.status());
            lines.push(format!("rejected: {reason} (status {status})"));
            lines.push(String::new());
            if let Some(param) = reject.param {
                lines.push(format!("  about     {param}"));
            }
            lines.push(format!("  to do     {}", reject.detail()));
        }
        Judgement::Head | Judgement::Preflight => lines.push("nothing to judge".to_owned()),
    }
    if !hints.is_empty() {
        lines.push(String::new());
        lines.push("likely mistakes:".to_owned());
        lines.extend(hints.iter().map(|a| format!("  {}: {}", shown(&a.param), a.hint.detail())));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn push_event(lines: &mut Vec<String>, kept: &Kept<'_>) {
    let event = &kept.event;
    lines.push("what was made of it:".to_owned());
    let mut row = |name: &str, value: &str| lines.push(format!("  {name:<12} {value}"));
    row("portal", &event.portal.to_string());
    row("event", &shown(&event.name));
    if let Some(email) = &event.email {
        row("email", &shown(email));
    }
    if let Some(revenue) = &event.revenue {
        row("revenue", &revenue.to_string());
    }
    if let Some(id) = &event.external_id {
        row("external id", &shown(id));
    }
    for (name, value) in &event.properties {
        row("property", &format!("{name} = {}", shown(value)));
    }
}

fn push_ignored(lines: &mut Vec<String>, kept: &Kept<'_>) {
    if kept.ignored.is_empty() {
        return;
    }
    lines.push(String::new());
    lines.push("what was ignored:".to_owned());
    for (param, why) in &kept.ignored {
        lines.push(format!("  {}: {}", shown(param), why.detail()));
    }
}

/// Which rule decided.
fn policy(gate: &Gate, kept: &Kept<'_>) -> String {
    let decision = gate.portals().judge(kept.event.portal, &kept.event.name);
    let mut rule = match decision.because {
        Because::Off => "the portal list is switched off (portals.mode)".to_owned(),
        Because::Listed => format!("portal {} is in the list", kept.event.portal),
        other => format!("dry run: enforce would refuse it ({})", other.as_str()),
    };
    if let Some(reason) = kept.would_refuse {
        rule.push_str(&format!("; enforce would answer {}", reason.as_str()));
    }
    rule
}

/// A caller's text on a terminal: what could steer it is shown by its code.
fn shown(text: &str) -> String {
    let show = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(show).collect()
}
