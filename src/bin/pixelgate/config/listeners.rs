//! The addresses of all listeners, which must differ, and of which no origin may be one.

use crate::edge::listen::{Address, conflict};
use crate::edge::origin_url::OriginUrl;
use crate::real_path::resolved;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

type Edge = crate::edge::config::Config;
type Admin = pixelgate::config::Admin;

/// The key of the listener of the admin pages.
const ADMIN: &str = "admin.listen";

/// Checks that no two listeners have the same address, and that the edge is no origin of its own.
/// Entries of `edge.tls` share theirs. The error is a key and the reason.
pub fn check(edge: &Edge, admin: &Admin) -> Result<(), (String, String)> {
    let tls: BTreeSet<&str> = edge.tls.iter().map(|entry| entry.listen.as_str()).collect();
    let plain = edge.listen.iter().map(|text| ("edge.listen", text.as_str()));
    let all = plain.chain(tls.into_iter().map(|text| ("edge.tls", text)));
    let all: Vec<_> = all.chain([(ADMIN, admin.listen.as_str())]).collect();
    if let Some([(first, _), (second, _)]) = conflict(&all) {
        let reason = format!("listens on an address that {first} listens on");
        return Err((second.to_owned(), reason));
    }
    for (n, url) in edge.origin.iter().enumerate() {
        if let Some(key) = reached_by(url, edge, admin) {
            let n = n + 1;
            let follows = match key {
                ADMIN => "clients of the edge would reach the admin pages",
                _ => "the edge would send each request to itself",
            };
            let reason = format!("entry {n} is an address that {key} listens on: {follows}");
            return Err(("edge.origin".to_owned(), reason));
        }
    }
    Ok(())
}

/// The key and the address of each listener. Those that cannot be read are left out.
pub fn all(edge: &Edge, admin: &Admin) -> Vec<(&'static str, Address)> {
    let plain = edge.listen.iter().map(|text| ("edge.listen", text));
    let tls = edge.tls.iter().map(|entry| ("edge.tls", &entry.listen));
    let admin = Some((ADMIN, &admin.listen)).filter(|(_, text)| !text.is_empty());
    let all = plain.chain(tls).chain(admin);
    all.filter_map(|(key, text)| Some((key, Address::parse(text).ok()?))).collect()
}

/// Checks that no two Unix sockets are the same file, however their paths are written. Asks the
/// file systems. The error names the key.
pub fn check_sockets(edge: &Edge, admin: &Admin) -> Result<(), String> {
    let mut seen = Vec::new();
    for (key, address) in all(edge, admin) {
        let Address::Unix(path) = &address else { continue };
        let real = resolved(path);
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == real) {
            return Err(format!("{key}: {address} is a socket that {first} also names"));
        }
        seen.push((key, real));
    }
    Ok(())
}

/// The key of a listener of the edge that a connection to this origin reaches. An address of this
/// machine that is no loopback address is not recognized where the listener is on all addresses.
fn reached_by(origin: &str, edge: &Edge, admin: &Admin) -> Option<&'static str> {
    let OriginUrl { host, port, .. } = OriginUrl::parse(origin).ok()?;
    let ips = match host.as_str() {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        host => vec![host.parse().ok()?],
    };
    let reached = |(_, address): &(_, Address)| match address {
        Address::Tcp(listener) => ips.iter().any(|ip| reaches(*ip, port, listener)),
        Address::Unix(_) => false,
    };
    all(edge, admin).into_iter().find(reached).map(|(key, _)| key)
}

/// Whether a connection to this address reaches a socket that listens on `listener`.
fn reaches(ip: IpAddr, port: u16, listener: &SocketAddr) -> bool {
    // Linux connects to the loopback address if the unspecified one is given.
    let ip = match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let own = listener.ip().to_canonical();
    // `[::]` takes IPv4 connections, too.
    let takes_all = own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
    listener.port() == port && (own == ip || takes_all && ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_no_listener_of_the_edge() {
        let check = |listen: &str, origin: &str, expect: bool| {
            let edge = Edge { listen: vec![listen.into()], ..Edge::default() };
            let reached = reached_by(origin, &edge, &Admin::default());
            assert_eq!(reached.is_some(), expect, "{listen} {origin}");
        };
        for origin in ["127.0.0.1", "127.1", "0.0.0.0", "localhost", "[::ffff:127.0.0.1]"] {
            check("127.0.0.1:8080", &format!("http://{origin}:8080"), true);
            check("127.0.0.1:8080", &format!("http://{origin}:8081"), false);
            check("0.0.0.0:8080", &format!("http://{origin}:8080"), true);
            let admin: Admin = toml::from_str("listen = '127.0.0.1:9000'").unwrap();
            let reached = reached_by(&format!("http://{origin}:9000"), &Edge::default(), &admin);
            assert_eq!(reached, Some(ADMIN), "{origin}");
            check("[::]:8080", &format!("http://{origin}:8080"), true);
        }
        check("[::1]:8080", "http://localhost:8080", true);
        check("[::1]:8080", "http://[::]:8080", true);
        check("0.0.0.0:80", "http://127.0.0.2", true);
        check("0.0.0.0:443", "https://127.0.0.2", true);
        check("0.0.0.0:8080", "http://[::1]:8080", false);
        check("127.0.0.1:8080", "http://127.0.0.2:8080", false);
        check("0.0.0.0:8080", "http://192.0.2.1:8080", false);
        check("192.0.2.1:8080", "http://192.0.2.1:8080", true);
        check("0.0.0.0:8080", "http://origin.test:8080", false);
        check("unix:/run/edge.sock", "http://localhost", false);
    }
}
