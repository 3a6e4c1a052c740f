//! Adds the headers `X-Forwarded-…`, which name the client, the scheme and the host of a request to
//! an origin (SPEC 1).

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, header};
use pingora::ErrorType;
use pingora::http::RequestHeader;
use pingora::prelude::*;
use pixelgate::http_server::add_request_lines;
use smallvec::SmallVec;
use std::net::IpAddr;

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The most bytes of an IP address as text.
const ADDRESS_BYTES_MAX: usize = 45;

/// Sets `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host` in `request`. The scheme and
/// the host that the client sent in them stay only if the client is a trusted proxy
/// (`trusts_peer`).
pub fn add_to(request: &mut RequestHeader, session: &Session, trusts_peer: bool) -> Result<()> {
    // Nearly all requests have none, and looking at each name costs less than searching for three.
    let names = [&X_FORWARDED_FOR, &X_FORWARDED_PROTO, &X_FORWARDED_HOST];
    let has_any = request.headers.keys().any(|name| names.contains(&name));
    let lines = || has_any.then(|| request.headers.get_all(&X_FORWARDED_FOR));
    let address = peer(session).map(|peer| appended(lines().into_iter().flatten(), peer));
    let address = address.transpose()?;
    let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
    let scheme = HeaderValue::from_static(if tls { "https" } else { "http" });
    let received = session.req_header();
    let authority = || HeaderValue::from_str(received.uri.authority()?.as_str()).ok();
    let host = received.headers.get(header::HOST).cloned().or_else(authority);

    // Lines for names that the request does not have. A line that it has keeps its place.
    let mut added = SmallVec::<[(&HeaderName, &HeaderValue); 3]>::new();
    for (name, value, is_list) in [
        (&X_FORWARDED_FOR, address.as_ref(), true),
        (&X_FORWARDED_PROTO, Some(&scheme), false),
        (&X_FORWARDED_HOST, host.as_ref(), false),
    ] {
        match (has_any && request.headers.contains_key(name), value) {
            (true, _) if trusts_peer && !is_list => {}
            (false, Some(value)) => added.push((name, value)),
            (true, Some(value)) => request.insert_header(name, value)?,
            (true, None) if !is_list => drop(request.remove_header(name)),
            (_, None) => {}
        }
    }
    if !add_request_lines(&added) {
        for (name, value) in added {
            request.insert_header(name, value)?;
        }
    }
    Ok(())
}

/// Returns the address of the other end of the connection, or `None` for a Unix socket.
pub fn peer(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|a| a.as_inet()).map(|a| a.ip())
}

/// Joins all lines of a list header into one value, and appends `address`.
fn appended<'l>(
    lines: impl Iterator<Item = &'l HeaderValue>,
    address: IpAddr,
) -> Result<HeaderValue> {
    let mut value = BytesMut::with_capacity(ADDRESS_BYTES_MAX);
    for line in lines {
        value.extend_from_slice(line.as_bytes());
        value.extend_from_slice(b", ");
    }
    match address.to_canonical() {
        // Writes the same as `Display` in a tenth of the time.
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                value.extend_from_slice(if at == 0 { b"" } else { b"." });
                value.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        IpAddr::V6(address) => value.extend_from_slice(address.to_string().as_bytes()),
    }
    HeaderValue::from_maybe_shared(value.freeze())
        .or_err(ErrorType::InvalidHTTPHeader, "in a list of addresses")
}
