//! Decides whether a portal's event is accepted, and gives the rules that apply to it then.

use std::{fmt, sync::Arc};

use arc_swap::Guard;

use super::config::Mode;
use super::list::{Entry, List};
use crate::clock::Clock;
use crate::event::{Reason, Route};
use crate::policy::privacy;

/// The decision about one event of one portal.
#[must_use]
#[derive(Debug)]
pub struct PortalDecision {
    /// Whether the event is accepted.
    pub verdict: PortalVerdict,
    /// What decided about the event.
    pub cause: Cause,
    /// The rules that apply to an accepted event.
    pub policy: Policy,
}

/// Whether an event is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortalVerdict {
    /// The event is accepted.
    Allowed,
    /// The event is rejected: `portal_not_allowed`, `event_not_allowed` or `overloaded`.
    Rejected(Reason),
    /// The event is accepted, but `enforce` would have rejected it (`dry_run`).
    WouldReject(Reason),
}

/// What decided about an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The mode is `off`.
    Off,
    /// No list has been loaded yet.
    NotLoaded,
    /// The list is older than `portals.stale_seconds_max`.
    Stale,
    /// The portal is not in the list.
    NotListed,
    /// The portal's `expires` has come.
    Expired,
    /// The name fits no pattern of the portal's `events`.
    NoPatternFits,
    /// The portal is in the list, and nothing in its rules is against the event.
    Listed,
}

impl Cause {
    /// The name in `explain`'s answer.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cause::Off => "off",
            Cause::NotLoaded => "not_loaded",
            Cause::Stale => "stale",
            Cause::NotListed => "not_listed",
            Cause::Expired => "expired",
            Cause::NoPatternFits => "no_pattern_fits",
            Cause::Listed => "listed",
        }
    }
}

/// `Retry-After` for a portal over its rate, in seconds. The least value of the header is long
/// enough, because every rate is at least one event per second.
const RETRY_AFTER_SECONDS: u32 = 1;

/// The portal has exceeded its rate, or used up its quota of the day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimited {
    /// The seconds after which the portal's next event is accepted.
    pub retry_after_seconds: u32,
    /// False in mode `dry_run`: the event is accepted and counted.
    pub enforced: bool,
}

/// The rules of one portal. It keeps the list in memory from which the rules are, so it must be
/// dropped at the end of the request.
pub struct Policy {
    list: Guard<Option<Arc<List>>>,
    entry: Option<Entry>,
    metering: Metering,
}

/// How a portal's rate and quota are applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metering {
    Enforced,
    /// Mode `dry_run`: an event over the rate is accepted, and counted as a refusal that `enforce`
    /// would give.
    Reported,
    /// The rate is not applied, because the mode is `off` or the event is already rejected.
    Off,
}

impl Policy {
    /// Whether the portal is in the list, expired or not.
    #[inline]
    pub fn is_listed(&self) -> bool {
        self.entry.is_some()
    }

    /// Whether this property is removed from the portal's events. This applies in every mode, `off`
    /// included. For a portal that is not in the list, the defaults apply.
    #[inline]
    pub fn drops(&self, property: &str) -> bool {
        let rules = self.list.as_ref().map(|list| list.rules(self.entry));
        let dropped = rules.and_then(|rules| rules.drop_properties.as_ref());
        dropped.is_some_and(|dropped| dropped.contains(property))
    }

    /// Whether [`Policy::drops`] is true for at least one property.
    #[inline]
    pub fn drops_any(&self) -> bool {
        let rules = self.list.as_ref().map(|list| list.rules(self.entry));
        let dropped = rules.and_then(|rules| rules.drop_properties.as_ref());
        dropped.is_some_and(|dropped| !dropped.is_empty())
    }

    /// The upstreams that the portal's events are meant for. `None`: all. Applies in every mode, as
    /// [`Policy::drops`] does.
    #[inline]
    pub fn route(&self) -> Option<&Route> {
        let rules = self.list.as_ref().map(|list| list.rules(self.entry));
        rules.and_then(|rules| rules.upstreams.as_ref()).and_then(|upstreams| upstreams.0.as_ref())
    }

    /// `[privacy]`, made stricter by the portal's `privacy`. Applies in every mode, as
    /// [`Policy::drops`] does.
    #[inline]
    pub fn privacy(&self, base: privacy::Config) -> privacy::Config {
        self.stricter().map_or(base, |stricter| base.tightened(&stricter))
    }

    /// The portal's `privacy`, for `explain`.
    pub fn stricter(&self) -> Option<privacy::Stricter> {
        let rules = self.list.as_ref().map(|list| list.rules(self.entry));
        rules.and_then(|rules| rules.privacy).map(|privacy| privacy.0)
    }

    /// The portal's quota of a day, in events, for `explain`.
    pub fn quota(&self) -> Option<u32> {
        let rules = self.list.as_ref().map(|list| list.rules(self.entry));
        rules.and_then(|rules| rules.quota).map(|quota| quota.per_day.get())
    }

