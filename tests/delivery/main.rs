//! Delivery from the spool to backends of each kind that needs no broker.

mod beside;
mod dead;
mod file;
mod flow;
mod hanging;
mod http;
mod hubspot;
mod hubspot_ties;
mod islands;
mod legacy;
mod resend;
mod timed;
mod tls;

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/backend.rs"]
mod backend;
#[path = "../support/hubspot.rs"]
mod crm;
#[path = "../support/delivery.rs"]
mod delivery;
