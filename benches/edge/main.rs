//! The edge next to nginx: the same load, on the same core, in turn, several rounds.
//!
//! ```text
//! cargo bench --bench edge                # every scenario
//! cargo bench --bench edge -- kept        # those whose name contains a word
//! PIXELGATE_BENCH_ROUNDS=9 cargo bench --bench edge
//! ```
//!
//! Each server is pinned to the first core and the load to the second. CPU is the server's own,
//! read from `/proc`; the load generator's never counts. Every response is checked: a benchmark
//! of wrong answers measures nothing. nginx answers `empty_gif` with a JSON access log buffered
//! by 64 KiB: no validation, no allowlist, no durability; that is the yardstick all the same.

mod load;
mod peers;

use load::{Load, Sample};
use peers::Server;
use std::time::Duration;

/// How long one round loads one server.
const ROUND: Duration = Duration::from_millis(1500);

struct Scenario {
    name: &'static str,
    /// Starts the edge, and what it is compared with.
    servers: fn() -> Vec<Server>,
    load: fn(&Server) -> Load,
}

const QUERY: &str = "_a=62515&_n=000000001625&email=person@company.com&_m=20.5&id=ext-77\
    &favorite_color=orange&lifecycle=customer&t=1763866713123";

fn event(_: &Server) -> Load {
    Load::new(&format!("/v1/event/?{QUERY}"), 200)
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "64 kept connections, an event each",
        servers: || {
            vec![
                peers::nginx(),
                peers::edge("power", "durability = \"power\"", None),
                peers::edge("interval", "durability = \"interval\"", None),
                peers::edge("memory", "durability = \"memory\"", None),
            ]
        },
        load: event,
    },
    Scenario {
        name: "64 kept connections, rejected events",
        servers: || vec![peers::nginx(), peers::edge("rejects", "", None)],
        load: |server| {
            let status = if server.is_edge { 403 } else { 200 };
            Load::new(&format!("/v1/event/?_a=1&{}", &QUERY[9..]), status)
        },
    },
    Scenario {
        name: "a new connection for each event",
        servers: || vec![peers::nginx(), peers::edge("power", "", None)],
        load: |server| Load { reconnect: true, ..event(server) },
    },
    Scenario {
        name: "pass-through of 1 KB kept connections",
        servers: || {
            let origin = peers::origin();
            let at = origin.address;
            vec![peers::nginx_proxy(at), peers::edge("proxy", "", Some(origin))]
        },
        load: |_| Load::new("/1k", 200),
    },
    Scenario {
        name: "pass-through of 100 KB kept connections",
        servers: || {
            let origin = peers::origin();
            let at = origin.address;
            vec![peers::nginx_proxy(at), peers::edge("proxy", "", Some(origin))]
        },
        load: |_| Load::new("/100k", 200),
    },
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let rounds = std::env::var("PIXELGATE_BENCH_ROUNDS").ok().and_then(|r| r.parse().ok());
    let rounds: usize = rounds.unwrap_or(5);
    println!("CPU is the server's, in microseconds a request; medians of {rounds} rounds.");
    for scenario in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|word| scenario.name.contains(word.as_str())) {
            compare(scenario, rounds);
        }
    }
    if wanted.is_empty() || wanted.iter().any(|word| "idle".contains(word.as_str())) {
        idle();
    }
}

fn compare(scenario: &Scenario, rounds: usize) {
    let servers = (scenario.servers)();
    let mut samples: Vec<Vec<Sample>> = servers.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        for (server, samples) in servers.iter().zip(&mut samples) {
            let sample = (scenario.load)(server).run(server, ROUND);
            // The first round warms up.
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    println!("\n{}", scenario.name);
    println!(
        "{:<28} {:>10} {:>8} {:>7} {:>9} {:>9} {:>9} {:>9}",
        "", "requests/s", "CPU us", "ratio", "p50 us", "p99 us", "p999 us", "peak MiB"
    );
    let yardstick = samples[0].clone();
    for (server, samples) in servers.iter().zip(&samples) {
        let median = |value: fn(&Sample) -> f64| load::median(samples.iter().map(value));
        let ratios = samples.iter().zip(&yardstick).map(|(a, b)| a.cpu_us / b.cpu_us);
        println!(
            "{:<28} {:>10.0} {:>8.2} {:>7.2} {:>9.0} {:>9.0} {:>9.0} {:>9.1}",
            server.name,
            median(|s| s.per_second),
            median(|s| s.cpu_us),
            load::median(ratios),
            median(|s| s.p50_us),
            median(|s| s.p99_us),
            median(|s| s.p999_us),
            server.peak_mib(),
        );
    }
}

/// What a connection costs that does nothing.
fn idle() {
    println!("\n10,000 idle connections");
    println!("{:<28} {:>12} {:>20}", "", "at rest MiB", "KiB a connection");
    for server in [peers::nginx(), peers::edge("power", "", None)] {
        // Once through every path, so that what is made once is made before we look.
        event(&server).run(&server, Duration::from_millis(300));
        let before = server.resident_kib();
        let held = load::hold(&server, 10_000);
        let after = server.resident_kib();
        let each = (after - before) / held.len() as f64;
        println!("{:<28} {:>12.1} {:>20.2}", server.name, before / 1024.0, each);
    }
}
