//! Finds the address of a client behind trusted proxies (SPEC 9, `edge.trusted_proxies`).
//!
//! A client can send any header, so only entries that trusted proxies wrote count. The chain of
//! addresses is followed from the peer of the connection outwards, and the first address that is
//! not a trusted proxy is the client. This module reads headers and changes none.

use super::forwarded;
use ipnet::IpNet;
use std::net::IpAddr;

/// The longest chain of proxies that is followed, in addresses. It bounds the cost of a hostile
/// header. Of a longer chain, the address at the limit counts as the client.
pub const CHAIN_ADDRESSES_MAX: usize = 32;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
const FORWARDED: &str = "forwarded";
/// The entry of `edge.trusted_proxies` that stands for the peers of Unix sockets.
const UNIX: &str = "unix:";

/// Access to a request's header lines.
pub trait Headers {
    /// The values of all lines with this name (in lower case), in order of appearance.
    fn lines<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]>;
}

/// Whether the name of a header, or another token (RFC 9110, section 5.6.2), equals `expect`, which
/// is in lower case. Setting bit 0x20 lower-cases a letter, and makes no other byte of a token
/// equal to a letter.
#[inline]
pub fn token_is<const N: usize>(token: &[u8], expect: &[u8; N]) -> bool {
    let differs = |all: u8, (byte, expect): (&u8, &u8)| all | ((byte | 0x20) ^ expect);
    token.len() == N && token.iter().zip(expect).fold(0, differs) == 0
}

impl Headers for http::HeaderMap {
    fn lines<'a>(&'a self, name: &'a str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(|value| value.as_bytes())
    }
}

/// The proxies whose headers name the client's address, and the header that names it (SPEC 9,
/// `[edge]`).
///
/// ```
/// use pixelgate::config::TrustedProxies;
///
/// let trusted = TrustedProxies::new(&["10.0.0.0/8".to_owned()], Some("CF-Connecting-IP"))?;
/// assert!(trusted.trusts("10.1.2.3".parse()?));
/// assert!(!trusted.trusts("203.0.113.7".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    networks: Vec<IpNet>,
    /// Whether the peers of Unix sockets are trusted.
    unix: bool,
    header: Option<http::HeaderName>,
}

/// A setting of trusted proxies that cannot be used.
///
/// ```
/// use pixelgate::config::TrustedProxies;
/// use pixelgate::errors::TrustError;
///
/// let error = TrustedProxies::new(&["10.0.0".to_owned()], None).unwrap_err();
/// assert_eq!(error, TrustError::Network("10.0.0".to_owned()));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The text is neither an address nor a network in CIDR notation, nor `unix:`.
    #[error("`{0}` is neither an IP address, a network such as 10.0.0.0/8, nor `unix:`")]
    Network(String),
    /// The text is not a header name.
    #[error("`{0}` is not a header name")]
    Header(String),
}

impl TrustedProxies {
    /// Reads `edge.trusted_proxies` and `edge.client_ip_header`.
    pub fn new(networks: &[String], header: Option<&str>) -> Result<Self, TrustError> {
        let (unix, networks): (Vec<_>, Vec<_>) = networks.iter().partition(|text| *text == UNIX);
        let networks = networks.into_iter().map(|text| parse_network(text));
        let networks = networks.collect::<Result<_, _>>()?;
        let parse_header = |name: &str| {
            name.parse::<http::HeaderName>().map_err(|_| TrustError::Header(name.to_owned()))
        };
        Ok(Self { networks, unix: !unix.is_empty(), header: header.map(parse_header).transpose()? })
    }

    /// Whether `address` is one of the trusted proxies.
    pub fn trusts(&self, address: IpAddr) -> bool {
        if self.networks.is_empty() {
            return false;
        }
        let address = canonical(address);
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether the peer of a connection is a trusted proxy. `None` stands for the peer of a Unix
    /// socket.
    pub fn trusts_peer(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |address| self.trusts(address))
    }

