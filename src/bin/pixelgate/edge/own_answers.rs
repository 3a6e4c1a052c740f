//! The responses that the edge itself sends, where neither the gate nor an origin answers. They are
//! built once, at the start.

use bytes::Bytes;
use http::{Method, header};
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use std::sync::Arc;

/// All responses of the edge itself.
pub struct OwnAnswers {
    pub not_found: OwnAnswer,
    pub last_hop: OwnAnswer,
    pub bad_request: OwnAnswer,
    pub bad_gateway: OwnAnswer,
    pub timeout: OwnAnswer,
    pub internal: OwnAnswer,
}

/// One response, with a sentence as its body.
pub struct OwnAnswer {
    header: Arc<ResponseHeader>,
    body: Bytes,
}

impl OwnAnswers {
    /// Builds all responses. Fails only if Pingora refuses a header.
    pub fn new() -> Result<Self> {
        Ok(Self {
            not_found: OwnAnswer::new(404, "There is nothing here.\n")?,
            last_hop: OwnAnswer::new(405, "This is the last hop.\n")?,
            bad_request: OwnAnswer::new(400, "The request cannot be understood.\n")?,
            bad_gateway: OwnAnswer::new(502, "The origin does not answer.\n")?,
            timeout: OwnAnswer::new(504, "The origin does not answer in time.\n")?,
            internal: OwnAnswer::new(500, "The edge failed.\n")?,
        })
    }
}

impl OwnAnswer {
    fn new(status: u16, text: &'static str) -> Result<Self> {
        let mut header = ResponseHeader::build_no_case(status, Some(5))?;
        header.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
        header.insert_header(header::CONTENT_LENGTH, text.len())?;
        header.insert_header(header::CACHE_CONTROL, "no-store")?;
        Ok(Self { header: Arc::new(header), body: Bytes::from_static(text.as_bytes()) })
    }

    pub fn status(&self) -> u16 {
        self.header.status.as_u16()
    }

    /// Sends the response. The response to a `HEAD` request has no body (RFC 9110, section 9.3.2).
    pub async fn send(&self, session: &mut Session) -> Result<()> {
        let is_head = session.req_header().method == Method::HEAD;
        let header = Box::new(ResponseHeader::clone(&self.header));
        session.write_response_header(header, is_head).await?;
        if !is_head {
            session.write_response_body(Some(self.body.clone()), true).await?;
        }
        Ok(())
    }
}
