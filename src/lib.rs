//! pixelgate: an event-pixel gate.
//!
//! A [Pingora](https://docs.rs/pingora) middleware that answers event pixels
//! (`GET /v1/event/?_a=PORTAL&_n=EVENT&...`) at the edge. It accepts or rejects each event, writes
//! an accepted one to disk before it answers, and delivers the events to upstreams in batches. All
//! other requests are left untouched for the host to proxy.
//!
//! # A host
//!
//! Two calls are added to an ordinary Pingora proxy: [`PixelGate::handle`] first thing in
//! `request_filter`, and [`PixelGate::close`] after the server has stopped.
//!
//! ```no_run
//! use pingora::server::{RunArgs, configuration::ServerConf};
//! use pingora::prelude::*;
//! use pixelgate::{Config, PixelGate};
//!
//! struct MyProxy(PixelGate);
//!
//! #[async_trait::async_trait]
//! impl ProxyHttp for MyProxy {
//!     type CTX = ();
//!     fn new_ctx(&self) {}
//!     async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
//!         Ok(self.0.handle(session).await?.is_some()) // `true`: an event, and answered
//!     }
//!     async fn upstream_peer(&self, _: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
//!         Ok(Box::new(HttpPeer::new("127.0.0.1:9000", false, String::new())))
//!     }
//! }
//!
//! fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
//!     let gate = PixelGate::builder(Config::default()).open()?; // reads `portals.toml`
//!     // Without this period Pingora waits five minutes after SIGTERM before `run` returns.
//!     let conf = ServerConf { grace_period_seconds: Some(0), ..ServerConf::default() };
//!     let mut server = Server::new_with_opt_and_conf(None, conf);
//!     let mut proxy = http_proxy_service(&server.configuration, MyProxy(gate.clone()));
//!     proxy.add_tcp("127.0.0.1:8080");
//!     server.add_service(proxy);
//!     server.run(RunArgs::default()); // not `run_forever`, which exits the process
//!     gate.close(std::time::Duration::from_secs(5))?;
//!     Ok(())
//! }
//! ```
//!
//! With the defaults, events wait below `data/spool` and are delivered into files below
//! `data/events`. [`PixelGate::handle`] returns a [`Verdict`], which the host may log.
//! `examples/` has whole programs: `embed` (the smallest), `embed_virtual_hosts` (a gate for each
//! host name), `embed_inspect` (a look at each event), `embed_front` (the HTTP server), and
//! `upstream` (an upstream of one's own).
//!
//! # What is here
//!
//! | for | see |
//! |---|---|
//! | the gate in your own proxy | [`PixelGate`], [`Builder`], [`Verdict`], [`Reload`] |
//! | its configuration | [`Config`], the sections in [`config`] |
//! | what a verdict speaks of | [`Event`], [`EventId`], [`Rejection`], [`Reason`] |
//! | your own upstream | [`Upstream`], [`Batch`], [`Outcome`] |
//! | your own inspector, portal list, clock, registry or access log | [`custom`] |
//! | an HTTP server in front of a Pingora proxy | [`http_server`](http_server/index.html) |
//! | the operator's pages | [`admin_pages`](admin_pages/index.html) |
//! | commands for a spool and its dead letters, and a limit for log lines | [`tools`] |
//! | what can go wrong | [`errors`] |
//!
//! # Words
//!
//! - **event**: what a pixel request says happened. It belongs to a **portal**, the number of an
//!   account (`_a`), and has a name (`_n`).
//! - **gate**: judges event requests and answers them; one [`PixelGate`] with one event path.
//! - **spool**: the folder in which accepted events are stored until every upstream has them.
//! - **upstream**: where events go, in batches. **Origin**: where a proxy sends all other requests.
//! - **dead letter**: an event that an upstream refuses for good, stored for an operator.
//!
//! # Promises
//!
//! - An accepted event is as durable as [`config::Durability`] says before its answer is sent: by
//!   default it is synced to disk (SPEC 6). It is delivered at least once, always under the same
//!   [`EventId`] (SPEC 7).
//! - No request waits for an upstream, a name server or a portal list. A request waits for the disk
//!   at most `spool.commit_seconds_max` (5 s), and then is answered 503 (`overloaded`).
//! - Nothing that a request brings makes the gate panic, and none of it is in a log line, a metric
//!   or an error of the library.
//! - A gate runs on any tokio runtime, one of a single thread included, and does not need
//!   unwinding: a host may be built with `panic = "abort"`. Several gates work in one process, each
//!   with its own path, portals, spool and [`Builder::name`].
//!
//! # Units and limits
//!
//! A number has its unit last in its name: `_ms`, `_seconds`, `_bytes`, `_per_second`. Times of day
//! are milliseconds since 1970, UTC. What begins or ends with `max` or `min` is a limit and
//! includes its value; 0 means no limit only where the documentation says so. The limits of a
//! request (query, parameters, names, values) are those of SPEC 3; the limits of each key of the
//! configuration are in [`config`], and [`Config::validate`] checks them.
//!
//! # Cargo features
//!
//! | feature | adds |
//! |---|---|
//! | none | the judge, portal lists from files, the spool, delivery into files, the plugin |
//! | `http` | upstreams of kind `http`, `legacy` and `hubspot`; portal lists by URL |
//! | `admin` | the operator's pages |
//! | `server` | the HTTP server in front of a Pingora proxy |
//! | `kafka`, `nats` | the upstreams of these kinds |
//! | `otlp` | metrics for a collector, by OTLP over HTTP |
//! | `rustls`, `openssl`, `boringssl`, `s2n` | at most one: Pingora's TLS backend |
//! | `edge` (default) | the binary, with `admin`, `http`, `server` and `rustls` |
//!
//! A host turns the default off and names what it needs; it brings Pingora with any TLS backend or
//! none. Pingora needs `cmake` to build.
//!
//! "SPEC 7" in these pages is section 7 of `docs/spec.md`, the contract for callers, operators and
//! upstreams. `docs/architecture.md` describes the modules of the crate.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
// docs.rs then says which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Tests and benchmarks, which enable `internals`, use more items than hosts do. Their build still
// reports an item that has no use at all.
#![cfg_attr(not(feature = "internals"), allow(dead_code, unused_imports))]

