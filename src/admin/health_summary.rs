//! The first thing an operator reads: one sentence on how the edge is, and one on what to do.
//!
//! The worst that is the case is told, and it alone: first what refuses events, then what holds
//! them back, then what is odd. The sentences hold names from the configuration, numbers, and the
//! errors that the log shows, too.

use super::sampler::Snapshot;
use crate::delivery;
use crate::delivery::State;
use crate::policy::portals;
use crate::policy::portals::Mode;

/// A fresh failure is a hiccup: for so long, in seconds, an upstream that retries is not news.
const HICCUP_SECONDS: u64 = 10;
/// From when on a spool that fills up is news, in seconds.
const FULL_SOON_SECONDS: u64 = 3600;
/// A spool that is full later than this, in seconds, is not said to fill up. The same in `page.js`.
const FILLS_SECONDS: u64 = 30 * 86_400;

/// How loud to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All is well.
    Ok,
    /// Events flow, and somebody should look.
    Notice,
    /// Events are refused or held back.
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

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headline {
    /// How loud to be.
    pub level: Level,
    /// How the edge is.
    pub text: String,
    /// What to do.
    pub advice: String,
}

fn trouble(text: String, advice: impl Into<String>) -> Option<Headline> {
    Some(Headline { level: Level::Trouble, text, advice: advice.into() })
}

fn notice(text: String, advice: impl Into<String>) -> Option<Headline> {
    Some(Headline { level: Level::Notice, text, advice: advice.into() })
}

/// Says how the edge is.
pub fn headline(look: &Snapshot) -> Headline {
    None.or_else(|| spool_refuses(look))
        .or_else(|| portals_refuse(&look.portals))
        .or_else(|| upstream_holds_back(look))
        .or_else(|| spool_fills(look))
        .or_else(|| portals_are_old(&look.portals))
        .or_else(|| rejections(look))
        .unwrap_or_else(|| well(look))
}

fn spool_refuses(look: &Snapshot) -> Option<Headline> {
    let why = look.spool.failing.as_ref()?;
    let advice = if why.contains("bytes_max") {
        "The spool is full because an upstream does not take its events: see to it first. Raising \
         spool.bytes_max gains time. What waits is safe; senders are told to come back."
    } else if why.contains("free_bytes_min") {
        "Make room on the disk of spool.dir. Events are accepted again by themselves; what waits \
         is safe."
    } else {
        "Look at the disk of spool.dir. Events are accepted again by themselves once it takes \
         them; what was answered 200 is safe."
    };
    trouble(format!("Events are refused: {why}."), advice)
}

fn portals_refuse(portals: &portals::Status) -> Option<Headline> {
    let failure = portals.last_failure.as_ref().map(|failure| failure.what.as_str());
    let failure = failure.unwrap_or("It has not answered yet");
    if portals.mode == Mode::Off {
        None
    } else if portals.loaded_at_ms.is_none() {
        let advice = format!("Look at portals.source. {failure}.");
        trouble("Events are refused: no portal list has been loaded yet.".to_owned(), advice)
    } else if portals.stale {
        let advice = format!("Look at portals.source. {failure}.");
        let text = "Events are refused: the portal list is older than portals.stale_seconds_max.";
        trouble(text.to_owned(), advice)
    } else {
        None
    }
}

/// Of several the one that has been in trouble for longest.
fn upstream_holds_back(look: &Snapshot) -> Option<Headline> {
    let troubled = look.routes.iter().filter(|route| is_in_trouble(route));
    let route = troubled.max_by_key(|route| route.trouble_seconds)?;
    let name = &route.name;
    let held = look.spool.upstreams.iter().find(|held| held.name == *name);
    let wait = match held.map_or(0, |held| held.pending) {
        0 => "no event waits".to_owned(),
        1 => "1 event waits safely on disk".to_owned(),
        more => format!("{} events wait safely on disk", grouped(more)),
    };
    let error = route.last_error.as_deref().unwrap_or("none is known");
    let room = match look.spool.seconds_to_full {
        Some(seconds) if seconds < FILLS_SECONDS => {
            format!(" At this pace the spool is full in {}.", span(seconds))
        }
        _ => String::new(),
    };
    match route.state {
        State::Misconfigured => trouble(
            format!("Upstream {name} does not accept how it is asked; {wait}."),
            format!("Last error: {error}. Set [[upstream]] {name} right and restart.{room}"),
        ),
        State::DeadLettersFailing => trouble(
            format!("The dead letters of upstream {name} cannot be written; {wait}."),
            format!("Last error: {error}. Make their folder below spool.dir writable.{room}"),
        ),
        _ => trouble(
            format!(
                "Upstream {name} has taken nothing for {}; {wait}.",
                span(route.trouble_seconds.unwrap_or(0))
            ),
            format!("Last error: {error}. See to the upstream: delivery goes on by itself.{room}"),
        ),
    }
}

/// Whether an upstream needs somebody.
pub fn is_in_trouble(route: &delivery::Status) -> bool {
    match route.state {
        State::Ok | State::Stopped => false,
        State::Retrying => route.trouble_seconds.is_some_and(|s| s >= HICCUP_SECONDS),
        State::Down | State::Misconfigured | State::DeadLettersFailing => true,
    }
}

