//! What is kept of a person (SPEC 9, `[privacy]`; SPEC 7, `gpc`).
//!
//! Applied before an event reaches the disk: what must not be kept is not written down first and
//! removed later. This module takes away; it adds nothing and judges only where `gpc = "reject"`
//! tells it to.

use crate::event::{Context, Event};
use serde::Deserialize;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The `[privacy]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How much of the client's address is kept.
    pub ip: KeepIp,
    /// How much of the `Referer` is kept.
    pub referer: KeepReferer,
    /// What `Sec-GPC: 1` does.
    pub gpc: Gpc,
}

impl Default for Config {
    fn default() -> Self {
        Self { ip: KeepIp::Full, referer: KeepReferer::Full, gpc: Gpc::Flag }
    }
}

/// `privacy.gpc`: what a request with `Sec-GPC: 1` comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gpc {
    /// The event is kept whole and says `gpc`.
    Flag,
    /// The event keeps only its portal, name, revenue and flags.
    Anonymize,
    /// The event is refused: `privacy_opt_out`.
    Reject,
}

impl Config {
    /// Whether this request is refused for its `Sec-GPC: 1`.
    pub fn rejects(&self, context: &Context<'_>) -> bool {
        context.gpc && self.gpc == Gpc::Reject
    }

    /// Takes from an accepted event what may not be kept.
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

/// `privacy.ip`: how much of an address is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepIp {
    /// All of it.
    Full,
    /// The network: /24 of IPv4, /48 of IPv6.
    Truncated,
    /// Nothing.
    None,
}

impl KeepIp {
    /// What is kept of `address`.
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

/// `privacy.referer`: how much of a `Referer` is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepReferer {
    /// All of it.
    Full,
    /// Scheme, host and port: a path or a query often names a person.
    Origin,
    /// Nothing.
    None,
}

impl KeepReferer {
    /// What is kept of `referer`. With `origin`, one that is not an absolute URL is dropped: what
    /// it would reveal is unknown.
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
            let kept = keep.apply(address.parse().unwrap()).map(|a| a.to_string());
            assert_eq!(kept.as_deref(), expect);
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
            assert_eq!(personal.iter().filter(|kept| **kept).count(), expect);
            assert_eq!((event.portal, &*event.name, context.dnt), (1, "buy", true));
            assert!(event.revenue.is_some());
        };
        check(true, 0);
        check(false, 6);
    }
}
