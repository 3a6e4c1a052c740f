//! Who is let in: what happens to a connection before its first byte of HTTP or TLS.

use super::connection_limit::{ConnectionLimit, Permit};
use super::limits::{LimitReporter, Limits};
use super::proxy_header;
use crate::request::client::TrustedProxies;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::{Limit, Metrics};
use bytes::BytesMut;
use pingora::protocols::IO;
use std::net::IpAddr;
use std::sync::Arc;

/// The door of one edge.
pub struct Admission {
    pub limits: Limits,
    pub limit_reporter: Arc<LimitReporter>,
    trusted: TrustedProxies,
    connection_limit: Arc<ConnectionLimit>,
}

/// A connection that may go on.
pub struct Admitted {
    pub permit: Permit,
    /// The client, as far as the connection itself tells.
    pub client: Option<IpAddr>,
    /// What came behind a PROXY header.
    pub ahead: BytesMut,
}

impl Admission {
    pub fn new(
        limits: Limits,
        trusted: TrustedProxies,
        metrics: Metrics,
        in_flight: InFlight,
    ) -> Self {
        let limit_reporter = Arc::new(LimitReporter::new(metrics));
        let connection_limit = Arc::new(ConnectionLimit::new(limit_reporter.clone(), in_flight));
        Self { limits, trusted, connection_limit, limit_reporter }
    }

    /// A place for a new connection; `None` closes it, unanswered.
    pub fn permit(&self) -> Option<Permit> {
        self.connection_limit.admit(&self.limits)
    }

    /// Lets a client in, if that one may have one more place. One that speaks for many is not one
    /// client, and on a Unix socket none has an address.
    pub fn claim(
        &self,
        permit: Permit,
        client: Option<IpAddr>,
        ahead: BytesMut,
    ) -> Option<Admitted> {
        let permit = match client {
            Some(address) if !self.trusted.trusts(address) => {
                permit.claim(address, &self.limits)?
            }
            _ => permit,
        };
        Some(Admitted { permit, client, ahead })
    }

    /// Lets a connection from `peer` in, once its PROXY header is read where it must have one.
    pub async fn admit(
        &self,
        permit: Permit,
        peer: Option<IpAddr>,
        stream: &mut dyn IO,
    ) -> Option<Admitted> {
        let (mut client, mut ahead) = (peer, BytesMut::new());
        if let Some(peer) = peer
            && self.limits.proxy_protocol
        {
            let said = match self.trusted.trusts(peer) {
                true => proxy_header::take(stream, &mut ahead, &self.limits).await,
                false => None,
            };
            let Some(said) = said else {
                self.limit_reporter.tell(Limit::ProxyHeader);
                return None;
            };
            client = said.map(|address| address.ip()).or(client);
        }
        self.claim(permit, client, ahead)
    }
}

/// The address of whoever connected, where it has one.
pub fn peer(stream: &dyn IO) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip())
}
