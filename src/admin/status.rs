//! `/status` and `/readyz`: how the gate is, as data.
//!
//! `/status` holds the keys of SPEC 8, and beside them what the page shows more; `docs/admin.md`
//! says what each of those is.

use super::health_summary::{headline, is_in_trouble};
use super::sampler::{Rejections, Sampler, Snapshot};
use crate::event::Reason;
use crate::plugin::PixelGate;
use crate::policy::portals;
use crate::spool;
use crate::telemetry::event_samples::EventSample;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::HashMap;

/// Portals in the ranking.
const RANKED_PORTALS: usize = 12;

/// Everything that is known, see the module.
pub fn status(lookout: &Sampler) -> Value {
    let gate = lookout.gate();
    let look = lookout.look();
    let headline = headline(&look);
    let faults = faults(&look.portals, &look.spool);
    let (accepted, reasons) = gate.metrics().verdicts();
    let mut verdicts = serde_json::Map::new();
    verdicts.insert("accepted".to_owned(), accepted.into());
    for (reason, count) in reasons {
        verdicts.insert(reason.as_str().to_owned(), count.into());
    }
    let past = lookout.past();
    let recent: Vec<_> = past.recent.iter().map(|(at, seen)| glimpse(*at, seen)).collect();
    let rejections = past.rejections();
    drop(past);
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": lookout.uptime().as_secs(),
        "now": now_ms(),
        "headline": {
            "level": headline.level.as_str(),
            "text": headline.text,
            "advice": headline.advice,
        },
        "ready": faults.is_empty(),
        "faults": faults,
        "verdicts": verdicts,
        "not_judged": gate.metrics().not_judged(),
        "lately": lately(&look),
        "spool": spool(gate, &look.spool),
        "portals": portals(&look.portals),
        "upstreams": upstreams(&look),
        "ranking": ranking(gate, rejections),
        "recent": recent,
    })
}

fn lately(look: &Snapshot) -> Value {
    let mut reasons = Vec::new();
    for (reason, count) in look.lately.ranked() {
        let (name, detail) = (reason.as_str(), reason.detail());
        reasons.push(json!({ "reason": name, "count": count, "detail": detail }));
    }
    json!({
        "seconds": look.lately.seconds,
        "accepted": look.lately.accepted,
        "reasons": reasons,
    })
}

fn spool(gate: &PixelGate, spool: &spool::Status) -> Value {
    json!({
        "bytes": spool.bytes,
        "bytes_max": gate.spool().bytes_max(),
        "free_bytes": spool.free_bytes,
        "seconds_to_full": spool.seconds_to_full,
        "quarantined_bytes": spool.quarantined_bytes,
        "failing": spool.failing,
    })
}

fn portals(portals: &portals::Status) -> Value {
    json!({
        "count": portals.count,
        "mode": portals.mode.as_str(),
        "loaded_at": portals.loaded_at_ms.map(rfc3339),
        "age_seconds": portals.loaded_at_ms.map(|at| now_ms().saturating_sub(at) / 1000),
        "fresh": portals.fresh,
        "stale": portals.stale,
        "last_failure": portals.last_failure.as_ref().map(|failure| {
            json!({ "at": rfc3339(failure.at_ms), "what": failure.what })
        }),
    })
}

fn upstreams(look: &Snapshot) -> Vec<Value> {
    let row = |route: &crate::delivery::Status| {
        let held = look.spool.upstreams.iter().find(|held| held.name == route.name)?;
        Some(json!({
            "name": route.name,
            "kind": route.kind,
            "state": route.state.as_str(),
            "trouble": is_in_trouble(route),
            "trouble_seconds": route.trouble_seconds,
            "accepted": held.accepted,
            "delivered": held.delivered,
            "dead": held.dead,
            "lost": held.lost,
            "pending": held.pending,
            "lag_seconds": route.lag_seconds,
            "last_error": route.last_error,
        }))
    };
    look.routes.iter().filter_map(row).collect()
}

fn ranking(gate: &PixelGate, mut rejections: HashMap<u64, Rejections>) -> Value {
    let tally = gate.glimpses().tally().ranking();
    let mut all: Vec<(u64, u64, Rejections)> = Vec::new();
    for (portal, accepted) in tally.portals {
        all.push((portal, accepted, rejections.remove(&portal).unwrap_or_default()));
    }
    all.extend(rejections.into_iter().map(|(portal, rejections)| (portal, 0, rejections)));
    all.sort_by_key(|(portal, accepted, rejected)| (Reverse(accepted + rejected.count), *portal));
    let row = |(portal, accepted, rejected): &(u64, u64, Rejections)| {
        json!({
            "portal": portal,
            "accepted": accepted,
            "rejected": rejected.count,
            "mostly": rejected.mostly().map(Reason::as_str),
        })
    };
    let portals: Vec<_> = all.iter().take(RANKED_PORTALS).map(row).collect();
    json!({ "portals": portals, "others": tally.others })
}

fn glimpse(number: u64, glimpse: &EventSample) -> Value {
    json!({
        "number": number,
        "at": rfc3339(glimpse.at_ms),
        "verdict": if glimpse.rejected.is_some() { "rejected" } else { "accepted" },
        "reason": glimpse.rejected.map(Reason::as_str),
        "portal": glimpse.portal,
        "event": glimpse.name,
        "email": glimpse.email,
        "revenue": glimpse.has_revenue,
        "properties": glimpse.properties,
    })
}

/// Whether events are taken: the list is there and fresh, the spool takes records. An upstream
/// that is down makes no edge unready: its events wait.
pub fn readiness(gate: &PixelGate) -> (bool, String) {
    let faults = faults(&gate.gate().portals().status(), &gate.spool().status());
    match faults.is_empty() {
        true => (true, "ready\n".to_owned()),
        false => (false, faults.join("\n") + "\n"),
    }
}

fn faults(portals: &portals::Status, spool: &spool::Status) -> Vec<String> {
    let mut faults = Vec::new();
    if !portals.fresh {
        faults.push("portals: the last look at the list failed, or there is none yet".to_owned());
    }
    if portals.stale {
        faults.push("portals: the list is older than portals.stale_seconds_max".to_owned());
    }
    if let Some(why) = &spool.failing {
        faults.push(format!("spool: {why}"));
    }
    faults
}

/// Brings the gauges up to date that nobody counts as it goes.
pub fn refresh_gauges(gate: &PixelGate) {
    let metrics = gate.metrics();
    let spool = gate.spool().status();
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    metrics.spool_bytes.set(gauge(spool.bytes));
    metrics.spool_free_bytes.set(gauge(spool.free_bytes));
    metrics.spool_quarantined_bytes.set(gauge(spool.quarantined_bytes));
    for held in &spool.upstreams {
        metrics.spool_pending_events.with_label_values(&[&held.name]).set(gauge(held.pending));
    }
    let portals = gate.gate().portals().status();
    metrics.ready.set(i64::from(faults(&portals, &spool).is_empty()));
    metrics.portals.set(i64::try_from(portals.count).unwrap_or(i64::MAX));
    let counted = metrics.portals_refresh_failures.get();
    metrics.portals_refresh_failures.inc_by(portals.failures.saturating_sub(counted));
    // Lag is set as a side effect of asking.
    for route in gate.forwarder().status() {
        let up = i64::from(!is_in_trouble(&route));
        metrics.upstream_up.with_label_values(&[&route.name]).set(up);
    }
}

fn now_ms() -> u64 {
    jiff::Timestamp::now().as_millisecond().unsigned_abs()
}

fn rfc3339(unix_ms: u64) -> String {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}
