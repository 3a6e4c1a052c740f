//! The commands of the binary (SPEC 8).

mod args;
mod check;
mod dead;
mod exit;
mod explain;
mod help;
mod pages;
mod probe;
mod resend;
mod run;
mod send;
mod spool;
mod terminal;

pub use args::Cli;
pub use run::run;
