//! Delivery to brokers: Kafka's own mock cluster, a Kafka broker of another make, and nats-server.

mod kafka;
mod nats;
mod other_make;
mod two_edges;

#[path = "../support/authority.rs"]
mod authority;
#[path = "../support/kafka.rs"]
mod cluster;
#[path = "../support/delivery.rs"]
mod delivery;
#[allow(dead_code, reason = "these tests need a part of it")]
#[path = "../edge/harness.rs"]
mod harness;
#[allow(dead_code, reason = "these tests need a part of it")]
#[path = "../edge/http.rs"]
mod http;
#[path = "../support/nats.rs"]
mod nats_server;
