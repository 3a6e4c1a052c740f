//! The totals of single portals over the spool's life: `/status?portal=`, those of the busiest
//! portals in `/status`, and the metric `pixelgate_portal_events_total`.

use super::rfc3339::rfc3339;
use crate::event::PORTAL_MAX;
use crate::plugin::PixelGate;
use crate::spool::PortalTotals;
use serde_json::{Value, json};

/// The parameter of `/status` that asks for one portal.
const PARAM: &str = "portal";

/// Why a request for one portal cannot be answered.
pub const MALFORMED: &str = "`portal` must be one portal id: 1 to 15 digits, and not 0";

/// The portal that a query of `/status` asks for, written as in an event (SPEC 3). `None` if the
/// query asks for no portal.
pub fn requested(query: &str) -> Option<Result<u64, &'static str>> {
    let mut values = query.split('&').filter_map(|piece| match piece.split_once('=') {
        Some((PARAM, value)) => Some(value),
        _ => (piece == PARAM).then_some(""),
    });
    let value = values.next()?;
    if values.next().is_some() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Err(MALFORMED));
    }
    // Leading zeros do not count. A number that does not fit into 64 bits is no portal.
    let portal = value.trim_start_matches('0').parse().ok();
    Some(portal.filter(|portal| (1..=PORTAL_MAX).contains(portal)).ok_or(MALFORMED))
}

/// The answer to a malformed request (RFC 9457).
pub fn problem(detail: &str) -> Value {
    json!({ "type": "about:blank", "title": "Bad Request", "status": 400, "detail": detail })
}

/// The totals of one portal.
pub fn of_portal(gate: &PixelGate, portal: u64) -> Value {
    let mut answer = row(&gate.spool().portal(portal));
    let quota = gate.gate().portals().quota_used(portal);
    answer["quota"] =
        quota.map(|(per_day, used)| json!({ "per_day": per_day, "used": used })).into();
    answer["since"] = gate.spool().portals_since_ms().map(rfc3339).into();
    answer
}

/// The totals of the busiest portals, and of all others.
pub fn of_busiest(since_ms: Option<u64>, busiest: &[PortalTotals], others: &PortalTotals) -> Value {
    json!({
        "since": since_ms.map(rfc3339),
        "portals": busiest.iter().map(row).collect::<Vec<_>>(),
        "other": {
            "accepted": others.accepted,
            "rejected": others.rejected,
            "delivered": others.delivered,
        },
    })
}

fn row(totals: &PortalTotals) -> Value {
    let upstreams = totals.upstreams.iter().map(|upstream| {
        json!({
            "name": upstream.name,
            "delivered": upstream.delivered,
            "dead": upstream.dead,
        })
    });
    json!({
        "portal": totals.portal,
        "accepted": totals.accepted,
        "rejected": totals.rejected,
        "delivered": totals.delivered,
        "upstreams": upstreams.collect::<Vec<_>>(),
    })
}

/// Sets the metric to the totals of the busiest portals.
pub fn refresh_metric(gate: &PixelGate, portals_max: usize) {
    if portals_max == 0 {
        return gate.metrics().portal_events.set([]);
    }
    let (busiest, others) = gate.spool().busiest_portals(portals_max);
    let others = ("other".to_owned(), &others);
    let named = busiest.iter().map(|totals| (totals.portal.to_string(), totals));
    gate.metrics().portal_events.set(
        named
            .chain([others])
            .map(|(portal, totals)| (portal, [totals.accepted, totals.rejected, totals.delivered])),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_is_asked_for_as_in_an_event() {
        let check = |query: &str, expect: Option<Result<u64, &'static str>>| {
            assert_eq!(requested(query), expect, "{query}");
        };
        check("", None);
        check("x=1&portals=2", None);
        check("portal=62515", Some(Ok(62515)));
        check("x=1&portal=007", Some(Ok(7)));
        check("portal=999999999999999", Some(Ok(999_999_999_999_999)));
        for wrong in [
            "portal",
            "portal=",
            "portal=0",
            "portal=-1",
            "portal=1.5",
            "portal=1e3",
            "portal=1000000000000000",
            "portal=99999999999999999999999",
            "portal=%31",
            "portal=1&portal=1",
        ] {
            check(wrong, Some(Err(MALFORMED)));
        }
    }
}
