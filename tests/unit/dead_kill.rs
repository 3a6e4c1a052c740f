//! Dead letters of several real processes at once: two append, one removes, and each is killed with
//! SIGKILL at random moments. Every letter that its process knew to be on disk is in the file, or
//! was one to be removed; a torn line is at most one for each kill and harms no other line.
//!
//! The test starts itself as the processes to be killed. `PIXELGATE_TEST_KILLS` says how often each
//! is (10).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pixelgate::internals::delivery::dead_letters::{
    DEAD_BYTES_MAX, DeadLetters, Filter, Letter, Reason, list, remove,
};
use pixelgate::internals::upstream::Failure;

const FOLDER: &str = "PIXELGATE_TEST_DEAD_FOLDER";
const ROLE: &str = "PIXELGATE_TEST_DEAD_ROLE";
const UPSTREAM: &str = "collector";

/// Every third letter is one that the remover removes.
fn reason(number: u64) -> Reason {
    if number.is_multiple_of(3) { Reason::TooLarge } else { Reason::Rejected }
}

fn to_remove() -> Filter {
    Filter { reason: Some(Reason::TooLarge), ..Filter::default() }
}

/// Only does something in the processes that this test starts. A writer appends letters with
/// numbers from its role on and says which are on disk; the remover removes.
#[test]
fn child() {
    let (Some(dir), Ok(role)) = (std::env::var_os(FOLDER), std::env::var(ROLE)) else { return };
    let dir = PathBuf::from(dir);
    let Ok(first) = role.parse::<u64>() else {
        loop {
            remove(&dir, UPSTREAM, &to_remove()).expect("no other process removes");
            // So that a writer gets the lock.
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let letters = DeadLetters::new(&dir, UPSTREAM, DEAD_BYTES_MAX);
    for number in (first..).step_by(3) {
        let numbers = number..number + 3;
        let letter = |number: u64| {
            let record = format!("{number} {}", "x".repeat((number * 31 % 700) as usize));
            let failure = Failure::new("answered 400");
            Letter::new(UPSTREAM, 1_750_000_000_000, reason(number), &failure, record.as_bytes())
        };
        let some: Vec<Letter> = numbers.clone().map(letter).collect();
        letters.append(&some).expect("there is room");
        let lines: String = numbers.map(|number| format!("safe {number}\n")).collect();
        let mut out = std::io::stdout().lock();
        out.write_all(lines.as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
    }
}

/// Starts a child. What it says to be on disk is added to `safe`.
fn start(dir: &Path, role: &str, safe: &Arc<Mutex<BTreeSet<u64>>>) -> Child {
    let mut child = Command::new(std::env::current_exe().expect("itself"))
        .args(["--exact", "dead_kill::child", "--nocapture", "--test-threads", "1"])
        .env(FOLDER, dir)
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let (lines, safe) = (BufReader::new(child.stdout.take().expect("piped")), Arc::clone(safe));
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            if let Some(number) = line.strip_prefix("safe ") {
                // A killed process may leave a part of a line.
                safe.lock().expect("a test's own lock").extend(number.parse::<u64>());
            }
        }
    });
    child
}

fn number(letter: &Letter) -> u64 {
    let record = letter.record().expect("as written");
    let text = String::from_utf8(record.to_vec()).expect("as written");
    text.split(' ').next().expect("as written").parse().expect("as written")
}

#[test]
fn letters_of_processes_that_are_killed_beside_each_other_are_all_there() {
    let set = std::env::var("PIXELGATE_TEST_KILLS").ok();
    let kills: u64 = set.map_or(10, |kills| kills.parse().expect("a number"));
    let dir = tempfile::tempdir().expect("a folder");
    let safe = Arc::default();
    // Numbers are never used twice: each life of a writer begins with three millions of its own.
    let mut lives = 1_u64..;
    let mut role = |at: usize| match at {
        2 => "remover".to_owned(),
        _ => (lives.next().expect("endless") * 3_000_000).to_string(),
    };
    let mut children: Vec<Child> = (0..3).map(|at| start(dir.path(), &role(at), &safe)).collect();
    let known = || safe.lock().expect("a test's own lock").len();
    for kill in 0..3 * kills {
        let before = known();
        let until = Instant::now() + Duration::from_secs(60);
        while known() < before + 30 {
            assert!(Instant::now() < until, "only {} letters were written", known() - before);
            std::thread::sleep(Duration::from_millis(1));
        }
        let at = (kill % 3) as usize;
        children[at].kill().expect("runs");
        children[at].wait().expect("ends");
        children[at] = start(dir.path(), &role(at), &safe);
    }
    for mut child in children {
        child.kill().expect("runs");
        child.wait().expect("ends");
    }
    let mut there = BTreeSet::new();
    let found = list(dir.path(), UPSTREAM, &Filter::default(), |letter| {
        there.insert(number(letter));
    });
    let found = found.expect("readable");
    assert!(found.damaged <= 2 * kills + 2, "{found:?}");
    let safe = safe.lock().expect("a test's own lock").clone();
    let lost: Vec<u64> = safe
        .iter()
        .copied()
        .filter(|number| reason(*number) == Reason::Rejected && !there.contains(number))
        .collect();
    assert!(lost.is_empty(), "on disk and gone: {lost:?}, of {}", safe.len());
    assert!(remove(dir.path(), UPSTREAM, &to_remove()).is_ok(), "no lock is left behind");
}
