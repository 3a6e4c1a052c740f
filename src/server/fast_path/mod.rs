//! The fast path: a plain event request over HTTP/1 in clear, read and answered without Pingora.

pub(super) mod request;
pub(super) mod response;
