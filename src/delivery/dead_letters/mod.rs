//! Dead letters: events that an upstream will never take, kept in files for an operator.
//!
//! [`Letter`] is one line of such a file, [`DeadLetters`] appends letters, [`list`] reads them, and
//! [`replay`] sends their events again.

mod letter;
mod replay;
mod store;

pub use letter::{Letter, Reason};
pub use replay::{ATTEMPTS_MAX, Progress, Summary, list, replay};
pub use store::{DEAD_BYTES_MAX, DeadError, DeadLetters};
