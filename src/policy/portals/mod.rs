//! Portal policy: which portals' events are accepted, and the rules of each (SPEC 5).
//!
//! [`Portals`] judges by a list in memory that is swapped as a whole. Judging takes no lock and
//! allocates nothing. [`Portals::watch`] reads new lists in the background; while the source fails,
//! the list in use stays. This module knows portals and event names only, and sees no request.
//!
//! Judging: `handle.rs` and `judge.rs`; a list in memory is `list.rs`, with `set.rs`, `rules.rs`,
//! `pattern.rs`, `rate.rs` and `quota.rs`. Reading a list: `parse.rs` for all formats, which fills
//! a `draft.rs`. Refreshing: `refresh.rs`, from `source_file.rs` or `source_url.rs`, whose last
//! list `cache.rs` stores.

mod cache;
mod config;
mod document;
mod draft;
mod format;
mod handle;
mod judge;
mod list;
mod look;
mod open_error;
mod parse;
mod parse_toml;
mod pattern;
mod quota;
mod rate;
mod refresh;
mod rules;
mod set;
mod source;
mod source_file;
#[cfg(feature = "http")]
mod source_url;
#[cfg(not(feature = "http"))]
#[path = "source_no_url.rs"]
mod source_url;
mod state;
mod status;
mod summary;
mod terms;

pub use config::{Config, Mode, REFRESH_SECONDS_MAX, ValidConfig};
pub use format::{Format, LIST_BYTES_MAX};
pub use handle::Portals;
pub use judge::{Cause, Policy, PortalDecision, PortalVerdict, RateLimited};
pub use open_error::OpenError;
pub use parse_toml::RULES_BYTES_MAX;
pub use pattern::PATTERN_CHARS_MAX;
pub use quota::AcceptedByDay;
pub use refresh::{RefreshMode, Refreshed};
pub use rules::{QUOTA_MAX, RATE_MAX, RULE_ENTRIES_MAX};
pub use status::{RefreshFailure, Status};
pub use summary::{EXPIRES_SOON_DAYS, Summary};
pub use terms::Bounds;
