//! What the edge checks and changes of an origin's response header before it is passed on (SPEC 1).

use http::{HeaderName, HeaderValue, StatusCode, header};
use pingora::ErrorType;
use pingora::http::ResponseHeader;
use pingora::prelude::*;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
/// The most informational responses (1xx) of an origin to one request. An origin may send one now
/// and then to say that it is still at work (RFC 2518, section 10.1).
const INFORMATIONAL_MAX: u32 = 100;

/// Whether a response is informational (RFC 9110, section 15.2) and no tunnel.
pub fn is_informational(response: &ResponseHeader) -> bool {
    response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS
}

/// Checks that an origin switches to another protocol only if the client has asked for one (RFC
/// 9110, section 7.8), and that its informational responses come to an end. Otherwise the client
/// would take what follows for responses to requests that it has not made, or wait for ever.
/// `informational` counts those of this request.
pub fn check_interim(
    session: &Session,
    response: &ResponseHeader,
    informational: &mut u32,
) -> Result<()> {
    *informational += u32::from(is_informational(response));
    let is_unasked =
        response.status == StatusCode::SWITCHING_PROTOCOLS && !session.is_upgrade_req();
    if is_unasked || *informational > INFORMATIONAL_MAX {
        return Err(Error::new_up(ErrorType::InvalidHTTPHeader));
    }
    Ok(())
}

/// Removes the hop-by-hop headers of a response (RFC 9110, section 7.6.1). Pingora removes those of
/// requests. Of a response it only replaces `Connection`, so this header stays here and keeps its
/// place. A response to a request for an upgrade keeps all of them, because they are also meant for
/// the client.
pub fn end_hop(response: &mut ResponseHeader) {
    let upgrade = [StatusCode::SWITCHING_PROTOCOLS, StatusCode::UPGRADE_REQUIRED];
    if upgrade.contains(&response.status) {
        return;
    }
    let lines = response.headers.get_all(header::CONNECTION);
    let tokens = lines.iter().flat_map(|line| line.as_bytes().split(|b| *b == b','));
    // Nearly all responses name `Keep-Alive`, which is removed below.
    let tokens = tokens
        .map(<[u8]>::trim_ascii)
        .filter(|t| !t.eq_ignore_ascii_case(KEEP_ALIVE.as_str().as_bytes()));
    let named = tokens.filter_map(|token| HeaderName::from_bytes(token).ok());
    let framing = [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    let named: Vec<_> = named.filter(|name| !framing.contains(name)).collect();
    for name in &named {
        response.remove_header(name);
    }
    // Most responses have neither, and looking at each name costs less than searching for two.
    let own_hop = [KEEP_ALIVE, PROXY_CONNECTION];
    if response.headers.keys().any(|name| own_hop.contains(name)) {
        for name in &own_hop {
            response.remove_header(name);
        }
    }
}

/// Removes the headers that frame a body from a response that cannot have a body (RFC 9112, section
/// 6.1, and RFC 9110, section 8.6). Some clients would wait for the body.
pub fn frame_no_body(response: &mut ResponseHeader) {
    if response.status.is_informational() || response.status == StatusCode::NO_CONTENT {
        response.remove_header(&header::TRANSFER_ENCODING);
        response.remove_header(&header::CONTENT_LENGTH);
    }
}

/// Replaces several equal values of `Content-Length` by one (RFC 9110, section 8.6). Pingora has
/// checked that they are equal, but a client may refuse a response with more than one.
pub fn join_lengths(response: &mut ResponseHeader) -> Result<()> {
    let mut lines = response.headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return Ok(()) };
    let values = || first.as_bytes().split(|b| *b == b',');
    if lines.next().is_none() && values().count() == 1 {
        return Ok(());
    }
    let value = values().next().unwrap_or_default().trim_ascii();
    let value = HeaderValue::from_bytes(value)
        .or_err(ErrorType::InvalidHTTPHeader, "in a response's length")?;
    response.insert_header(header::CONTENT_LENGTH, value)
}