fn spool_fills(look: &Snapshot) -> Option<Headline> {
    let seconds = look.spool.seconds_to_full.filter(|&seconds| seconds < FULL_SOON_SECONDS)?;
    notice(
        format!("Events flow in faster than out; the spool is full in {}.", span(seconds)),
        "An upstream is too slow: look at its lag, and raise its concurrency_max or its batches.",
    )
}

fn portals_are_old(portals: &portals::Status) -> Option<Headline> {
    if portals.fresh || portals.mode == Mode::Off {
        return None;
    }
    let failure = portals.last_failure.as_ref().map(|failure| failure.what.as_str());
    notice(
        format!(
            "Events flow, but the portal list cannot be refreshed; the last good one, of {} \
             portals, stays in force.",
            grouped(portals.count as u64)
        ),
        format!("{}.", failure.unwrap_or("Look at portals.source")),
    )
}

fn rejections(look: &Snapshot) -> Option<Headline> {
    let lately = &look.lately;
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

fn well(look: &Snapshot) -> Headline {
    let lately = &look.lately;
    let over = span(lately.seconds);
    let mode = match look.portals.mode {
        Mode::Enforce => "",
        Mode::DryRun => " portals.mode is dry_run: what enforce would refuse is accepted.",
        Mode::Off => " portals.mode is off: every portal is allowed.",
    };
    let (text, advice) = match lately.accepted {
        0 => (
            format!("Ready. No event has come in the last {over}."),
            "If there should be some, follow one from its link: explain says what becomes of it."
                .to_owned(),
        ),
        many => (
            "Events flow.".to_owned(),
            format!("{} accepted in the last {over}. Nothing to do.", grouped(many)),
        ),
    };
    Headline { level: Level::Ok, text, advice: format!("{advice}{mode}") }
}

/// `12,400`.
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

/// `40 s`, `3 min`, `2 h`, `5 days`: as exact as people ask.
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
    use super::super::sampler::Span;
    use super::*;
    use crate::event::Reason;
    use crate::spool;

    fn look() -> Snapshot {
        Snapshot {
            spool: spool::Status {
                bytes: 0,
                free_bytes: 1 << 40,
                seconds_to_full: None,
                quarantined_bytes: 0,
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
            },
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
        }
    }

    fn check(change: impl FnOnce(&mut Snapshot), level: Level, parts: &[&str]) {
        let mut look = look();
        change(&mut look);
        let told = headline(&look);
        assert_eq!(told.level, level, "{told:?}");
        for part in parts {
            let found = told.text.contains(part) || told.advice.contains(part);
            assert!(found, "{part:?} is not in {told:?}");
        }
        assert!(told.advice.ends_with('.') && !told.advice.contains(".."), "{told:?}");
    }

    #[test]
    fn the_worst_is_told_and_what_to_do() {
        let down = |look: &mut Snapshot| {
            look.routes[0].state = State::Down;
            look.routes[0].trouble_seconds = Some(200);
            look.routes[0].last_error = Some("connection refused".to_owned());
        };
        check(|_| {}, Level::Ok, &["Events flow.", "5 accepted in the last 10 min"]);
        check(|look| look.lately.accepted = 0, Level::Ok, &["Ready.", "explain"]);
        check(
            down,
            Level::Trouble,
            &[
                "Upstream collector has taken nothing for 3 min",
                "12,400 events wait safely on disk",
            ],
        );
        check(
            |look| {
                down(look);
                look.spool.failing = Some("spool.bytes_max is reached".to_owned());
            },
            Level::Trouble,
            &["Events are refused: spool.bytes_max is reached.", "see to it first"],
        );
        check(
            |look| {
                down(look);
                look.spool.seconds_to_full = Some(7200);
            },
            Level::Trouble,
            &["full in 2 h"],
        );
        check(
            |look| {
                down(look);
                look.routes[0].state = State::Misconfigured;
            },
            Level::Trouble,
            &["how it is asked", "[[upstream]] collector"],
        );
        check(|look| look.portals.loaded_at_ms = None, Level::Trouble, &["no portal list"]);
        check(|look| look.portals.stale = true, Level::Trouble, &["stale_seconds_max"]);
        check(|look| look.portals.fresh = false, Level::Notice, &["1,000,000 portals, stays"]);
        check(|look| look.spool.seconds_to_full = Some(600), Level::Notice, &["full in 10 min"]);
    }

    #[test]
    fn a_hiccup_is_no_news() {
        let retrying = |seconds| {
            move |look: &mut Snapshot| {
                look.routes[0].state = State::Retrying;
                look.routes[0].trouble_seconds = Some(seconds);
            }
        };
        check(retrying(HICCUP_SECONDS - 1), Level::Ok, &["Events flow"]);
        check(retrying(HICCUP_SECONDS), Level::Trouble, &["has taken nothing for 10 s"]);
    }

    #[test]
    fn rejections_are_told_when_they_are_many() {
        let of = |reason: Reason, count| {
            move |look: &mut Snapshot| look.lately.by_reason[reason as usize] = count
        };
        check(of(Reason::InvalidEmail, 5), Level::Ok, &["Events flow."]);
        check(of(Reason::InvalidEmail, 45), Level::Notice, &["90 %", "45 for invalid_email"]);
        check(of(Reason::Overloaded, 1), Level::Notice, &["1 were turned away"]);
        let all = |look: &mut Snapshot| {
            look.lately.accepted = 0;
            look.lately.by_reason[Reason::PortalNotAllowed as usize] = 3;
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
