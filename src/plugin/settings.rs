//! The part of a gate that a reload replaces, and the state from which a reload builds it.

#[cfg(feature = "server")]
use super::fast_response::FastResponse;
use crate::policy::gate::Gate;
use crate::policy::inspect::Inspector;
use crate::policy::{portals, privacy};
use crate::request::client::TrustedProxies;
use crate::response::answers::{Answer, Answers};
use crate::response::title_case::title_case;
use crate::upstream;
use crate::upstream::Replaceable;
use bytes::Bytes;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use std::path::PathBuf;
use std::sync::Arc;

/// Spare slots in each prebuilt header: for `Date` and `Connection`, which the connection adds, and
/// for the two lines about an accepted event. They spare a reallocation per response.
pub const SPARE_HEADERS: usize = 4;

/// The part of a gate that a reload replaces, as a whole. A request uses the same `Settings` from
/// its first check to its answer.
pub struct Settings {
    pub gate: Arc<Gate>,
    /// The proxies whose headers name the client's address.
    pub trusted: TrustedProxies,
    pub answers: Answers<PrebuiltResponse>,
    /// Whether `X-Event-Id` is sent (`response.event_id`).
    pub sends_event_id: bool,
    /// The event path (`events.path`), for access logs.
    pub path: Bytes,
    /// The configured upstreams, for `explain`.
    pub upstreams: Vec<upstream::Config>,
}

/// The state from which a reload builds new settings: the parts that a reload must not change, and
/// handles to the parts that it changes.
pub struct ReloadState {
    pub state_dir: PathBuf,
    pub inspector: Option<Inspector>,
    /// The `[portals]` in force, and the `[privacy]` that its rules fit. `None`: the host brings
    /// the list.
    pub portals: Mutex<Option<(portals::Config, privacy::Config)>>,
    /// The configured upstreams, running.
    pub upstreams: Vec<Replaceable>,
}

/// An answer as the header and body that Pingora sends, and as the bytes that the fast path sends.
pub struct PrebuiltResponse {
    pub header: ResponseHeader,
    pub body: Bytes,
    #[cfg(feature = "server")]
    pub bytes: FastResponse,
}

impl PrebuiltResponse {
    /// Turns an answer into Pingora's form. Does not fail for an answer of [`Answers`]: their
    /// headers are valid by type and their statuses are literals.
    pub fn new(answer: Answer) -> pingora::Result<Self> {
        #[cfg(feature = "server")]
        let bytes = FastResponse::new(&answer);
        let size = answer.headers.len() + SPARE_HEADERS;
        let mut header = ResponseHeader::build(answer.status, Some(size))?;
        for (name, value) in answer.headers {
            header.insert_header(title_case(&name), value)?;
        }
        Ok(Self {
            header,
            body: answer.body,
            #[cfg(feature = "server")]
            bytes,
        })
    }
}
