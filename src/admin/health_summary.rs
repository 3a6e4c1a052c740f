//! The health summary, which an operator reads first: one sentence about the state, and one or two
//! about what to do.
//!
//! It reports the worst condition only. Conditions in which events are refused come first, then
//! those in which events wait, then unusual ones. The sentences hold names from the configuration,
//! numbers, and errors that the log shows as well.

use super::readiness::{spool_advice, wait};
use super::snapshot::Snapshot;
use crate::delivery;
use crate::delivery::State;
use crate::policy::portals;
use crate::policy::portals::Mode;

/// An upstream that retries is reported only after this time, in seconds.
const HICCUP_SECONDS: u64 = 10;
/// A spool that is going to be full within this time, in seconds, is reported.
const FULL_SOON_SECONDS: u64 = 3600;
/// A spool that is going to be full only after this time, in seconds, counts as not filling up.
/// `page.js` has the same limit.
const FILLS_SECONDS: u64 = 30 * 86_400;

/// How urgent the condition is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The operator has nothing to do.
    Ok,
    /// Events are accepted and delivered, but an operator should look.
    Notice,
    /// Events are refused, or wait for an upstream.
    Trouble,
}

impl Level {
    /// The word in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Notice => "notice",
            Level::Trouble => "trouble",
        }
    }
}

/// The worst condition of a gate, in sentences for an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSummary {
    /// How urgent the condition is.
    pub level: Level,
    /// The state, as one sentence.
    pub text: String,
    /// What to do, in one or two sentences.
    pub advice: String,
}

fn trouble(text: String, advice: impl Into<String>) -> Option<HealthSummary> {
    Some(HealthSummary { level: Level::Trouble, text, advice: advice.into() })
}

fn notice(text: String, advice: impl Into<String>) -> Option<HealthSummary> {
    Some(HealthSummary { level: Level::Notice, text, advice: advice.into() })
}

/// The worst condition of this snapshot.
pub fn health_summary(snapshot: &Snapshot) -> HealthSummary {
    None.or_else(|| spool_refuses(snapshot))
        .or_else(|| portals_refuse(&snapshot.portals))
        .or_else(|| upstream_holds_back(snapshot))
        .or_else(|| draining(snapshot))
        .or_else(|| waits_for_predecessor(snapshot))
        .or_else(|| spool_fills(snapshot))
        .or_else(|| portals_are_old(&snapshot.portals))
        .or_else(|| fault(snapshot))
        .or_else(|| rejections(snapshot))
        .unwrap_or_else(|| well(snapshot))
}

fn spool_refuses(snapshot: &Snapshot) -> Option<HealthSummary> {
    let why = snapshot.spool.failing.as_ref()?;
    trouble(format!("Events are refused: {why}."), spool_advice(why))
}

fn portals_refuse(portals: &portals::Status) -> Option<HealthSummary> {
    let why = portals.refuses_all()?;
    let failure = portals.last_failure.as_ref().map(|failure| failure.what.as_str());
    let failure = failure.unwrap_or("It has not answered yet");
    let advice = format!("Look at portals.source. {failure}.{}", wait(portals));
    trouble(format!("Events are refused: {why}."), advice)
}

