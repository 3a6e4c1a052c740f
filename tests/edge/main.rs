//! End-to-end tests of the binary, with nginx as the origin and a backend that fails on demand.
//!
//! All are one test binary, because each test binary links all of Pingora.

mod access_log;
mod admin;
mod answers;
mod authorities;
mod bodies;
mod broken_answers;
mod clients;
mod commands;
mod connections;
mod corpus;
mod crash;
mod dead;
mod delivery;
mod discretion;
mod disk;
mod disk_damage;
mod disk_faults;
mod disk_missing;
mod disk_start;
mod documented;
mod duplex;
mod embed;
mod embed_calls;
mod fidelity;
mod first_list;
mod h2;
mod harness;
mod hidden;
mod hot;
mod hot_effects;
mod http;
mod hubspot;
mod in_flight;
mod interim;
mod legacy;
mod logs;
mod metering;
mod nginx;
mod order;
mod origins;
#[cfg(feature = "otlp")]
mod otlp;
mod outbound;
mod packaging;
mod page;
mod passthrough;
mod paths;
mod policy;
mod previous_version;
mod privacy;
mod quota;
mod receiver;
mod reload;
mod removed;
mod routes;
mod run_ahead;
mod schema;
mod send;
mod sizing;
mod soak;
mod stalled;
mod start_errors;
mod start_times;
mod stop;
mod systemd;
mod terminal;
mod tls;
mod tls_client;
mod tls_names;
mod tls_origin;
mod tls_scan;
mod trailers;
mod upgrade;
mod ways;
mod webdriver;
mod wire;

#[path = "../support/backend.rs"]
mod backend;
#[path = "../support/hubspot.rs"]
mod crm;