    /// The address of the client.
    ///
    /// This is `peer` if it is not trusted. Otherwise it is the address in the configured header
    /// or, if none is configured, the rightmost address of `X-Forwarded-For` or `Forwarded` (RFC
    /// 7239) that is not a trusted proxy. If the configured header is one of these two, the other
    /// is ignored: the proxy does not overwrite it, so a client could forge it.
    ///
    /// `None` as `peer` stands for the peer of a Unix socket, and as the result for an address that
    /// no header names.
    pub fn client(&self, peer: Option<IpAddr>, headers: &impl Headers) -> Option<IpAddr> {
        let peer = peer.map(canonical);
        if !self.trusts_peer(peer) {
            return peer;
        }
        let walked = match self.header.as_ref().map(http::HeaderName::as_str) {
            None if headers.lines(X_FORWARDED_FOR).next().is_some() => in_x_forwarded_for(headers),
            None => in_forwarded(headers),
            Some(X_FORWARDED_FOR) => in_x_forwarded_for(headers),
            Some(FORWARDED) => in_forwarded(headers),
            Some(name) => {
                let value = headers.lines(name).next_back();
                let value = value.and_then(|value| std::str::from_utf8(value).ok());
                return value.and_then(parse_address).or(peer);
            }
        };
        let mut client = peer;
        for address in walked {
            // A trusted proxy wrote no unreadable entry, so all entries to the left are the
            // client's.
            let Some(address) = address else { break };
            client = Some(address);
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

fn parse_network(text: &str) -> Result<IpNet, TrustError> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    network.map(|n| n.trunc()).map_err(|_| TrustError::Network(text.to_owned()))
}

/// Turns an IPv4-mapped IPv6 address, as an IPv6 socket gives it, into the IPv4 address.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The addresses in `X-Forwarded-For`, from the last to the first.
fn in_x_forwarded_for(headers: &impl Headers) -> Vec<Option<IpAddr>> {
    let lines = headers.lines(X_FORWARDED_FOR).rev();
    chain(lines.flat_map(|line| line.rsplit(|byte| *byte == b',')), |entry| {
        parse_address(std::str::from_utf8(entry).ok()?)
    })
}

/// The addresses in `Forwarded` (RFC 7239), from the last to the first.
fn in_forwarded(headers: &impl Headers) -> Vec<Option<IpAddr>> {
    let lines = headers.lines(FORWARDED).rev();
    chain(lines.flat_map(forwarded::elements_from_end), |element| {
        let node = forwarded::for_node(element)?;
        let node = std::str::from_utf8(&node).ok()?;
        parse_address(forwarded::without_obfuscated_port(node))
    })
}

/// The addresses of at most [`CHAIN_ADDRESSES_MAX`] entries. Empty entries count for this limit and
/// are ignored (RFC 9110, section 5.6.1).
fn chain<'a>(
    entries: impl Iterator<Item = &'a [u8]>,
    parse: impl Fn(&[u8]) -> Option<IpAddr>,
) -> Vec<Option<IpAddr>> {
    let entries = entries.take(CHAIN_ADDRESSES_MAX).map(<[u8]>::trim_ascii);
    entries.filter(|entry| !entry.is_empty()).map(parse).collect()
}

/// An address as proxies write it: bare, with a port, or in brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let address = text.parse::<IpAddr>().ok();
    let with_port = || text.parse::<std::net::SocketAddr>().ok().map(|a| a.ip());
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    address.or_else(with_port).or_else(bracketed).map(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(
        trusted: &[&str],
        header: Option<&str>,
        peer: &str,
        lines: &[(&str, &str)],
    ) -> String {
        let trusted: Vec<String> = trusted.iter().map(|t| t.to_string()).collect();
        let proxies = TrustedProxies::new(&trusted, header).unwrap();
        let mut headers = http::HeaderMap::new();
        for (name, value) in lines {
            let name: http::HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        proxies.client(peer.parse().ok(), &headers).map_or("none".into(), |ip| ip.to_string())
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_says() {
        let lies = [("x-forwarded-for", "1.2.3.4"), ("cf-connecting-ip", "1.2.3.4")];
        assert_eq!(client(&[], None, "9.9.9.9", &lies), "9.9.9.9");
        assert_eq!(client(&["10.0.0.0/8"], Some("CF-Connecting-IP"), "9.9.9.9", &lies), "9.9.9.9");
    }

    #[test]
    fn the_rightmost_untrusted_address_of_the_chain_is_the_client() {
        let check = |chain: &[(&str, &str)], expect: &str| {
            assert_eq!(client(&["10.0.0.0/8", "fd00::/8"], None, "10.0.0.1", chain), expect);
        };
        check(&[], "10.0.0.1");
        check(&[("x-forwarded-for", "8.8.8.8, 203.0.113.7, 10.2.3.4")], "203.0.113.7");
        check(&[("x-forwarded-for", "8.8.8.8"), ("x-forwarded-for", "203.0.113.7")], "203.0.113.7");
        check(&[("x-forwarded-for", "8.8.8.8, unknown, 10.2.3.4")], "10.2.3.4");
        check(&[("x-forwarded-for", "203.0.113.7:4711")], "203.0.113.7");
        check(&[("x-forwarded-for", "[2001:db8::1]:4711")], "2001:db8::1");
        check(&[("forwarded", "for=8.8.8.8, For=\"[2001:db8::1]:99\";proto=https")], "2001:db8::1");
        check(&[("forwarded", "for=_hidden, for=10.1.1.1")], "10.1.1.1");
        check(&[("x-forwarded-for", "10.0.0.7, 10.0.0.8")], "10.0.0.7");
    }

    #[test]
    fn a_chain_is_walked_to_its_limit_and_no_further() {
        let trusted = vec!["10.0.0.9"; CHAIN_ADDRESSES_MAX];
        let just_fits = format!("8.8.8.8, {}", trusted[1..].join(", "));
        let too_long = format!("8.8.8.8, {}", trusted.join(", "));
        let check =
            |chain: &str| client(&["10.0.0.0/8"], None, "10.0.0.1", &[("x-forwarded-for", chain)]);
        assert_eq!(check(&just_fits), "8.8.8.8");
        assert_eq!(check(&too_long), "10.0.0.9");
    }

    #[test]
    fn whatever_stands_in_a_chain_only_what_trusted_proxies_wrote_is_believed() {
        let check = |name: &str, lines: &[&str], expect: &str| {
            let lines: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
            assert_eq!(client(&["10.0.0.0/8"], None, "10.0.0.1", &lines), expect, "{lines:?}");
        };
        let many = "6.6.6.6,".repeat(10_000);
        for garbage in [
            "unknown",
            "_hidden",
            "",
            ",,,",
            "for=",
            "256.1.1.1",
            "1.2.3",
            "[::1",
            "::1]",
            "%0a",
            "fe80::1%eth0",
            "\"",
            "\"6.6.6.6",
            "10.0.0.1:99999",
            "6.6.6.6 6.6.6.6",
            &many,
        ] {
            let behind = format!("{garbage}, 203.0.113.7, 10.0.0.2");
            check("x-forwarded-for", &[&behind], "203.0.113.7");
            check("x-forwarded-for", &[garbage, "203.0.113.7", "10.0.0.2"], "203.0.113.7");
            if garbage.bytes().any(|byte| byte != b',') && garbage != many {
                let before = format!("6.6.6.6, {garbage}, 10.0.0.2");
                check("x-forwarded-for", &[&before], "10.0.0.2");
            }
            let behind = format!("for={garbage}, for=203.0.113.7;by=x, for=\"10.0.0.2:1\"");
            check("forwarded", &[&behind], "203.0.113.7");
        }
        for (address, expect) in [
            ("203.0.113.7:80", "203.0.113.7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("[2001:db8::7]:80", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("[::ffff:203.0.113.7]:80", "203.0.113.7"),
            ("\t203.0.113.7 ", "203.0.113.7"),
        ] {
            check("x-forwarded-for", &[address], expect);
            check("forwarded", &[&format!("proto=https;FOR=\"{}\"", address.trim())], expect);
        }
        check("forwarded", &["for=203.0.113.7;for=6.6.6.6"], "10.0.0.1");
        check("forwarded", &["proto=https"], "10.0.0.1");
    }

    #[test]
    fn an_element_of_forwarded_is_read_as_rfc_7239_writes_it() {
        let check = |lines: &[&str], expect: &str| {
            let lines: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
            assert_eq!(client(&["10.0.0.0/8"], None, "10.0.0.1", &lines), expect, "{lines:?}");
        };
        check(&["for=203.0.113.7;host=\"a,for=6.6.6.6\""], "203.0.113.7");
        check(&["for=203.0.113.7;by=\"x;for=6.6.6.6\";proto=http"], "203.0.113.7");
        check(&["host=\"\\\",for=6.6.6.6;x=\\\"\";for=203.0.113.7"], "203.0.113.7");
        check(&["for=\"\\2\\03.0.113.7\""], "203.0.113.7");
        check(&["for=\"[2001:db8::7]:_port\", for=\"10.0.0.2:_p.1\""], "2001:db8::7");
        check(&["for=203.0.113.7;host=\"\u{e9}\""], "203.0.113.7");
        check(&["for=6.6.6.6, for=unknown, for=10.0.0.2"], "10.0.0.2");
        check(&["for=6.6.6.6, for=\"_hidden:80\", for=10.0.0.2"], "10.0.0.2");
        check(&["for=6.6.6.6, for=10.0.0.2;for=10.0.0.3"], "10.0.0.1");
        check(&["for=6.6.6.6, for=\"203.0.113.7"], "10.0.0.1");
        check(&["For = 203.0.113.7 ;\tproto=http ,"], "203.0.113.7");
        check(&["for=6.6.6.6", "for=203.0.113.7", "for=10.0.0.2", ""], "203.0.113.7");
        // A client cannot hide what a proxy appended, or make it a part of its own text.
        for open in ["for=\"", "for=\"6.6.6.6\\", "x=\"\\\"", "a=\"b\";c=\""] {
            check(&[&format!("{open}, for=203.0.113.7")], "203.0.113.7");
            check(&[&format!("{open}, for=\"[2001:db8::7]:80\";by=\"a,b\"")], "2001:db8::7");
        }
    }

    #[test]
    fn empty_entries_are_ignored_and_count_for_the_limit() {
        let check = |name: &str, value: &str, expect: &str| {
            let lines = [(name, value)];
            assert_eq!(client(&["10.0.0.0/8"], None, "10.0.0.1", &lines), expect, "{value}");
        };
        for end in [",", " , ", ", ,\t,", ",10.0.0.2,", ",,10.0.0.3,, 10.0.0.2"] {
            check("x-forwarded-for", &format!("6.6.6.6, 203.0.113.7{end}"), "203.0.113.7");
            let end = end.replace("10.", "for=10.");
            check("forwarded", &format!("for=6.6.6.6, for=203.0.113.7{end}"), "203.0.113.7");
        }
        check("x-forwarded-for", ", ,", "10.0.0.1");
        let commas = |count| format!("203.0.113.7{}", ",".repeat(count));
        check("x-forwarded-for", &commas(CHAIN_ADDRESSES_MAX - 1), "203.0.113.7");
        check("x-forwarded-for", &commas(CHAIN_ADDRESSES_MAX), "10.0.0.1");
        let both = [("x-forwarded-for", ","), ("forwarded", "for=6.6.6.6")];
        assert_eq!(client(&["10.0.0.1"], None, "10.0.0.1", &both), "10.0.0.1");
    }

    #[test]
    fn of_the_two_chains_the_configured_one_is_walked_alone() {
        let both = [("x-forwarded-for", "8.8.8.8"), ("forwarded", "for=203.0.113.7")];
        let check = |header: Option<&str>| client(&["10.0.0.1"], header, "10.0.0.1", &both);
        assert_eq!(check(None), "8.8.8.8");
        assert_eq!(check(Some("X-Forwarded-For")), "8.8.8.8");
        assert_eq!(check(Some("Forwarded")), "203.0.113.7");
        let other = [("x-forwarded-for", "8.8.8.8")];
        assert_eq!(client(&["10.0.0.1"], Some("Forwarded"), "10.0.0.1", &other), "10.0.0.1");
    }

    #[test]
    fn the_configured_header_is_believed_from_a_trusted_peer_alone() {
        let said = [("cf-connecting-ip", "203.0.113.7"), ("x-forwarded-for", "8.8.8.8")];
        let check = |peer: &str| client(&["10.0.0.1"], Some("CF-Connecting-IP"), peer, &said);
        assert_eq!(check("10.0.0.1"), "203.0.113.7");
        assert_eq!(check("::ffff:10.0.0.1"), "203.0.113.7");
        assert_eq!(check("10.0.0.2"), "10.0.0.2");
    }

    #[test]
    fn the_peer_of_a_unix_socket_is_trusted_where_the_list_says_so() {
        let said = [("x-forwarded-for", "203.0.113.7, 10.2.3.4")];
        assert_eq!(client(&["10.0.0.0/8"], None, "unix:", &said), "none");
        assert_eq!(client(&["unix:", "10.0.0.0/8"], None, "unix:", &said), "203.0.113.7");
        assert_eq!(client(&["unix:"], None, "unix:", &[]), "none");
        assert_eq!(client(&["unix:"], None, "10.0.0.1", &said), "10.0.0.1");
    }

    #[test]
    fn an_invalid_setting_is_named() {
        let wrong = TrustedProxies::new(&["10.0.0.0/33".into()], None).unwrap_err();
        assert_eq!(wrong, TrustError::Network("10.0.0.0/33".into()));
        let wrong = TrustedProxies::new(&[], Some("not a header")).unwrap_err();
        assert_eq!(wrong, TrustError::Header("not a header".into()));
    }
}