/// Reports the upstream that has been in trouble for the longest time.
fn upstream_holds_back(snapshot: &Snapshot) -> Option<HealthSummary> {
    let troubled = snapshot.routes.iter().filter(|route| is_in_trouble(route));
    let route = troubled.max_by_key(|route| route.trouble_seconds)?;
    let name = &route.name;
    let held = snapshot.spool.upstreams.iter().find(|held| held.name == *name);
    let wait = match held.map_or(0, |held| held.pending) {
        0 => "no event waits".to_owned(),
        1 => "1 event waits safely on disk".to_owned(),
        more => format!("{} events wait safely on disk", grouped(more)),
    };
    let error = route.last_error.as_deref().unwrap_or("none is known");
    let room = match snapshot.spool.seconds_to_full {
        Some(seconds) if seconds < FILLS_SECONDS => {
            format!(" At this pace the spool is full in {}.", span(seconds))
        }
        _ => String::new(),
    };
    match route.state {
        State::Misconfigured => trouble(
            format!("Upstream {name} refuses every request as it is configured; {wait}."),
            format!(
                "Last error: {error}. Correct [[upstream]] {name}: it takes effect by itself.{room}"
            ),
        ),
        State::DeadLettersFailing => trouble(
            format!("The dead letters of upstream {name} cannot be written; {wait}."),
            format!(
                "Last error: {error}. Make their folder below spool.dir writable, or make room \
                 there with `pixelgate dead replay` or `dead drop`.{room}"
            ),
        ),
        State::SpoolUnreadable => trouble(
            format!("Events for upstream {name} cannot be read from the spool; {wait}."),
            format!("The edge tries to read them each second. Check the disk of spool.dir.{room}"),
        ),
        _ => trouble(
            format!(
                "Upstream {name} has taken nothing for {}; {wait}.",
                span(route.trouble_seconds.unwrap_or(0))
            ),
            format!("Last error: {error}. Repair the upstream: delivery resumes by itself.{room}"),
        ),
    }
}

/// Whether an upstream needs an operator's attention.
pub fn is_in_trouble(route: &delivery::Status) -> bool {
    match route.state {
        // Records of a newer version and events that are held back are a fault of their own, which
        // `fault` shows. Each upgrade makes events wait for the older process, which
        // `waits_for_predecessor` shows.
        State::Ok
        | State::PredecessorLives
        | State::NewerRecords
        | State::HeldBack
        | State::Stopped => false,
        State::Retrying => route.trouble_seconds.is_some_and(|s| s >= HICCUP_SECONDS),
        State::Down | State::Misconfigured | State::DeadLettersFailing | State::SpoolUnreadable => {
            true
        }
    }
}

fn draining(snapshot: &Snapshot) -> Option<HealthSummary> {
    if !snapshot.draining {
        return None;
    }
    notice(
        "This edge is about to stop. It still accepts events.".to_owned(),
        "Nothing to do: balancers send their requests elsewhere, and events on disk are delivered \
         after the next start.",
    )
}

fn waits_for_predecessor(snapshot: &Snapshot) -> Option<HealthSummary> {
    let waits = |route: &&delivery::Status| route.state == State::PredecessorLives;
    let name = &snapshot.routes.iter().find(waits)?.name;
    notice(
        format!("Events for upstream {name} wait until the older process of this spool has ended."),
        "They keep the order of each portal. If the older process does not end, stop it.",
    )
}

fn spool_fills(snapshot: &Snapshot) -> Option<HealthSummary> {
    let seconds = snapshot.spool.seconds_to_full.filter(|&seconds| seconds < FULL_SOON_SECONDS)?;
    notice(
        format!("Events flow in faster than out; the spool is full in {}.", span(seconds)),
        "An upstream is too slow: look at its lag, and raise its concurrency_max or its batches.",
    )
}

fn portals_are_old(portals: &portals::Status) -> Option<HealthSummary> {
    if portals.fresh || portals.mode == Mode::Off {
        return None;
    }
    let failure = portals.last_failure.as_ref().map(|failure| failure.what.as_str());
    let text = match portals.loaded_at_ms {
        Some(_) => format!(
            "Events flow, but the portal list cannot be refreshed; the last good one, of {} \
             portals, stays in force.",
            grouped(portals.count as u64)
        ),
        None => "Events flow, but no portal list has been loaded yet.".to_owned(),
    };
    let failure = failure.unwrap_or("Look at portals.source");
    notice(text, format!("{failure}.{}", wait(portals)))
}

/// Reports the fault that has lasted for the longest time.
fn fault(snapshot: &Snapshot) -> Option<HealthSummary> {
    let fault = snapshot.faults.first()?;
    notice(fault.text.clone(), fault.advice.clone())
}

