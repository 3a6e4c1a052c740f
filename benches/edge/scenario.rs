//! The scenarios: which workload runs against which servers.

use crate::process::{self, Mode};
use crate::server::{Kind, Server};
use crate::workload::{Transport, Workload};
use crate::{bare, edge, floor, nginx};

/// One workload and the servers that are compared under it.
pub struct Scenario {
    pub name: &'static str,
    pub contenders: &'static [Contender],
    pub workload: fn(&Server) -> Workload,
    /// Requests over which instructions are counted; 0: another scenario counts them.
    pub counted: u64,
}

/// A server that is compared.
pub struct Contender {
    pub name: &'static str,
    pub start: fn(Mode) -> Server,
}

impl Contender {
    /// Whether it is the yardstick.
    pub fn is_nginx(&self) -> bool {
        self.name.starts_with("nginx")
    }
}

/// An event as a shop sends it: two reserved parameters of each kind, two properties, and a
/// cache-buster.
const EVENT: &str = "/v1/event/?_a=62515&_n=000000001625&email=person@company.com&_m=20.5\
    &id=ext-77&favorite_color=orange&lifecycle=customer&t=1763866713123";
/// The same event of a portal that is not in the list.
const REFUSED: &str = "/v1/event/?_a=1&_n=000000001625&email=person@company.com&_m=20.5\
    &id=ext-77&favorite_color=orange&lifecycle=customer&t=1763866713123";
/// nginx's `empty_gif` and our pixel.
const PIXEL_BYTES: usize = 43;
/// Requests a second of the loads whose pace is set. Well below what one core does.
const PACE: u32 = 10_000;
/// Connections of the scenario in which most have nothing to say, and how many of them ask in
/// a second.
const IDLE_CONNECTIONS: usize = 10_000;
const IDLE_PACE: u32 = 2_000;

const FLOOR: Contender = Contender { name: "bare epoll loop", start: floor::start };
const NGINX: Contender = Contender { name: "nginx, `empty_gif` and log", start: nginx::events };
const NGINX_TLS: Contender = Contender { start: nginx::events_tls, ..NGINX };
const MEMORY: Contender =
    Contender { name: "pixelgate, `memory`", start: |mode| edge::events(mode, "memory") };
const INTERVAL: Contender =
    Contender { name: "pixelgate, `interval`", start: |mode| edge::events(mode, "interval") };
const POWER: Contender =
    Contender { name: "pixelgate, `power`", start: |mode| edge::events(mode, "power") };
const MEMORY_LOG: Contender = Contender {
    name: "pixelgate, `memory` and access log",
    start: |mode| edge::logged_events(mode, "memory"),
};
const POWER_LOG: Contender = Contender {
    name: "pixelgate, `power` and access log",
    start: |mode| edge::logged_events(mode, "power"),
};
const MEMORY_TLS: Contender = Contender { start: |mode| edge::tls(mode, "memory"), ..MEMORY };
const POWER_TLS: Contender = Contender { start: |mode| edge::tls(mode, "power"), ..POWER };
const PASSAGE: &[Contender] = &[
    Contender { name: "nginx, `proxy_pass` and log", start: nginx::proxy },
    Contender { name: "bare Pingora", start: bare::proxy },
    Contender { name: "pixelgate", start: edge::proxy },
    Contender { name: "pixelgate and access log", start: edge::logged_proxy },
];

/// All scenarios, in the order of the report.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "events, 64 persistent connections",
        contenders: &[FLOOR, NGINX, MEMORY, MEMORY_LOG, INTERVAL, POWER, POWER_LOG],
        workload: |_| event(Transport::Persistent),
        counted: 1000,
    },
    Scenario {
        name: "events, 256 persistent connections",
        contenders: &[NGINX, POWER],
        workload: |_| Workload { connections: 256, ..event(Transport::Persistent) },
        counted: 0,
    },
    Scenario {
        name: "events, 10,000 a second over 64 persistent connections",
        contenders: &[FLOOR, NGINX, MEMORY, INTERVAL, POWER],
        workload: |_| Workload { pace: Some(PACE), ..event(Transport::Persistent) },
        counted: 0,
    },
    Scenario {
        name: "rejected events, 64 persistent connections",
        contenders: &[NGINX, MEMORY],
        workload: |server| match server.kind {
            Kind::Edge => Workload {
                status: 403,
                ..Workload::new(Transport::Persistent, REFUSED, PIXEL_BYTES)
            },
            _ => Workload::new(Transport::Persistent, REFUSED, PIXEL_BYTES),
        },
        counted: 1000,
    },
    Scenario {
        name: "events, a new connection each",
        contenders: &[FLOOR, NGINX, MEMORY, POWER],
        workload: |_| event(Transport::New),
        counted: 1000,
    },
    Scenario {
        name: "events, a new connection each, `Connection: close`",
        contenders: &[FLOOR, NGINX, MEMORY],
        workload: |_| event(Transport::Close),
        counted: 1000,
    },
    Scenario {
        name: "events, 2,000 a second over 10,000 mostly idle connections",
        contenders: &[NGINX, POWER],
        workload: |_| Workload {
            pace: Some(IDLE_PACE),
            connections: process::connections(IDLE_CONNECTIONS),
            ..event(Transport::Persistent)
        },
        counted: 0,
    },
    Scenario {
        name: "events, HTTP/2 over TLS, 100 streams",
        contenders: &[NGINX_TLS, MEMORY_TLS, POWER_TLS],
        workload: |_| Workload { connections: 100, ..event(Transport::Streams) },
        counted: 1000,
    },
    Scenario {
        name: "events, a full TLS 1.3 handshake each",
        contenders: &[NGINX_TLS, MEMORY_TLS, POWER_TLS],
        workload: |_| event(Transport::Handshake),
        counted: 100,
    },
    Scenario {
        name: "pass-through of 1 KB, 64 persistent connections",
        contenders: PASSAGE,
        workload: |_| Workload::new(Transport::Persistent, "/1k", nginx::SMALL_BYTES),
        counted: 1000,
    },
    Scenario {
        name: "pass-through of 100 KB, 64 persistent connections",
        contenders: PASSAGE,
        workload: |_| Workload::new(Transport::Persistent, "/100k", nginx::LARGE_BYTES),
        counted: 200,
    },
];

fn event(transport: Transport) -> Workload {
    Workload::new(transport, EVENT, PIXEL_BYTES)
}
