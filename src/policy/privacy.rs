//! Limits the personal data that is stored (SPEC 9, `[privacy]`; SPEC 7, `gpc`).
//!
//! Applied before an event reaches the disk, so that data which must not be stored is never
//! written. This module only removes data. It rejects a request only if `gpc = "reject"`.

use crate::event::{Context, Event};
use serde::Deserialize;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The `[privacy]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How much of the client's address is stored.
    pub ip: KeepIp,
    /// How much of the `Referer` is stored.
    pub referer: KeepReferer,
    /// How a request with `Sec-GPC: 1` is treated.
    pub gpc: Gpc,
}

impl Default for Config {
    fn default() -> Self {
        Self { ip: KeepIp::Full, referer: KeepReferer::Full, gpc: Gpc::Flag }
    }
}

/// `privacy.gpc`: how a request with `Sec-GPC: 1` is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gpc {
    /// The event is stored whole, with the flag `gpc`.
    Flag,
    /// The event keeps only its portal, name, revenue and flags.
    Anonymize,
    /// The event is rejected with `privacy_opt_out`.
    Reject,
}

impl Config {
    /// Whether this request is rejected because of its `Sec-GPC: 1`.
    pub fn rejects(&self, context: &Context<'_>) -> bool {
        context.gpc && self.gpc == Gpc::Reject
    }

    /// Removes from an accepted event the data that must not be stored.
    pub fn apply<'a>(&self, event: &mut Event<'a>, context: &mut Context<'a>) {
        if context.gpc && self.gpc == Gpc::Anonymize {
            event.anonymize();
            context.ip = None;
            context.user_agent = None;
            context.referer = None;
            return;
        }
        context.ip = context.ip.and_then(|ip| self.ip.apply(ip));
        context.referer = context.referer.take().and_then(|r| self.referer.apply(r));
    }
}

/// `privacy.ip`: how much of the client's address is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepIp {
    /// The whole address.
    Full,
    /// The network: the first 24 bits of IPv4, 48 bits of IPv6; the rest is zero.
    Truncated,
    /// Not stored.
    None,
}

impl KeepIp {
    /// The part of `address` that is stored.
    pub fn apply(self, address: IpAddr) -> Option<IpAddr> {
        match (self, address) {
            (Self::Full, address) => Some(address),
            (Self::Truncated, IpAddr::V4(v4)) => {
                let [a, b, c, _] = v4.octets();
                Some(Ipv4Addr::new(a, b, c, 0).into())
            }
            (Self::Truncated, IpAddr::V6(v6)) => {
                let [a, b, c, ..] = v6.segments();
                Some(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into())
            }
            (Self::None, _) => None,
        }
    }
}

/// `privacy.referer`: how much of the `Referer` is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepReferer {
    /// The whole value.
    Full,
    /// Scheme, host and port: a path or a query often identifies a person.
    Origin,
    /// Not stored.
    None,
}

impl KeepReferer {
    /// The part of `referer` that is stored. With `origin`, a value that is not an absolute URL is
    /// dropped, because it has no origin to reduce it to.
    pub fn apply<'a>(self, referer: Cow<'a, str>) -> Option<Cow<'a, str>> {
        match self {
            Self::Full => Some(referer),
            Self::None => None,
            Self::Origin => {
                let origin = url::Url::parse(&referer).ok()?.origin();
                origin.is_tuple().then(|| origin.ascii_serialization().into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_as_far_as_privacy_allows() {
        let check = |keep: KeepIp, address: &str, expect: Option<&str>| {
            let stored = keep.apply(address.parse().unwrap()).map(|a| a.to_string());
            assert_eq!(stored.as_deref(), expect);
        };
        check(KeepIp::Full, "203.0.113.7", Some("203.0.113.7"));
        check(KeepIp::Truncated, "203.0.113.7", Some("203.0.113.0"));
        check(KeepIp::Truncated, "2001:db8:1:2:3:4:5:6", Some("2001:db8:1::"));
        check(KeepIp::None, "203.0.113.7", None);
    }

    #[test]
    fn referers_are_kept_as_far_as_privacy_allows() {
        let check = |keep: KeepReferer, expect: Option<&str>| {
            let referer = "https://shop.example:8443/thanks?email=a@b.example";
            assert_eq!(keep.apply(referer.into()).as_deref(), expect);
        };
        check(KeepReferer::Full, Some("https://shop.example:8443/thanks?email=a@b.example"));
        check(KeepReferer::Origin, Some("https://shop.example:8443"));
        check(KeepReferer::None, None);
        assert_eq!(KeepReferer::Origin.apply("/thanks".into()), None);
        assert_eq!(KeepReferer::Origin.apply("data:text/html,hello".into()), None);
    }

    #[test]
    fn anonymize_keeps_portal_name_revenue_and_flags_alone() {
        let rules = crate::event::Rules::default();
        let query = b"_a=1&_n=buy&_m=20.5&email=a@b.example&id=x&color=red";
        let check = |gpc: bool, expect: usize| {
            let mut event = crate::event::parse(query, &rules).unwrap().event;
            let mut context = Context {
                ip: Some("203.0.113.7".parse().unwrap()),
                user_agent: Some("agent".into()),
                referer: Some("https://a.example/".into()),
                gpc,
                dnt: true,
                prefetch: false,
            };
            let privacy = Config { gpc: Gpc::Anonymize, ..Config::default() };
            privacy.apply(&mut event, &mut context);
            let personal = [
                event.email.is_some(),
                event.external_id.is_some(),
                !event.properties.is_empty(),
                context.ip.is_some(),
                context.user_agent.is_some(),
                context.referer.is_some(),
            ];
            assert_eq!(personal.iter().filter(|present| **present).count(), expect);
            assert_eq!((event.portal, &*event.name, context.dnt), (1, "buy", true));
            assert!(event.revenue.is_some());
        };
        check(true, 0);
        check(false, 6);
    }
}
