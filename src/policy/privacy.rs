//! Limits the personal data that is stored (SPEC 9, `[privacy]`; SPEC 7, `gpc`).
//!
//! The limits apply before an event reaches the disk, so that data which must not be stored is
//! never written. This module only removes data. It rejects a request only if `gpc = "reject"`.

use super::referer;
use crate::event::{Context, Event};
use serde::Deserialize;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The `[privacy]` section.
///
/// ```
/// use pixelgate::config::{Gpc, KeepIp, KeepReferer, Privacy};
///
/// let mut privacy = Privacy::default();
/// privacy.ip = KeepIp::Truncated;
/// privacy.referer = KeepReferer::None;
/// privacy.gpc = Gpc::Anonymize;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// How much of the client's address is stored. Default: all of it.
    pub ip: KeepIp,
    /// How much of the `Referer` is stored. Default: its origin.
    pub referer: KeepReferer,
    /// Whether `referer = "full"` includes the query. Default: `false`.
    pub referer_query: bool,
    /// How a request with `Sec-GPC: 1` is treated. Default: its event is stored with a flag.
    pub gpc: Gpc,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ip: KeepIp::Full,
            referer: KeepReferer::Origin,
            referer_query: false,
            gpc: Gpc::Flag,
        }
    }
}

/// The `privacy` of a portal (SPEC 5): the keys of `[privacy]` that it makes stricter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stricter {
    /// How much of the client's address is stored.
    pub ip: Option<KeepIp>,
    /// How much of the `Referer` is stored.
    pub referer: Option<KeepReferer>,
    /// Whether `referer = "full"` includes the query.
    pub referer_query: Option<bool>,
    /// How a request with `Sec-GPC: 1` is treated.
    pub gpc: Option<Gpc>,
}

impl Stricter {
    /// The first key that is looser than that of `[privacy]`.
    pub fn looser_than(&self, base: &Config) -> Option<&'static str> {
        let looser = [
            ("ip", self.ip.is_some_and(|ip| ip < base.ip)),
            ("referer", self.referer.is_some_and(|referer| referer < base.referer)),
            ("referer_query", self.referer_query == Some(true) && !base.referer_query),
            ("gpc", self.gpc.is_some_and(|gpc| gpc < base.gpc)),
        ];
        looser.into_iter().find(|(_, is_looser)| *is_looser).map(|(key, _)| key)
    }
}

/// The keys as they stand in a portal list, such as `ip = none`.
impl std::fmt::Display for Stricter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ip = self.ip.map(|ip| match ip {
            KeepIp::Full => "ip = full",
            KeepIp::Truncated => "ip = truncated",
            KeepIp::None => "ip = none",
        });
        let referer = self.referer.map(|referer| match referer {
            KeepReferer::Full => "referer = full",
            KeepReferer::Origin => "referer = origin",
            KeepReferer::None => "referer = none",
        });
        let query = self.referer_query.map(|query| match query {
            true => "referer_query = true",
            false => "referer_query = false",
        });
        let gpc = self.gpc.map(|gpc| match gpc {
            Gpc::Flag => "gpc = flag",
            Gpc::Anonymize => "gpc = anonymize",
            Gpc::Reject => "gpc = reject",
        });
        let keys: Vec<&str> = [ip, referer, query, gpc].into_iter().flatten().collect();
        f.write_str(&keys.join(", "))
    }
}

/// `privacy.gpc`: how a request with `Sec-GPC: 1` is treated. The stricter, the greater.
///
/// ```
/// use pixelgate::config::{Gpc, Privacy};
///
/// assert_eq!(Privacy::default().gpc, Gpc::Flag);
/// assert!(Gpc::Reject > Gpc::Anonymize);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Gpc {
    /// The event is stored whole, with the flag `gpc`.
    Flag,
    /// The event keeps only its portal, name, revenue and flags.
    Anonymize,
    /// The event is rejected with `privacy_opt_out`.
    Reject,
}