    /// How a refusal by one of the portal's rules is treated.
    pub fn refusal(&self, reason: Reason) -> PortalVerdict {
        match self.metering {
            Metering::Enforced => PortalVerdict::Rejected(reason),
            Metering::Reported => PortalVerdict::WouldReject(reason),
            Metering::Off => PortalVerdict::Allowed,
        }
    }

    /// Counts one event against the portal's rate, and then against its quota of the day. Call this
    /// once, after every other check that can reject the event: an event that counted against the
    /// rate cannot be returned to it.
    #[inline]
    pub fn take_rate(&self) -> Result<(), RateLimited> {
        let (Some(list), Some(entry)) = (self.list.as_ref(), self.entry) else {
            return Ok(());
        };
        if self.metering == Metering::Off {
            return Ok(());
        }
        let limited = |retry_after_seconds| RateLimited {
            retry_after_seconds,
            enforced: self.metering == Metering::Enforced,
        };
        if !list.take_rate(entry) {
            return Err(limited(RETRY_AFTER_SECONDS));
        }
        list.take_quota(entry).map_err(limited)
    }
}

impl PortalDecision {
    /// The cause as a sentence, with the text of the rule.
    pub fn explain(&self, event_name: &str) -> String {
        let rules = self.policy.list.as_ref().map(|list| list.rules(self.policy.entry));
        let events = rules.and_then(|rules| rules.events.as_ref());
        let expires = rules.and_then(|rules| rules.expires);
        match (self.cause, events, expires) {
            (Cause::Off, ..) => "the portal list is switched off".to_owned(),
            (Cause::NotLoaded, ..) => "no portal list has been loaded yet".to_owned(),
            (Cause::Stale, ..) => "the portal list is too old".to_owned(),
            (Cause::NotListed, ..) => "the portal is not in the list".to_owned(),
            (Cause::Expired, _, Some(day)) => format!("the portal has expired on {day}"),
            (Cause::Expired, ..) => "the portal has expired".to_owned(),
            (Cause::NoPatternFits, ..) => "the event name fits none of `events`".to_owned(),
            (Cause::Listed, Some(events), _) => match events.matching_pattern(event_name) {
                Some(pattern) => format!("the event name fits `{pattern}` of `events`"),
                None => "the portal is in the list".to_owned(),
            },
            (Cause::Listed, None, _) => "the portal is in the list".to_owned(),
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("entry", &self.entry).finish_non_exhaustive()
    }
}

/// The state of the policy at the moment of a decision.
pub(super) struct Moment<'a> {
    pub mode: Mode,
    pub stale: bool,
    /// Read only for a portal that expires, because reading the time costs more than all other
    /// checks.
    pub clock: &'a dyn Clock,
}

/// Judges one event. Takes no lock and allocates nothing.
#[inline]
pub(super) fn judge(
    list: Guard<Option<Arc<List>>>,
    portal: u64,
    event_name: &str,
    moment: &Moment<'_>,
) -> PortalDecision {
    let entry = list.as_ref().and_then(|list| list.find(portal));
    let checked = match (moment.mode, list.as_ref()) {
        (Mode::Off, _) => Ok(Cause::Off),
        (_, None) => Err((Reason::Overloaded, Cause::NotLoaded)),
        (_, Some(_)) if moment.stale => Err((Reason::Overloaded, Cause::Stale)),
        (_, Some(list)) => check(list, entry, event_name, moment.clock),
    };
    let (verdict, cause, metering) = match (checked, moment.mode) {
        (Ok(cause), Mode::Enforce) => (PortalVerdict::Allowed, cause, Metering::Enforced),
        (Ok(cause), Mode::DryRun) => (PortalVerdict::Allowed, cause, Metering::Reported),
        (Ok(cause), Mode::Off) => (PortalVerdict::Allowed, cause, Metering::Off),
        (Err((reason, cause)), Mode::DryRun) => {
            (PortalVerdict::WouldReject(reason), cause, Metering::Off)
        }
        (Err((reason, cause)), _) => (PortalVerdict::Rejected(reason), cause, Metering::Off),
    };
    PortalDecision { verdict, cause, policy: Policy { list, entry, metering } }
}

#[inline]
fn check(
    list: &List,
    entry: Option<Entry>,
    event_name: &str,
    clock: &dyn Clock,
) -> Result<Cause, (Reason, Cause)> {
    if entry.is_none() {
        return Err((Reason::PortalNotAllowed, Cause::NotListed));
    }
    let rules = list.rules(entry);
    if rules.expires.is_some_and(|expires| expires.unix_ms <= clock.unix_ms()) {
        return Err((Reason::PortalNotAllowed, Cause::Expired));
    }
    if rules.events.as_ref().is_some_and(|events| !events.allow(event_name)) {
        return Err((Reason::EventNotAllowed, Cause::NoPatternFits));
    }
    Ok(Cause::Listed)
}