/// The program in the README, which `cargo test --doc` compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "admin")]
mod admin;
mod builder;
mod clock;
mod config_error;
mod delivery;
mod disk_error;
mod env;
mod event;
mod explain;
mod file_lock;
mod file_stamp;
mod pem;
mod plugin;
mod plural;
mod policy;
#[cfg(feature = "http")]
mod proxy;
mod regular_file;
mod reload;
mod request;
mod response;
#[cfg(feature = "http")]
mod retry_after;
#[cfg(feature = "server")]
mod server;
mod spool;
mod telemetry;
#[cfg(any(feature = "http", feature = "nats"))]
mod tls_error;
mod upstream;

pub use builder::{Builder, Config};
pub use event::{Event, EventId, Reason, Rejection};
pub use plugin::{PixelGate, Verdict};
pub use reload::Reload;
#[cfg(feature = "server")]
pub use server::{Limits, Server};
pub use upstream::{Batch, Outcome, Upstream};

/// The errors of the crate. Each displays as one sentence without a secret value, and the chain of
/// its `source()` ends at the system's error.
pub mod errors {
    pub use crate::builder::OpenError;
    pub use crate::config_error::ConfigError;
    pub use crate::env::ExpandError;
    pub use crate::event::RecordError;
    pub use crate::explain::NotAnEvent;
    pub use crate::policy::inspect::AddError;
    pub use crate::policy::portals::OpenError as PortalsError;
    pub use crate::request::client::TrustError;
    pub use crate::spool::{CloseError, OpenError as SpoolError};
}

/// The sections of a [`Config`], each with its keys, units, defaults and limits (SPEC 9), and the
/// one rule for `${NAME}` in their strings.
///
/// Keys will be added, so a host takes the defaults and sets fields:
///
/// ```
/// use pixelgate::config::{Durability, Spool};
///
/// let mut spool = Spool::default();
/// spool.dir = "/var/lib/pixelgate/spool".into();
/// spool.durability = Durability::Interval;
/// ```
pub mod config {
    #[cfg(feature = "admin")]
    pub use crate::admin::{Config as Admin, MetricsConfig as Metrics, OtlpConfig as Otlp};
    pub use crate::builder::ValidConfig;
    pub use crate::env::{Secret, expand, expanded, expanded_list, one_or_many};
    pub use crate::event::Config as Events;
    pub use crate::policy::portals::{Config as Portals, Mode as PortalMode};
    pub use crate::policy::privacy::{Config as Privacy, Gpc, KeepIp, KeepReferer};
    pub use crate::request::client::TrustedProxies;
    pub use crate::response::answers::{Body as ResponseBody, Config as Response, Rejections};
    pub use crate::spool::{Config as Spool, Durability};
    pub use crate::upstream::file::Config as FileUpstream;
    #[cfg(feature = "kafka")]
    pub use crate::upstream::kafka::{
        Config as KafkaUpstream, Key as KafkaKey, Properties as KafkaProperties,
    };
    #[cfg(feature = "nats")]
    pub use crate::upstream::nats::Config as NatsUpstream;
    pub use crate::upstream::{
        BatchConfig as Batch, BatchOverride, Config as Upstream, Format as BatchFormat,
        Kind as UpstreamKind, ValidConfig as ValidUpstream,
    };
    #[cfg(feature = "http")]
    pub use crate::upstream::{
        Compression, http::Config as HttpUpstream, http::Order, hubspot::Config as HubspotUpstream,
        legacy::Config as LegacyUpstream, legacy::OnUnknown,
    };
}