impl Config {
    /// This section, in which each key that is stricter in the portal has the portal's value.
    pub fn tightened(self, by: &Stricter) -> Config {
        Config {
            ip: self.ip.max(by.ip.unwrap_or(self.ip)),
            referer: self.referer.max(by.referer.unwrap_or(self.referer)),
            referer_query: self.referer_query && by.referer_query.unwrap_or(true),
            gpc: self.gpc.max(by.gpc.unwrap_or(self.gpc)),
        }
    }

    /// Whether this request is rejected because of its `Sec-GPC: 1`.
    pub fn rejects(&self, context: &Context<'_>) -> bool {
        context.gpc && self.gpc == Gpc::Reject
    }

    /// Removes from an accepted event the data that must not be stored. An event that
    /// `gpc = "reject"` would refuse, but mode `dry_run` accepts, is anonymized.
    pub fn apply<'a>(&self, event: &mut Event<'a>, context: &mut Context<'a>) {
        if context.gpc && self.gpc != Gpc::Flag {
            event.anonymize();
            context.ip = None;
            context.user_agent = None;
            context.referer = None;
            context.further = None;
            return;
        }
        context.ip = context.ip.and_then(|ip| self.ip.apply(ip));
        context.referer = context.referer.take().and_then(|referer| self.referer(referer));
    }

    /// The part of `referer` that is stored.
    fn referer<'a>(&self, referer: Cow<'a, str>) -> Option<Cow<'a, str>> {
        match self.referer {
            KeepReferer::Full => referer::without_secrets(referer, self.referer_query),
            KeepReferer::Origin => referer::origin(referer),
            KeepReferer::None => None,
        }
    }
}

/// `privacy.ip`: how much of the client's address is stored. The stricter, the greater.
///
/// ```
/// use pixelgate::config::KeepIp;
///
/// let kept = KeepIp::Truncated.apply("203.0.113.7".parse().unwrap());
/// assert_eq!(kept, "203.0.113.0".parse().ok());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum KeepIp {
    /// The whole address.
    Full,
    /// The network: the first 24 bits of IPv4, 48 bits of IPv6; the rest is zero. An IPv4 address
    /// inside an IPv6 address is truncated like one outside.
    Truncated,
    /// Not stored.
    None,
}

impl KeepIp {
    /// The part of `address` that is stored.
    pub fn apply(self, address: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Full => Some(address),
            Self::Truncated => Some(truncated(address)),
            Self::None => None,
        }
    }
}

/// The network of an address. If an IPv6 address contains the client's IPv4 address (IPv4-mapped;
/// 6to4, RFC 3056; NAT64, RFC 6052), the first 24 bits of that address stay. A Teredo address
/// (RFC 4380) contains it in its last bits, which are cut off.
fn truncated(address: IpAddr) -> IpAddr {
    let v6 = match address.to_canonical() {
        IpAddr::V4(v4) => return (v4 & Ipv4Addr::new(255, 255, 255, 0)).into(),
        IpAddr::V6(v6) => v6,
    };
    let mask: [u16; 8] = match v6.segments() {
        [0x2002, ..] => [0xFFFF, 0xFFFF, 0xFF00, 0, 0, 0, 0, 0],
        [0x64, 0xFF9B, 0, 0, 0, 0, ..] => [0xFFFF, 0xFFFF, 0, 0, 0, 0, 0xFFFF, 0xFF00],
        _ => [0xFFFF, 0xFFFF, 0xFFFF, 0, 0, 0, 0, 0],
    };
    (v6 & Ipv6Addr::from(mask)).into()
}

