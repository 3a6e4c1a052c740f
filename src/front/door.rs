//! Who is let in: what happens to a connection before its first byte of HTTP or TLS.
//!
//! Pingora shakes hands on TLS before it shows a connection to its application. The door stands
//! before that, too ([`BeforeTls`]), so that connections which never finish a handshake have
//! places like all others, and a PROXY header is read where it stands.

use super::InFlight;
use super::census::{Census, Place};
use super::limits::{Limits, Teller};
use super::proxy_header;
use crate::client::TrustedProxies;
use crate::metrics::{Limit, Metrics};
use async_trait::async_trait;
use bytes::BytesMut;
use pingora::http::ResponseHeader;
use pingora::listeners::PreTlsProcess;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{GetProxyDigest, IO, l4};
use pingora::{Error, ErrorType};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// The door of one edge.
pub struct Door {
    pub limits: Limits,
    pub teller: Arc<Teller>,
    trusted: TrustedProxies,
    census: Arc<Census>,
}

/// A connection that has a place.
pub struct Admitted {
    pub place: Place,
    /// What came behind a PROXY header.
    pub ahead: BytesMut,
}

impl Door {
    pub fn new(
        limits: Limits,
        trusted: TrustedProxies,
        metrics: Metrics,
        in_flight: InFlight,
    ) -> Self {
        let teller = Arc::new(Teller::new(metrics));
        let census = Arc::new(Census::new(teller.clone(), in_flight));
        Self { limits, trusted, census, teller }
    }

    /// A place for a new connection; `None` closes it, unanswered.
    pub async fn admit(&self, stream: &mut dyn IO) -> Option<Admitted> {
        let place = self.census.admit(&self.limits)?;
        let mut ahead = BytesMut::new();
        let Some(mut address) = peer(stream) else {
            return Some(Admitted { place, ahead });
        };
        if self.limits.proxy_protocol {
            let known = self.trusted.trusts(address);
            if !known || proxy_header::take(stream, &mut ahead, &self.limits).await.is_none() {
                self.teller.tell(Limit::ProxyHeader);
                return None;
            }
            address = peer(stream).unwrap_or(address);
        }
        // One that speaks for many is not one client.
        let place = match self.trusted.trusts(address) {
            true => place,
            false => place.claim(address, &self.limits)?,
        };
        Some(Admitted { place, ahead })
    }
}

/// The address of whoever connected, where it has one.
pub fn peer(stream: &dyn IO) -> Option<IpAddr> {
    let digest = stream.get_socket_digest()?;
    Some(digest.peer_addr()?.as_inet()?.ip())
}

/// The door, as Pingora asks it before a TLS handshake.
pub struct BeforeTls(pub Arc<Door>);

/// A place that waits for the end of its connection's handshake, and is given back without it.
struct Shaking {
    place: Mutex<Option<Place>>,
    teller: Arc<Teller>,
}

impl Drop for Shaking {
    fn drop(&mut self) {
        if self.place.get_mut().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.teller.tell(Limit::TlsHandshake);
        }
    }
}

#[async_trait]
impl PreTlsProcess for BeforeTls {
    async fn process(&self, stream: &mut l4::stream::Stream) -> pingora::Result<()> {
        let refused = || Error::explain(ErrorType::HandshakeError, "refused at a limit");
        let admitted = self.0.admit(stream).await.ok_or_else(refused)?;
        stream.rewind(&admitted.ahead);
        let place = Mutex::new(Some(admitted.place));
        let shaking = Shaking { place, teller: self.0.teller.clone() };
        // The one thing of ours that a stream carries through its handshake.
        let header = Box::new(ResponseHeader::build(200, Some(0))?);
        stream.set_proxy_digest(ProxyDigest::new(header, Some(Box::new(shaking))));
        Ok(())
    }
}

/// The place of a connection that was admitted before its handshake.
pub fn shaken(stream: &dyn IO) -> Option<Admitted> {
    let digest = stream.get_proxy_digest()?;
    let shaking = digest.user_data.as_ref()?.downcast_ref::<Shaking>()?;
    let place = shaking.place.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    Some(Admitted { place, ahead: BytesMut::new() })
}