/// The types of what a host may bring of its own: an upstream ([`Upstream`]), a look at each event
/// ([`Builder::inspect`]), a portal list ([`Builder::portals`]), a clock ([`Builder::clock`]), a
/// registry of metrics ([`Builder::registry`]), counters of the requests in flight
/// ([`Builder::in_flight`]), or an access log ([`PixelGate::set_access_log`]).
pub mod custom {
    pub use crate::clock::{Clock, SystemClock};
    pub use crate::event::{Context, FurtherContext, Properties, Record, Revenue};
    pub use crate::plugin::access::{AccessLog, AccessRecord};
    pub use crate::policy::inspect::{Addition, Refusal};
    pub use crate::policy::portals::Format as PortalFormat;
    pub use crate::telemetry::faults::{Fault, FaultKind, Faults};
    pub use crate::telemetry::in_flight::{InFlight, InFlightGuard};
    #[doc(hidden)] // Hosts written for 0.1.0 import them from here.
    pub use crate::upstream::{Batch, Outcome};
    pub use crate::upstream::{Body, Failure, Part, is_bot};
    pub use prometheus::Registry;
}

/// An HTTP server in front of Pingora's proxy (SPEC 9, `[edge]`): connection limits, deadlines,
/// strict framing, and a fast path for plain event requests. `examples/embed_front.rs` uses it.
///
/// It works with every TLS backend of Pingora, and without one: see [`Handshake`].
///
/// [`Handshake`]: http_server::Handshake
#[cfg(feature = "server")]
pub mod http_server {
    pub use crate::server::{
        Acceptor, BufferedBytes, Handshake, Limits, LimitsHandle, Listener, OriginConnector,
        OriginTimeouts, OriginTransport, Proxy, Server, Socket, add_request_lines, proxy,
        proxy_with,
    };
    pub use crate::telemetry::metrics::Limit;
}

/// The operator's listener: `/metrics`, `/livez`, `/readyz`, `/status` and the live page (SPEC 8).
#[cfg(feature = "admin")]
pub mod admin_pages {
    pub use crate::admin::{Admin, Sampler, TokenHandle, VERDICT_TARGET};
    #[cfg(feature = "otlp")]
    pub use crate::admin::{OtlpExport, OtlpTarget};
    pub use crate::telemetry::event_samples::SAMPLES_PER_SECOND_MAX;
    pub use crate::telemetry::faults::FaultKind;
}

/// Parts for command-line tools: `check`, `explain`, the spool, its dead letters, backfill,
/// metrics, files and log lines. Made for the binary `pixelgate`, which is built on the public
/// names alone; they change more often than those of the other groups.
pub mod tools {
    pub use crate::builder::{EVENT_METERING, EVENT_ROUTING, check};
    pub use crate::config_error::without_value;
    pub use crate::delivery::{backfill, dead_letters};
    pub use crate::disk_error::is_of_path;
    pub use crate::event::{Record, escape_hidden};
    pub use crate::explain::{Explanation, Section, explain};
    pub use crate::file_stamp::FileStamp;
    pub use crate::pem::{ENCRYPTED as ENCRYPTED_KEY, is_encrypted};
    pub use crate::regular_file::read as read_regular_file;
    pub use crate::spool::recovery::{forget, inspect};
    pub use crate::spool::{Metered, Metering, Routing};
    pub use crate::telemetry::log_throttle::LogThrottle;
    pub use crate::telemetry::metrics::Metrics;
    #[cfg(feature = "http")]
    pub use crate::tls_error::tls_words;
    #[doc(hidden)] // Hosts written for 0.1.0 import them from here.
    pub use crate::{event::RecordError, explain::NotAnEvent};
}

/// The modules of the crate, for its own tests, benchmarks and fuzz targets. Not part of the public
/// interface: anything here may change at any time.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    #[cfg(feature = "admin")]
    pub mod admin {
        pub use crate::admin::*;
    }
    pub mod clock {
        pub use crate::clock::*;
    }
    pub mod delivery {
        pub use crate::delivery::*;
    }
    pub mod event {
        pub use crate::event::*;
    }
    pub mod explain {
        pub use crate::explain::*;
    }
    pub mod policy {
        pub use crate::policy::*;
    }
    pub mod request {
        pub use crate::request::*;
    }
    pub mod response {
        pub use crate::response::*;
    }
    #[cfg(feature = "server")]
    pub mod server {
        pub use crate::server::*;
    }
    pub mod spool {
        pub use crate::spool::*;
    }
    pub mod telemetry {
        pub use crate::telemetry::*;
    }
    pub mod upstream {
        pub use crate::upstream::*;
    }
}
