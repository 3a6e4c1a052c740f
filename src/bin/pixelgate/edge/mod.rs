//! The HTTP edge: listeners and origins around the gate. It uses only the public interface of the
//! library, so another host could do the same.

pub mod config;
pub mod origin_ca;
pub mod server;
pub mod tls;

mod admin;
pub mod error;
pub mod file_limit;
mod foreign_signals;
mod forwarded;
pub mod handover;
pub mod huge_pages;
pub mod listen;
pub mod metrics_export;
mod origin;
mod origin_set;
pub mod origin_url;
mod own_answers;
mod pem;
mod proxy;
mod reload;
mod response;
mod routing_headers;
pub mod running;
mod sockets;
pub mod stop;
mod systemd;
mod trailers;
mod upgrade;
pub mod upgrade_socket;
mod within;
