//! What an operator does while no process runs: configures other upstreams, and sends dead letters
//! again.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use pixelgate::internals::delivery::dead_letters::{self, Filter, Letter};
use pixelgate::internals::upstream::{Batch, Failure, Outcome, Upstream};
use tokio::sync::watch;
use tokio::time::sleep;

use super::script::Random;
use super::upstream::number_of;
use super::{NAMES, World};

/// How many letters each event has.
type Letters = BTreeMap<u64, u32>;

/// A mended upstream, to which dead letters are sent. It takes most of them.
struct Mended {
    random: Mutex<Random>,
    /// What it has taken and answered.
    answered: Mutex<Letters>,
}

#[async_trait]
impl Upstream for Mended {
    fn kind(&self) -> &'static str {
        "mended"
    }

    async fn send(&self, batch: &Batch) -> Outcome {
        let (takes, refuses) = {
            let mut random = self.random.lock();
            (Duration::from_millis(1 + random.below(300)), random.once_in(8))
        };
        sleep(takes).await;
        if refuses {
            return Outcome::Rejected(Failure::answered(400));
        }
        let mut answered = self.answered.lock();
        for record in batch.records() {
            *answered.entry(number_of(record)).or_default() += 1;
        }
        Outcome::Delivered
    }
}

impl World {
    /// The letters of an upstream.
    fn letters(&mut self, at: usize) -> Letters {
        let mut letters = Letters::new();
        let note = |letter: &Letter| {
            let event = number_of(&letter.record().expect("as written"));
            *letters.entry(event).or_default() += 1;
        };
        dead_letters::list(&self.letters_dir(), NAMES[at], &Filter::default(), note).expect("list");
        self.dead[at].extend(letters.keys());
        letters
    }

    /// Replays an upstream's dead letters, and kills or stops the replay at some moment. No letter
    /// is left of an event that was delivered, and each other one is.
    pub async fn replay(&mut self, at: usize) {
        let mut left = self.letters(at);
        if self.random.once_in(2) {
            self.cut_last_line_feed(at);
        }
        let mended =
            Mended { random: Mutex::new(Random(self.random.next())), answered: Mutex::default() };
        let (stop, stopped) = watch::channel(false);
        let (dir, all) = (self.letters_dir(), Filter::default());
        let ends_after = Duration::from_millis(self.random.below(3_000));
        let is_killed = self.random.once_in(2);
        {
            let replay =
                dead_letters::replay(&dir, NAMES[at], &mended, &self.batch, &all, stopped, |_| ());
            tokio::pin!(replay);
            tokio::select! {
                replayed = &mut replay => {
                    replayed.expect("alone");
                }
                () = sleep(ends_after) => if !is_killed {
                    stop.send_replace(true);
                    replay.await.expect("alone");
                },
            }
        }
        for (event, times) in mended.answered.into_inner() {
            let letters = left.entry(event).or_default();
            assert!(*letters >= times, "event {event} was replayed {times} times");
            *letters -= times;
        }
        left.retain(|_, letters| *letters > 0);
        assert_eq!(self.letters(at), left, "letters after the replay");
    }

    /// An editor leaves the file without a last line feed.
    fn cut_last_line_feed(&self, at: usize) {
        let path = self.letters_dir().join(format!("{}.ndjson", NAMES[at]));
        let Ok(text) = fs::read(&path) else { return };
        let text = text.strip_suffix(b"\n").unwrap_or(&text);
        let file = OpenOptions::new().write(true).open(&path).expect("writable");
        file.set_len(text.len() as u64).expect("writable");
    }

    /// Removes the second upstream from the configuration, or configures it again.
    pub fn configure_other(&mut self) {
        let is_configured = &mut self.is_configured[1];
        *is_configured = !*is_configured;
    }

    /// A removed upstream for which events wait is named.
    pub fn check_removed(&self) {
        let process = self.process.as_ref().expect("runs");
        for (at, name) in NAMES.iter().enumerate().filter(|(at, _)| !self.is_configured[*at]) {
            let waiting = self.pending_at_stop[at];
            let faults = process.faults.list();
            let is_named = faults.iter().any(|fault| {
                fault.what.as_str() == "upstream_removed"
                    && fault.subject == *name
                    && fault.text.starts_with(&format!("{waiting} event"))
            });
            assert_eq!(is_named, waiting > 0, "{waiting} events wait for {name}: {faults:?}");
        }
    }
}
