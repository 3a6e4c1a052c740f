//! pixelgate: an event-pixel gate.
//!
//! A [Pingora](https://docs.rs/pingora) middleware that intercepts event pixels
//! (`GET /v1/event/?_a=PORTAL&_n=EVENT&...`) at the edge, judges them, keeps each accepted event
//! on disk before it answers the pixel, and forwards the events in batches. Everything else is
//! the host's to proxy, untouched.
//!
//! # Embedding
//!
//! ```no_run
//! use pingora::prelude::*;
//! use pixelgate::{PixelGate, Verdict};
//!
//! struct MyProxy {
//!     pixels: PixelGate,
//! }
//!
//! #[derive(Default)]
//! struct MyCtx {
//!     verdict: Option<Verdict>,
//! }
//!
//! #[async_trait::async_trait]
//! impl ProxyHttp for MyProxy {
//!     type CTX = MyCtx;
//!     fn new_ctx(&self) -> MyCtx {
//!         MyCtx::default()
//!     }
//!     async fn request_filter(&self, session: &mut Session, ctx: &mut MyCtx) -> Result<bool> {
//!         ctx.verdict = self.pixels.handle(session).await?; // None: not ours, session untouched
//!         Ok(ctx.verdict.is_some()) // Some: answered
//!     }
//!     async fn upstream_peer(&self, _: &mut Session, _: &mut MyCtx) -> Result<Box<HttpPeer>> {
//!         Ok(Box::new(HttpPeer::new("127.0.0.1:9000", false, String::new())))
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! A gate is opened by [`PixelGate::builder`] and ended by [`PixelGate::close`], after the server
//! has stopped. `examples/embed.rs` is a whole proxy.
//!
//! # The plan of the house
//!
//! Imports point down only.
//!
//! | floor | modules | what they are |
//! |---|---|---|
//! | 3 | [`plugin`], [`server`], [`builder`], [`admin`] | hosts: the only ones that know Pingora |
//! | 2 | [`policy`], [`explain`], [`delivery`] | flows: from hit to verdict, from spool to upstreams |
//! | 1 | [`spool`], [`upstream`] | devices, which know nothing of each other |
//! | 0 | [`event`], [`request`], [`response`], [`telemetry`], [`clock`] | pure: no I/O, no async |

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod admin;
pub mod builder;
pub mod clock;
pub mod delivery;
pub mod event;
pub mod explain;
pub mod plugin;
pub mod policy;
pub mod request;
pub mod response;
pub mod server;
pub mod spool;
pub mod telemetry;
pub mod upstream;

pub use crate::policy::gate::Verdict;
pub use builder::{Builder, Config, ConfigError, OpenError, check};
pub use event::{Reason, Reject};
pub use plugin::PixelGate;
pub use upstream::Upstream;
