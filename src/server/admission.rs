//! Admission: what a connection must pass before its first byte of HTTP or TLS.
//!
//! It takes a permit of the connection limit, then reads a PROXY header if one is required.

use super::connection_limit::{ConnectionLimit, Permit};
use super::limits::{LimitReporter, Limits};
use super::proxy_header;
use crate::plugin::PixelGate;
use crate::telemetry::in_flight::InFlight;
use crate::telemetry::metrics::Limit;
use arc_swap::{ArcSwap, Guard};
use bytes::BytesMut;
use pingora::protocols::IO;
use std::net::IpAddr;
use std::sync::Arc;

/// Admits the connections of one server.
pub struct Admission {
    /// The limits in force, which a reload replaces.
    pub limits: Arc<ArcSwap<Limits>>,
    pub limit_reporter: Arc<LimitReporter>,
    gate: PixelGate,
    connection_limit: Arc<ConnectionLimit>,
}

/// An admitted connection.
pub struct Admitted {
    pub permit: Permit,
    /// The client's address: from the PROXY header, else the peer's. `None` on a Unix socket.
    pub client: Option<IpAddr>,
    /// Bytes that were received after the PROXY header, for the next reader.
    pub ahead: BytesMut,
}

impl Admission {
    pub fn new(limits: Limits, gate: PixelGate, in_flight: InFlight) -> Self {
        let limit_reporter = Arc::new(LimitReporter::new(gate.metrics().clone()));
        let connection_limit = Arc::new(ConnectionLimit::new(limit_reporter.clone(), in_flight));
        let limits = Arc::new(ArcSwap::from_pointee(limits));
        Self { limits, gate, connection_limit, limit_reporter }
    }

    /// The limits in force.
    pub fn limits(&self) -> Guard<Arc<Limits>> {
        self.limits.load()
    }

    /// A permit for a new connection. `None`: the caller closes it without a response.
    pub fn permit(&self) -> Option<Permit> {
        self.connection_limit.admit(&self.limits())
    }

    /// Admits a client unless its address has too many connections. Trusted proxies and Unix
    /// sockets are exempt from the per-address limit.
    pub fn claim(
        &self,
        permit: Permit,
        client: Option<IpAddr>,
        ahead: BytesMut,
    ) -> Option<Admitted> {
        let permit = match client {
            Some(address) if !self.gate.trusts_peer(client) => {
                permit.claim(address, &self.limits())?
            }
            _ => permit,
        };
        Some(Admitted { permit, client, ahead })
    }

    /// Admits a connection from `peer`, after its PROXY header if one is required. `None` where the
    /// header is missing, malformed or from an untrusted peer, or a limit is exceeded.
    pub async fn admit(
        &self,
        permit: Permit,
        peer: Option<IpAddr>,
        stream: &mut dyn IO,
    ) -> Option<Admitted> {
        let (mut client, mut ahead) = (peer, BytesMut::new());
        if let Some(peer) = peer
            && self.limits().proxy_protocol
        {
            let header = match self.gate.trusts_peer(Some(peer)) {
                true => {
                    let limits = self.limits.load_full();
                    proxy_header::take(stream, &mut ahead, &limits).await
                }
                false => None,
            };
            let Some(address) = header else {
                self.limit_reporter.report(Limit::ProxyHeader);
                return None;
            };
            client = address.map(|address| address.ip()).or(client);
        }
        self.claim(permit, client, ahead)
    }
}

/// The peer's IP address; `None` on a Unix socket.
pub fn peer(stream: &dyn IO) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip())
}
