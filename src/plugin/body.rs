//! Reads the body of an event request. An event request is judged only if it is whole (SPEC 2).

use http::{Method, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use std::time::Duration;
use tokio::time::timeout;

/// The largest body of an event request that is read to its end, in bytes. A larger body is left
/// unread, and the connection closes after the answer.
const BODY_BYTES_MAX: usize = 64 << 10;
/// How long an event request's body may take to arrive, in seconds.
const BODY_SECONDS_MAX: u64 = 10;

/// The body of an event request, as far as it was read.
pub struct EventBody {
    /// The content of a form. Empty for any other body.
    pub form: Vec<u8>,
    /// Whether the body was read to its end. If not, the end of the request is unknown.
    pub is_whole: bool,
}

/// The body is malformed, was cut off, or took longer than [`BODY_SECONDS_MAX`].
pub struct BrokenBody;

/// Whether the body of a request holds parameters.
pub fn is_form(request: &RequestHeader) -> bool {
    let kind = request.headers.get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
    let kind = kind.unwrap_or_default().split(|b| *b == b';').next().unwrap_or_default();
    let is_urlencoded =
        kind.trim_ascii().eq_ignore_ascii_case(b"application/x-www-form-urlencoded");
    request.method == Method::POST && is_urlencoded
}

/// Reads the body, and returns its content if it is a form. A client that waits for `100 Continue`
/// is asked to send a form and no other body: it gets the final answer at once instead.
pub async fn read(session: &mut ServerSession, is_form: bool) -> Result<EventBody, BrokenBody> {
    let request = session.req_header();
    // An HTTP/1.0 client does not wait for it (RFC 9110, section 10.1.1).
    let waits = request.version != Version::HTTP_10 && request.headers.contains_key(header::EXPECT);
    if waits && !is_form {
        return Ok(EventBody { form: Vec::new(), is_whole: false });
    }
    let reading = async {
        if waits {
            // Pingora turns keep-alive off when an answer precedes the end of the body. `100
            // Continue` is not an answer.
            let keepalive = session.get_keepalive();
            session.write_continue_response().await.map_err(|_| BrokenBody)?;
            session.set_keepalive(keepalive);
        }
        let mut form = Vec::new();
        let mut length = 0;
        while let Some(piece) = session.read_request_body().await.map_err(|_| BrokenBody)? {
            length += piece.len();
            if is_form {
                form.extend_from_slice(&piece);
            }
            if length > BODY_BYTES_MAX {
                return Ok(EventBody { form, is_whole: false });
            }
        }
        Ok(EventBody { form, is_whole: true })
    };
    timeout(Duration::from_secs(BODY_SECONDS_MAX), reading).await.unwrap_or(Err(BrokenBody))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};
    use tokio::time::{Instant, sleep};

    const HEAD: &str = "POST /v1/event/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";

    /// Reads a body of which the last byte comes after this time.
    async fn read_late(millis: u64) -> Result<EventBody, BrokenBody> {
        let (mut client, edge) = duplex(1 << 10);
        let mut session = ServerSession::new_http1(Box::new(edge));
        client.write_all(HEAD.as_bytes()).await.unwrap();
        assert!(session.read_request().await.unwrap());
        let send = async move {
            client.write_all(b"_n=").await.unwrap();
            sleep(Duration::from_millis(millis)).await;
            // Fails if the body is not waited for any longer.
            let _ = client.write_all(b"a").await;
            client
        };
        let sending = tokio::spawn(send);
        let body = read(&mut session, true).await;
        drop(sending);
        body
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_as_many_seconds_as_documented() {
        const MILLIS_MAX: u64 = 10_000;
        let body = read_late(MILLIS_MAX - 1).await;
        assert!(body.is_ok_and(|body| body.is_whole && body.form == b"_n=a"));
        let began = Instant::now();
        assert!(read_late(MILLIS_MAX + 1).await.is_err());
        assert_eq!(began.elapsed().as_secs(), BODY_SECONDS_MAX);
    }
}
