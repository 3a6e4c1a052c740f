//! Makes `/status` and the gauges of `/metrics` from a [`Snapshot`].
//!
//! `/status` holds the keys of SPEC 8 and further ones for the page; `docs/admin.md` lists them
//! all. The JSON keys are an interface, so they do not follow the names of the types here.

use super::health_summary::{health_summary, is_in_trouble};
use super::history::Rejections;
use super::portal_totals;
use super::readiness;
use super::rfc3339::rfc3339;
use super::snapshot::Snapshot;
use crate::event::Reason;
use crate::telemetry::event_samples::{EventSample, PortalCounts};
use crate::telemetry::faults::Fault;
use crate::telemetry::metrics::Metrics;
use serde_json::{Value, json};
use std::cmp::Reverse;

/// The most portals in the ranking.
const RANKED_PORTALS: usize = 12;
/// The most faults in `/status`. `pixelgate_faults` counts all of them.
const FAULTS_SHOWN_MAX: usize = 100;

/// The whole of `/status`.
pub fn to_json(snapshot: &Snapshot) -> Value {
    let summary = health_summary(snapshot);
    let mut verdicts = serde_json::Map::new();
    verdicts.insert("accepted".to_owned(), snapshot.accepted.into());
    for (reason, count) in &snapshot.rejected {
        verdicts.insert(reason.as_str().to_owned(), (*count).into());
    }
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "uptime_seconds": snapshot.uptime.as_secs(),
        "now": snapshot.at_ms,
        "headline": {
            "level": summary.level.as_str(),
            "text": summary.text,
            "advice": summary.advice,
        },
        "ready": readiness::is_ready(snapshot),
        "faults": faults(snapshot),
        "verdicts": verdicts,
        "not_judged": snapshot.not_judged,
        "lately": lately(snapshot),
        "spool": spool(snapshot),
        "portals": portals(snapshot),
        "upstreams": upstreams(snapshot),
        "ranking": ranking(snapshot),
        "totals": totals(snapshot),
        "recent": samples(&snapshot.recent),
        "recent_rejected": samples(&snapshot.recent_rejected),
    })
}

fn lately(snapshot: &Snapshot) -> Value {
    let mut reasons = Vec::new();
    for (reason, count) in snapshot.lately.ranked() {
        let (name, detail) = (reason.as_str(), reason.detail());
        reasons.push(json!({ "reason": name, "count": count, "detail": detail }));
    }
    json!({
        "seconds": snapshot.lately.seconds,
        "accepted": snapshot.lately.accepted,
        "reasons": reasons,
    })
}

fn spool(snapshot: &Snapshot) -> Value {
    let spool = &snapshot.spool;
    json!({
        "bytes": spool.bytes,
        "bytes_max": snapshot.spool_bytes_max,
        "free_bytes": spool.free_bytes,
        "seconds_to_full": spool.seconds_to_full,
        "quarantined_bytes": spool.quarantined_bytes,
        "direct_writes": spool.direct_writes,
        "failing": spool.failing,
        "lanes_of_other_processes": spool.lanes_of_other_processes,
    })
}

fn portals(snapshot: &Snapshot) -> Value {
    let portals = &snapshot.portals;
    json!({
        "count": portals.count,
        "mode": portals.mode.as_str(),
        "loaded_at": portals.loaded_at_ms.map(rfc3339),
        "age_seconds": portals.loaded_at_ms.map(|at| snapshot.at_ms.saturating_sub(at) / 1000),
        "fresh": portals.fresh,
        "stale": portals.stale,
        "retry_at": portals.retry_at_ms.map(rfc3339),
        "last_failure": portals.last_failure.as_ref().map(|failure| {
            json!({ "at": rfc3339(failure.at_ms), "what": failure.what })
        }),
    })
}

fn upstreams(snapshot: &Snapshot) -> Vec<Value> {
    let row = |route: &crate::delivery::Status| {
        let held = snapshot.spool.upstreams.iter().find(|held| held.name == route.name)?;
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
    snapshot.routes.iter().filter_map(row).collect()
}

fn ranking(snapshot: &Snapshot) -> Value {
    let mut rejections = snapshot.rejections.clone();
    let mut all: Vec<(PortalCounts, Rejections)> = Vec::new();
    for &counts in &snapshot.top_portals.portals {
        all.push((counts, rejections.remove(&counts.portal).unwrap_or_default()));
    }
    let without = |portal| PortalCounts { portal, accepted: 0, ignored: 0 };
    all.extend(rejections.into_iter().map(|(portal, rejections)| (without(portal), rejections)));
    all.sort_by_key(|(of, rejected)| (Reverse(of.accepted + rejected.count), of.portal));
    let row = |(of, rejected): &(PortalCounts, Rejections)| {
        json!({
            "portal": of.portal,
            "accepted": of.accepted,
            "ignored_params": of.ignored,
            "rejected": rejected.count,
            "mostly": rejected.most_frequent().map(Reason::as_str),
        })
    };
    let portals: Vec<_> = all.iter().take(RANKED_PORTALS).map(row).collect();
    json!({ "portals": portals, "others": snapshot.top_portals.others })
}

fn totals(snapshot: &Snapshot) -> Value {
    let (busiest, others) = &snapshot.portal_totals;
    portal_totals::of_busiest(snapshot.portals_since_ms, busiest, others)
}

fn samples(samples: &[(u64, EventSample)]) -> Vec<Value> {
    samples.iter().map(sample).collect()
}

fn sample((number, sample): &(u64, EventSample)) -> Value {
    json!({
        "number": number,
        "at": rfc3339(sample.at_ms),
        "id": sample.id.map(|id| id.to_string()),
        "verdict": if sample.rejected.is_some() { "rejected" } else { "accepted" },
        "reason": sample.rejected.map(Reason::as_str),
        "portal": sample.portal,
        "event": sample.name,
        "email": sample.email,
        "revenue": sample.has_revenue,
        "properties": sample.properties,
    })
}

fn faults(snapshot: &Snapshot) -> Vec<Value> {
    let row = |fault: &Fault| {
        json!({
            "what": fault.what.as_str(),
            "subject": fault.subject,
            "since": rfc3339(fault.since_ms),
            "text": fault.text,
            "advice": fault.advice,
        })
    };
    snapshot.faults.iter().take(FAULTS_SHOWN_MAX).map(row).collect()
}

/// Sets the gauges that are computed when metrics are read, and not counted as events happen.
pub fn refresh_gauges(metrics: &Metrics, snapshot: &Snapshot) {
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let spool = &snapshot.spool;
    metrics.spool_bytes.set(gauge(spool.bytes));
    metrics.spool_free_bytes.set(gauge(spool.free_bytes));
    metrics.spool_quarantined_bytes.set(gauge(spool.quarantined_bytes));
    for held in &spool.upstreams {
        metrics.spool_pending_events.with_label_values(&[&held.name]).set(gauge(held.pending));
    }
    let portals = &snapshot.portals;
    metrics.ready.set(i64::from(readiness::is_ready(snapshot)));
    metrics.portals.set(i64::try_from(portals.count).unwrap_or(i64::MAX));
    let counted = metrics.portals_refresh_failures.get();
    metrics.portals_refresh_failures.inc_by(portals.failures.saturating_sub(counted));
    // `delivery_lag_seconds` was set when the snapshot asked delivery for its status.
    for route in &snapshot.routes {
        let up = i64::from(!is_in_trouble(route));
        metrics.upstream_up.with_label_values(&[&route.name]).set(up);
    }
}
