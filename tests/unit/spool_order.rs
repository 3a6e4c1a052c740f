//! A reader that keeps the order of portals waits for the lanes of older processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::spool_sim::SimFs;
use crate::spool_sim::rig::{append_all, close, config, open, read};
use pixelgate::custom::Clock;
use pixelgate::internals::spool::{Env, PREDECESSOR_SECONDS_MAX, Spool};

#[test]
fn a_reader_that_keeps_an_order_waits_for_older_lanes_of_other_processes() {
    let fs = SimFs::new(1);
    let old = open(&fs, &config(), &["up", "other"]);
    append_all(&old, &["a", "b"]);
    let killed = fs.process();
    let between = open(&killed, &config(), &["up", "other"]);
    append_all(&between, &["c"]);
    let new = open(&fs, &config(), &["up", "other"]);
    let (mut ordered, mut other) = (new.reader("up").unwrap(), new.reader("other").unwrap());
    ordered.keep_order();
    assert_eq!((read(&mut ordered).0, ordered.waits_for_predecessor()), (vec![], false));
    append_all(&new, &["d"]);
    assert_eq!((read(&mut ordered).0, ordered.waits_for_predecessor()), (vec![], true));
    assert_eq!((read(&mut other).0, other.waits_for_predecessor()), (vec!["d".to_owned()], false));
    fs.kill(&killed);
    new.checkpoint();
    assert_eq!((read(&mut ordered).0, ordered.waits_for_predecessor()), (vec![], true));
    close(&old);
    // Until the lane is taken over, it counts as that of the other process.
    assert_eq!((read(&mut ordered).0, ordered.waits_for_predecessor()), (vec![], true));
    new.checkpoint();
    assert_eq!(read(&mut ordered).0, ["a", "b", "c", "d"]);
    assert!(!ordered.waits_for_predecessor());
}

#[test]
fn a_reader_that_keeps_an_order_waits_no_longer_than_a_predecessor_may_live() {
    let (fs, clock) = (SimFs::new(1), Arc::new(TestClock::default()));
    let old = open(&fs, &config(), &["up"]);
    append_all(&old, &["a"]);
    let env = Env { fs: Arc::new(fs.clone()), clock: clock.clone(), ..Env::system() };
    let new = Spool::open(&config(), &["up".to_owned()], env).expect("opens");
    append_all(&new, &["b"]);
    let mut reader = new.reader("up").expect("configured");
    reader.keep_order();
    clock.set(PREDECESSOR_SECONDS_MAX - 1);
    assert_eq!((read(&mut reader).0, reader.waits_for_predecessor()), (vec![], true));
    clock.set(PREDECESSOR_SECONDS_MAX);
    assert_eq!(read(&mut reader).0, ["b"]);
    assert!(!reader.waits_for_predecessor());
}

/// A clock that stands still until the test sets it.
#[derive(Default)]
struct TestClock(AtomicU64);

impl TestClock {
    fn set(&self, seconds: u64) {
        self.0.store(seconds, Relaxed);
    }
}

impl Clock for TestClock {
    fn unix_ms(&self) -> u64 {
        1_900_000_000_000
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.0.load(Relaxed))
    }
}
