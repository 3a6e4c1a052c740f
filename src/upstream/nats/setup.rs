//! The checked settings that the connection and the upstream share.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;

use super::subject::Subject;

/// Maximum number of batches in flight.
pub const BATCHES_MAX: usize = 4;
/// Maximum number of unacknowledged events of one batch.
pub const UNANSWERED_MAX: usize = 1000;

/// The checked settings of an upstream.
pub struct Setup {
    pub servers: Vec<ServerAddr>,
    pub login: Login,
    pub credentials: Option<PathBuf>,
    pub subject: Subject,
    pub stream: String,
    pub tls: rustls::ClientConfig,
    pub tls_required: bool,
    pub timeout: Duration,
}

/// How the client authenticates, apart from a credentials file.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Anonymous,
    Token(String),
    User(String, String),
}