fn rejections(snapshot: &Snapshot) -> Option<HealthSummary> {
    let lately = &snapshot.lately;
    let (reason, most) = *lately.ranked().first()?;
    let over = span(lately.seconds);
    let rejected = lately.refused() + lately.turned_away();
    let advice = format!("{} for {}: {}", grouped(most), reason.as_str(), reason.detail());
    if lately.turned_away() > 0 {
        let count = grouped(lately.turned_away());
        notice(format!("Events flow, but {count} were turned away in the last {over}."), advice)
    } else if lately.accepted == 0 {
        let count = grouped(rejected);
        notice(format!("No event counts: all {count} of the last {over} were rejected."), advice)
    } else if rejected > lately.accepted {
        let share = 100 * rejected / (rejected + lately.accepted);
        notice(format!("Events flow, but {share} % were rejected in the last {over}."), advice)
    } else {
        None
    }
}

fn well(snapshot: &Snapshot) -> HealthSummary {
    let lately = &snapshot.lately;
    let over = span(lately.seconds);
    let mode = match snapshot.portals.mode {
        Mode::Enforce => "",
        Mode::DryRun => " portals.mode is dry_run: what enforce would refuse is accepted.",
        Mode::Off => " portals.mode is off: every portal is allowed.",
    };
    let (text, advice) = match lately.accepted {
        0 => (
            format!("Ready. No event has come in the last {over}."),
            "If you expect events, give a tracking link to pixelgate explain: it shows the verdict \
             and its reason."
                .to_owned(),
        ),
        many => (
            "Events flow.".to_owned(),
            format!("{} accepted in the last {over}. Nothing to do.", grouped(many)),
        ),
    };
    HealthSummary { level: Level::Ok, text, advice: format!("{advice}{mode}") }
}

