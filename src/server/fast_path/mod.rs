//! The fast path: reads and answers an ordinary HTTP/1 event request without Pingora.
//!
//! It decides nothing: without it the same responses come at a higher cost.

pub(super) mod request;
