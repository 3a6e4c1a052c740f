//! Dead letters: events that an upstream will never take, kept in files for an operator.
//!
//! [`Letter`] is one line of such a file. [`DeadLetters`] appends letters, [`list`] reads them,
//! [`replay`] sends their events again, and [`remove`] gives them up. A [`Filter`] says which.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! use pixelgate::custom::Failure;
//! use pixelgate::tools::dead_letters::{
//!     DEAD_BYTES_MAX, DeadLetters, Filter, Letter, Reason, list, remove,
//! };
//!
//! let refused = Failure::answered(422);
//! let letter = Letter::new("collector", 0, Reason::Rejected, &refused, b"the spool's record");
//! DeadLetters::new(dir, "collector", DEAD_BYTES_MAX).append(&[letter])?;
//!
//! let mut rejected = Filter::default();
//! rejected.reason = Some(Reason::Rejected);
//! let summary = list(dir, "collector", &rejected, |letter| println!("{}", letter.detail))?;
//! assert_eq!(summary.letters, 1);
//! assert_eq!(remove(dir, "collector", &rejected)?, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod filter;
mod letter;
mod lines;
mod list;
mod replay;
mod resend;
mod store;

pub use filter::Filter;
pub use letter::{Letter, Reason};
pub use list::{DAMAGED_NAMED_MAX, Place, Summary, list, remove, upstreams};
pub use replay::{Progress, replay};
pub use resend::ATTEMPTS_MAX;
pub(super) use resend::{Notes, Resender};
pub use store::{DEAD_BYTES_MAX, DeadError, DeadLetters};
