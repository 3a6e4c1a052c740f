//! Reading: from records on disk to an upstream, and what it has acknowledged.

pub(super) mod cursor;
pub(super) mod ledger;
pub(super) mod reader;
pub(super) mod scanner;
