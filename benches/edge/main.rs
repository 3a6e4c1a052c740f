//! The edge next to nginx: the same load, on the same core, in turn, several rounds.
//!
//! ```text
//! cargo bench --bench edge                              # every scenario
//! cargo bench --bench edge -- idle tls                  # those whose name has one of the words
//! cargo bench --bench edge -- power                     # or whose contender's name has it
//! PIXELGATE_BENCH_SECONDS=1 cargo bench --bench edge    # a smoke test: the figures are rough
//! PIXELGATE_BENCH_BINARY=/usr/bin/pixelgate cargo bench --bench edge    # another build
//! ```
//!
//! Servers are pinned to the first core, the load and the origin behind a proxy to the second. CPU
//! is that of the server's processes; the load's never counts. pixelgate's CPU holds all that an
//! event costs: it is measured until the last one is delivered, into files. The yardstick is nginx,
//! which answers `empty_gif` and writes a JSON access log in pieces of 64 KiB, without validation,
//! allowlist or durability. pixelgate writes an access log in the rows that say so. A bare epoll
//! loop that answers every request alike shows what the kernel alone costs.
//!
//! Every answer's status and length are checked, and in the end the records are counted: one line
//! in nginx's log, or one delivered event, for each answer.
//!
//! Instructions are those in user space, counted by `valgrind --tool=callgrind` where it is
//! installed: each server runs under it for two numbers of requests, and the difference is theirs.
//! They hardly move with what else the machine does; times do. A long copy counts one for each
//! byte, though it takes no such time; and OpenSSL takes slower ways there, because valgrind knows
//! not all of the machine's instructions: ratios of TLS flatter us.

mod bare;
mod client;
mod edge;
mod floor;
mod instructions;
mod load;
mod nginx;
mod process;
mod scenario;
mod server;
mod table;
mod tls;
mod workload;

use load::{Sample, Until};
use process::Mode;
use scenario::{Contender, SCENARIOS, Scenario};
use std::time::Duration;

/// How often each server is loaded in each scenario. A figure is the median of the rounds.
const ROUNDS: usize = 5;
/// Seconds of load on each server in each scenario, all rounds together, unless
/// `PIXELGATE_BENCH_SECONDS` says otherwise.
const SECONDS: f64 = 5.0;
/// Load before the first round, so that the rounds do not measure what is made once.
const WARM_UP: Duration = Duration::from_millis(300);
/// Connections that warm up a server.
const WARM_UP_CONNECTIONS: usize = 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, address] = &arguments[..]
        && flag == floor::FLAG
    {
        return floor::serve(address.parse().expect("an address"));
    }
    if let [flag, address, origin] = &arguments[..]
        && flag == bare::FLAG
    {
        let parsed = |text: &String| text.parse().expect("an address");
        return bare::serve(parsed(address), parsed(origin));
    }
    if !arguments.iter().any(|argument| argument == "--bench") {
        return println!("`cargo bench --bench edge` measures");
    }
    let seconds = std::env::var("PIXELGATE_BENCH_SECONDS").ok();
    let seconds = seconds.map_or(SECONDS, |s| s.parse().expect("PIXELGATE_BENCH_SECONDS: seconds"));
    let round = Duration::from_secs_f64(seconds / ROUNDS as f64);
    process::prepare();
    let words = arguments.iter().filter(|word| !word.starts_with('-'));
    let words: Vec<String> = words.map(|word| word.to_lowercase()).collect();
    for scenario in SCENARIOS {
        let contenders = wanted(scenario, &words);
        if !contenders.is_empty() {
            compare(scenario, &contenders, round);
        }
    }
}

/// The contenders to run: all if a word names the scenario or no word is given; else those that a
/// word names, and nginx. None if no word fits.
fn wanted(scenario: &'static Scenario, words: &[String]) -> Vec<&'static Contender> {
    let meant = |name: &str| words.iter().any(|word| name.to_lowercase().contains(word));
    let all = scenario.contenders.iter();
    if words.is_empty() || meant(scenario.name) {
        return all.collect();
    }
    if !scenario.contenders.iter().any(|contender| meant(contender.name)) {
        return Vec::new();
    }
    all.filter(|contender| meant(contender.name) || contender.is_nginx()).collect()
}

/// Loads all in turn, and prints their table.
fn compare(scenario: &Scenario, contenders: &[&Contender], round: Duration) {
    let mut rows = Vec::new();
    for contender in contenders {
        let mut server = (contender.start)(Mode::Pinned);
        let mut workload = (scenario.workload)(&server);
        workload.connections = workload.connections.min(WARM_UP_CONNECTIONS);
        load::run(&workload, &mut server, Until::Over(WARM_UP));
        rows.push((server, Vec::<Sample>::new()));
    }
    for _ in 0..ROUNDS {
        for (server, samples) in &mut rows {
            let workload = (scenario.workload)(server);
            samples.push(load::run(&workload, server, Until::Over(round)));
        }
    }
    let mut results = Vec::new();
    for (contender, (server, samples)) in contenders.iter().zip(rows) {
        let peak_mib = server.peak_mib();
        server.stop();
        let instructions = instructions::per_request(scenario, contender);
        results.push(table::Row { contender, samples, instructions, peak_mib });
    }
    table::print(scenario.name, &results);
}