/// A number with separators: `12,400`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `40 s`, `3 min`, `2 h`, `5 days`: one unit, rounded down.
fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", grouped(seconds / 86_400)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::history::Span;
    use crate::event::Reason;
    use crate::spool;
    use crate::telemetry::event_samples::Ranking;
    use std::collections::HashMap;
    use std::time::Duration;

    fn snapshot() -> Snapshot {
        Snapshot {
            draining: false,
            spool: spool::Status {
                bytes: 0,
                free_bytes: 1 << 40,
                seconds_to_full: None,
                quarantined_bytes: 0,
                direct_writes: true,
                lanes_of_other_processes: 0,
                failing: None,
                upstreams: vec![spool::UpstreamStatus {
                    name: "collector".to_owned(),
                    accepted: 12_400,
                    delivered: 0,
                    dead: 0,
                    lost: 0,
                    pending: 12_400,
                }],
            },
            portals: portals::Status {
                count: 1_000_000,
                mode: Mode::Enforce,
                loaded_at_ms: Some(0),
                last_failure: None,
                failures: 0,
                fresh: true,
                stale: false,
                retry_at_ms: None,
                unstored: None,
            },
            portal_totals: Default::default(),
            portals_since_ms: None,
            faults: Vec::new(),
            routes: vec![delivery::Status {
                name: "collector".to_owned(),
                kind: "http",
                state: State::Ok,
                trouble_seconds: None,
                lag_seconds: 0,
                last_error: None,
                outcomes: Vec::new(),
            }],
            lately: Span { seconds: 600, accepted: 5, ..Span::default() },
            at_ms: 0,
            uptime: Duration::ZERO,
            accepted: 5,
            rejected: Vec::new(),
            not_judged: 0,
            spool_bytes_max: 1 << 30,
            top_portals: Ranking::default(),
            rejections: HashMap::new(),
            recent: Vec::new(),
            recent_rejected: Vec::new(),
        }
    }

    fn check(change: impl FnOnce(&mut Snapshot), level: Level, parts: &[&str]) {
        let mut snapshot = snapshot();
        change(&mut snapshot);
        let summary = health_summary(&snapshot);
        assert_eq!(summary.level, level, "{summary:?}");
        for part in parts {
            let found = summary.text.contains(part) || summary.advice.contains(part);
            assert!(found, "{part:?} is not in {summary:?}");
        }
        assert!(summary.advice.ends_with('.') && !summary.advice.contains(".."), "{summary:?}");
    }

    #[test]
    fn only_the_worst_condition_is_reported() {
        let down = |snapshot: &mut Snapshot| {
            snapshot.routes[0].state = State::Down;
            snapshot.routes[0].trouble_seconds = Some(200);
            snapshot.routes[0].last_error = Some("connection refused".to_owned());
        };
        check(|_| {}, Level::Ok, &["Events flow.", "5 accepted in the last 10 min"]);
        check(|snapshot| snapshot.lately.accepted = 0, Level::Ok, &["Ready.", "explain"]);
        check(|snapshot| snapshot.draining = true, Level::Notice, &["about to stop"]);
        check(
            down,
            Level::Trouble,
            &[
                "Upstream collector has taken nothing for 3 min",
                "12,400 events wait safely on disk",
            ],
        );
        check(
            |snapshot| {
                down(snapshot);
                snapshot.spool.failing = Some("spool.bytes_max is reached".to_owned());
            },
            Level::Trouble,
            &["Events are refused: spool.bytes_max is reached.", "repair that upstream"],
        );
        check(
            |snapshot| {
                down(snapshot);
                snapshot.spool.seconds_to_full = Some(7200);
            },
            Level::Trouble,
            &["full in 2 h"],
        );
        check(
            |snapshot| {
                down(snapshot);
                snapshot.routes[0].state = State::Misconfigured;
            },
            Level::Trouble,
            &["as it is configured", "[[upstream]] collector"],
        );
        check(|snapshot| snapshot.portals.loaded_at_ms = None, Level::Trouble, &["no portal list"]);
        check(|snapshot| snapshot.portals.stale = true, Level::Trouble, &["stale_seconds_max"]);
        check(
            |snapshot| snapshot.portals.fresh = false,
            Level::Notice,
            &["1,000,000 portals, stays"],
        );
        check(
            |snapshot| snapshot.routes[0].state = State::PredecessorLives,
            Level::Notice,
            &["collector wait until the older process", "stop it"],
        );
        check(
            |snapshot| snapshot.spool.seconds_to_full = Some(600),
            Level::Notice,
            &["full in 10 min"],
        );
    }

    #[test]
    fn a_short_failure_is_not_reported() {
        let retrying = |seconds| {
            move |snapshot: &mut Snapshot| {
                snapshot.routes[0].state = State::Retrying;
                snapshot.routes[0].trouble_seconds = Some(seconds);
            }
        };
        check(retrying(HICCUP_SECONDS - 1), Level::Ok, &["Events flow"]);
        check(retrying(HICCUP_SECONDS), Level::Trouble, &["has taken nothing for 10 s"]);
    }

    #[test]
    fn many_rejections_are_reported() {
        let of = |reason: Reason, count| {
            move |snapshot: &mut Snapshot| snapshot.lately.by_reason[reason as usize] = count
        };
        check(of(Reason::InvalidEmail, 5), Level::Ok, &["Events flow."]);
        check(of(Reason::InvalidEmail, 45), Level::Notice, &["90 %", "45 for invalid_email"]);
        check(of(Reason::Overloaded, 1), Level::Notice, &["1 were turned away"]);
        let all = |snapshot: &mut Snapshot| {
            snapshot.lately.accepted = 0;
            snapshot.lately.by_reason[Reason::PortalNotAllowed as usize] = 3;
        };
        check(all, Level::Notice, &["No event counts: all 3", "portal_not_allowed"]);
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0, 119, 120, 7200, 172_800].map(span),
            ["0 s", "119 s", "2 min", "2 h", "2 days"]
        );
    }
}
