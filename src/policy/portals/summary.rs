//! The summary of a portal list that `pixelgate check` prints.

use std::fmt;

use super::config::Mode;
use super::list::List;
use super::rules::{Expires, Rules};
use crate::clock::DAY_MS;

/// Portals that expire within this many days are listed.
pub const EXPIRES_SOON_DAYS: u64 = 30;

/// The most portals that are listed one per line.
const NAMED_MAX: usize = 20;

/// Counts of a list. Its `Display` is one or more lines of text, without a final line end.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The configured mode.
    pub mode: Mode,
    /// Whether a list is loaded.
    pub loaded: bool,
    /// Portals in the list, expired ones included.
    pub count: usize,
    /// Portals with rules of their own.
    pub ruled: usize,
    /// Portals with an `events` rule, their own or the default.
    pub with_events: usize,
    /// Portals with properties to drop, by their own rule or the default.
    pub with_drop_properties: usize,
    /// Portals whose events go to some upstreams only, by their own rule or the default.
    pub with_upstreams: usize,
    /// Portals with a `privacy` rule, their own or the default.
    pub with_privacy: usize,
    /// Portals with a rate, their own or the default.
    pub with_rate: usize,
    /// Portals with a quota of the day, their own or the default.
    pub with_quota: usize,
    /// Portals with an `expires` rule, their own or the default, past or future.
    pub with_expires: usize,
    /// Portals that have expired.
    pub expired: usize,
    /// Portals that expire within [`EXPIRES_SOON_DAYS`], soonest first.
    pub expiring: Vec<(u64, String)>,
}

impl Summary {
    pub(super) fn of(list: Option<&List>, mode: Mode, unix_ms: u64) -> Summary {
        let mut summary = Summary {
            mode,
            loaded: list.is_some(),
            count: 0,
            ruled: 0,
            with_events: 0,
            with_drop_properties: 0,
            with_upstreams: 0,
            with_privacy: 0,
            with_rate: 0,
            with_quota: 0,
            with_expires: 0,
            expired: 0,
            expiring: Vec::new(),
        };
        let Some(list) = list else { return summary };
        summary.count = list.len();
        let mut expiring: Vec<(Expires, u64)> = Vec::new();
        let soon = unix_ms.saturating_add(EXPIRES_SOON_DAYS * DAY_MS);
        for (id, rules) in list.ruled() {
            summary.ruled += 1;
            summary.add(1, rules, unix_ms);
            if let Some(expires) =
                rules.expires.filter(|e| (unix_ms + 1..=soon).contains(&e.unix_ms))
            {
                expiring.push((expires, id));
            }
        }
        summary.add(list.plain_len(), list.rules(None), unix_ms);
        expiring.sort_unstable();
        summary.expiring =
            expiring.into_iter().map(|(expires, id)| (id, expires.to_string())).collect();
        summary
    }
}

impl Summary {
    fn add(&mut self, portals: usize, rules: &Rules, unix_ms: u64) {
        let count = |rule: bool| if rule { portals } else { 0 };
        let dropped = rules.drop_properties.as_ref().is_some_and(|dropped| !dropped.is_empty());
        self.with_events += count(rules.events.is_some());
        self.with_drop_properties += count(dropped);
        let routed = rules.upstreams.as_ref().is_some_and(|upstreams| upstreams.0.is_some());
        self.with_upstreams += count(routed);
        self.with_privacy += count(rules.privacy.is_some());
        self.with_rate += count(rules.rate.is_some());
        self.with_quota += count(rules.quota.is_some());
        self.with_expires += count(rules.expires.is_some());
        self.expired += count(rules.expires.is_some_and(|expires| expires.unix_ms <= unix_ms));
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode.as_str();
        if !self.loaded {
            return write!(f, "portals: no list (mode {mode})");
        }
        write!(f, "portals: {} (mode {mode}), {} with rules of their own", self.count, self.ruled)?;
        let rules = [
            ("events", self.with_events),
            ("drop_properties", self.with_drop_properties),
            ("upstreams", self.with_upstreams),
            ("privacy", self.with_privacy),
            ("rate", self.with_rate),
            ("quota", self.with_quota),
            ("expires", self.with_expires),
        ];
        for (rule, portals) in rules.into_iter().filter(|&(_, portals)| portals > 0) {
            write!(f, "\n  {rule}: {portals}")?;
        }
        if self.expired > 0 {
            write!(f, "\n  expired: {}", self.expired)?;
        }
        if !self.expiring.is_empty() {
            let soon = self.expiring.len();
            write!(f, "\n  expiring within {EXPIRES_SOON_DAYS} days: {soon}")?;
            for (id, day) in self.expiring.iter().take(NAMED_MAX) {
                write!(f, "\n    {id} on {day}")?;
            }
            if soon > NAMED_MAX {
                write!(f, "\n    and {} more", soon - NAMED_MAX)?;
            }
        }
        Ok(())
    }
}
