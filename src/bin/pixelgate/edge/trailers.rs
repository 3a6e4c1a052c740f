//! Announces trailers to an origin (RFC 9110, section 6.5). The streams of the server carry the
//! trailers themselves.

use http::{HeaderValue, header};
use pingora::http::RequestHeader;
use pingora::prelude::Result;

/// Adds to `request` what the client said about trailers: that it accepts some (`TE: trailers`, RFC
/// 9110, section 10.1.4), and which ones it will send (`Trailer`). Pingora removes both headers,
/// because it drops trailers. A request for an upgrade has another `Connection` header, and no
/// trailers.
pub fn announce(received: &RequestHeader, request: &mut RequestHeader) -> Result<()> {
    // Nearly all requests have neither, and looking at each name costs less than searching for two.
    if !received.headers.keys().any(|name| [header::TE, header::TRAILER].contains(name)) {
        return Ok(());
    }
    let takes = |line: &HeaderValue| {
        line.as_bytes()
            .split(|&b| b == b',')
            .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    };
    let lines = received.headers.get_all(header::TE);
    if lines.iter().any(takes) && !request.headers.contains_key(header::CONNECTION) {
        request.insert_header(header::TE, "trailers")?;
        request.insert_header(header::CONNECTION, "TE")?;
    }
    for (number, line) in received.headers.get_all(header::TRAILER).iter().enumerate() {
        match number {
            0 => request.insert_header(header::TRAILER, line)?,
            _ => drop(request.append_header(header::TRAILER, line)?),
        }
    }
    Ok(())
}
