//! Instructions in user space that a request costs, counted by callgrind.

use crate::load::{self, Until};
use crate::process::{COUNTS, Mode};
use crate::scenario::{Contender, Scenario};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// Requests of the shorter run. Both runs begin with them, so the difference between the runs holds
/// nothing that happens only at a start.
const BEFORE: u64 = 200;

static INSTALLED: LazyLock<bool> = LazyLock::new(|| {
    let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("valgrind is not installed: no instructions are counted");
    }
    found
});

/// Instructions per request: the difference between two runs. `None` without valgrind, and where
/// the scenario counts none.
pub fn per_request(scenario: &Scenario, contender: &Contender) -> Option<f64> {
    if scenario.counted == 0 || !*INSTALLED {
        return None;
    }
    // Both runs at once: the number of instructions does not depend on time.
    let [less, more] = std::thread::scope(|scope| {
        [BEFORE, BEFORE + scenario.counted]
            .map(|requests| scope.spawn(move || count(scenario, contender, requests)))
            .map(|run| run.join().expect("the answers are right"))
    });
    Some((more - less) / scenario.counted as f64)
}

fn count(scenario: &Scenario, contender: &Contender, requests: u64) -> f64 {
    let mut server = (contender.start)(Mode::Counted);
    let workload = (scenario.workload)(&server);
    load::run(&workload, &mut server, Until::Answered(requests));
    let report = std::fs::read_to_string(server.stop().path().join(COUNTS)).expect("a report");
    let line = report.lines().find(|line| line.contains("Collected :"));
    let count = line.and_then(|line| line.split_whitespace().last());
    count.and_then(|count| count.parse().ok()).expect("callgrind says what it has collected")
}
