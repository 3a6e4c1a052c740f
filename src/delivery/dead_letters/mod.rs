//! Dead letters: events that an upstream will never take, kept in files for an operator.
//!
//! [`Letter`] is one line of such a file. [`DeadLetters`] appends letters, [`list`] reads them,
//! [`replay`] sends their events again, and [`remove`] gives them up. A [`Filter`] says which.

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