/// `privacy.referer`: how much of the `Referer` is stored. The stricter, the greater.
///
/// ```
/// use pixelgate::config::{KeepReferer, Privacy};
///
/// assert_eq!(Privacy::default().referer, KeepReferer::Origin);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum KeepReferer {
    /// The URL without its userinfo, its fragment and, unless `privacy.referer_query` is set, its
    /// query.
    Full,
    /// Scheme, host and port: a path or a query often identifies a person.
    Origin,
    /// Not stored.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FurtherContext;

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
    fn an_ipv4_address_inside_an_ipv6_address_is_truncated() {
        let check = |address: &str, expect: &str| {
            let stored = KeepIp::Truncated.apply(address.parse().unwrap());
            assert_eq!(stored, Some(expect.parse().unwrap()), "{address}");
        };
        check("::ffff:203.0.113.7", "203.0.113.0");
        check("2002:cb00:7107:1:2:3:4:5", "2002:cb00:7100::");
        check("64:ff9b::203.0.113.7", "64:ff9b::203.0.113.0");
        check("64:ff9b:1:2:3:4:cb00:7107", "64:ff9b:1::");
        check("2001:0:4136:e378:8000:63bf:34ff:8ef8", "2001:0:4136::");
    }

    #[test]
    fn referers_are_kept_as_far_as_privacy_allows() {
        let check = |keep: KeepReferer, referer_query: bool, expect: Option<&str>| {
            let privacy = Config { referer: keep, referer_query, ..Config::default() };
            let referer = "https://ann:pw@shop.example:8443/thanks?email=a@b.example";
            assert_eq!(privacy.referer(referer.into()).as_deref(), expect);
        };
        check(KeepReferer::Full, false, Some("https://shop.example:8443/thanks"));
        let with_query = "https://shop.example:8443/thanks?email=a@b.example";
        check(KeepReferer::Full, true, Some(with_query));
        check(KeepReferer::Origin, false, Some("https://shop.example:8443"));
        check(KeepReferer::Origin, true, Some("https://shop.example:8443"));
        check(KeepReferer::None, true, None);
        assert_eq!(Config::default().referer, KeepReferer::Origin);
    }

    #[test]
    fn a_portal_is_stricter_and_never_looser() {
        let base = Config { ip: KeepIp::Truncated, gpc: Gpc::Anonymize, ..Config::default() };
        let check = |toml: &str, looser: Option<&str>| {
            let stricter: Stricter = toml::from_str(toml).unwrap();
            assert_eq!(stricter.looser_than(&base), looser, "{toml}");
            let now = base.tightened(&stricter);
            assert!(now.ip >= base.ip && now.referer >= base.referer && now.gpc >= base.gpc);
            now
        };
        assert_eq!(check("ip = 'none'", None).ip, KeepIp::None);
        assert_eq!(check("ip = 'full'", Some("ip")).ip, KeepIp::Truncated);
        assert_eq!(check("referer = 'none'", None).referer, KeepReferer::None);
        check("referer = 'full'", Some("referer"));
        check("referer_query = true", Some("referer_query"));
        check("referer_query = false", None);
        assert_eq!(check("gpc = 'reject'", None).gpc, Gpc::Reject);
        check("gpc = 'flag'", Some("gpc"));
        check("", None);
        let both: Stricter = toml::from_str("ip = 'none'\ngpc = 'reject'").unwrap();
        assert_eq!(both.to_string(), "ip = none, gpc = reject");
        assert!(toml::from_str::<Stricter>("agent = 'none'").is_err());
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
                further: FurtherContext {
                    host: Some("track.company.com".into()),
                    utk: Some("1f".into()),
                    added: vec![("a".into(), "b".into())],
                    headers: vec![("X-Region".into(), "eu".into())],
                }
                .boxed(),
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
                context.further().host.is_some(),
                context.further().utk.is_some(),
                !context.further().headers.is_empty(),
            ];
            assert_eq!(personal.iter().filter(|present| **present).count(), expect);
            assert_eq!((event.portal, &*event.name, context.dnt), (1, "buy", true));
            assert!(event.revenue.is_some());
        };
        check(true, 0);
        check(false, 9);
    }
}
