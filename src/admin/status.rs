//! `/status` and `/readyz`: how the gate is, as data.

use crate::plugin::PixelGate;
use serde_json::{Value, json};

/// Everything that SPEC 8 says `/status` holds.
pub fn status(gate: &PixelGate, uptime_seconds: u64) -> Value {
    let (accepted, reasons) = gate.metrics().verdicts();
    let mut verdicts = serde_json::Map::new();
    verdicts.insert("accepted".to_owned(), accepted.into());
    for (reason, count) in reasons {
        verdicts.insert(reason.as_str().to_owned(), count.into());
    }
    let spool = gate.spool().status();
    let portals = gate.gate().portals().status();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": uptime_seconds,
        "verdicts": verdicts,
        "spool": {
            "bytes": spool.bytes,
            "free_bytes": spool.free_bytes,
            "seconds_to_full": spool.seconds_to_full,
            "quarantined_bytes": spool.quarantined_bytes,
        },
        "portals": {
            "count": portals.count,
            "mode": portals.mode.as_str(),
            "loaded_at": portals.loaded_at_ms.map(rfc3339),
            "last_failure": portals.last_failure.as_ref().map(|failure| {
                json!({ "at": rfc3339(failure.at_ms), "what": failure.what })
            }),
        },
        "upstreams": upstreams(gate),
    })
}

fn upstreams(gate: &PixelGate) -> Vec<Value> {
    let spool = gate.spool().status();
    let row = |route: crate::forward::Status| {
        let held = spool.upstreams.iter().find(|held| held.name == route.name)?;
        Some(json!({
            "name": route.name,
            "kind": route.kind,
            "state": route.state.as_str(),
            "accepted": held.accepted,
            "delivered": held.delivered,
            "dead": held.dead,
            "lost": held.lost,
            "pending": held.pending,
            "lag_seconds": route.lag_seconds,
            "last_error": route.last_error,
        }))
    };
    gate.forwarder().status().into_iter().filter_map(row).collect()
}

/// Whether events are taken: the list is there and fresh, the spool takes records. An upstream
/// that is down makes no edge unready: its events wait.
pub fn readiness(gate: &PixelGate) -> (bool, String) {
    let portals = gate.gate().portals().status();
    let spool = gate.spool().status();
    let mut faults = Vec::new();
    if !portals.fresh {
        faults.push("portals: the last look at the list failed, or there is none yet".to_owned());
    }
    if portals.stale {
        faults.push("portals: the list is older than portals.stale_seconds_max".to_owned());
    }
    if let Some(why) = spool.failing {
        faults.push(format!("spool: {why}"));
    }
    match faults.is_empty() {
        true => (true, "ready\n".to_owned()),
        false => (false, faults.join("\n") + "\n"),
    }
}

/// Brings the gauges up to date that nobody counts as it goes.
pub fn refresh_gauges(gate: &PixelGate) {
    let metrics = gate.metrics();
    let spool = gate.spool().status();
    let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    metrics.spool_bytes.set(gauge(spool.bytes));
    for held in &spool.upstreams {
        metrics.spool_pending_events.with_label_values(&[&held.name]).set(gauge(held.pending));
    }
    let portals = gate.gate().portals().status();
    metrics.portals.set(i64::try_from(portals.count).unwrap_or(i64::MAX));
    let counted = metrics.portals_refresh_failures.get();
    metrics.portals_refresh_failures.inc_by(portals.failures.saturating_sub(counted));
    // Lag is set as a side effect of asking.
    gate.forwarder().status();
}

fn rfc3339(unix_ms: u64) -> String {
    let time =
        i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.map_or_else(String::new, |time| format!("{time:.3}"))
}
