//! A workload: the requests of a scenario, and the answer that each must get.

/// How requests are spread over connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One after the other on connections that stay.
    Persistent,
    /// Each on its own connection, which the client closes, as a browser does.
    New,
    /// Each on a connection of its own, which it asks the server to close.
    Close,
    /// Each on a TLS connection of its own, with a full handshake.
    Handshake,
    /// As streams of one HTTP/2 connection over TLS.
    Streams,
}

/// Which requests are sent, how, and which answer must come.
#[derive(Clone)]
pub struct Workload {
    pub transport: Transport,
    pub target: &'static str,
    pub status: u16,
    pub body_bytes: usize,
    /// Connections at once, or streams.
    pub connections: usize,
    /// Requests per second; `None`: each connection sends its next request after an answer.
    pub pace: Option<u32>,
}

impl Workload {
    /// `GET target` over 64 connections, answered 200 with a body of `body_bytes`.
    pub fn new(transport: Transport, target: &'static str, body_bytes: usize) -> Workload {
        Workload { transport, target, status: 200, body_bytes, connections: 64, pace: None }
    }
}
