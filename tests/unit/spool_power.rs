//! Cuts of power: what was answered is there afterwards, as `spool.durability` says.
//!
//! Each run is drawn from a seed. Processes append, deliver, trim and follow each other, and the
//! power goes at a call that the seed chooses, in the middle of a write too, several times in one
//! run, so that recoveries are cut as well. What was written since the last sync is then on the
//! platters in any part and any order, sector by sector (`spool_sim`). `make power CUTS=1000` makes
//! so many cuts of each durability and prints a table; without it there are some.
//!
//! - `power` loses no event that was answered.
//! - `interval` loses only events that were answered after the beginning of the last sync that
//!   ended, and syncs begin `spool.sync_ms` apart.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::spool_sim::SimFs;
use crate::spool_sim::calls::{Call, Trap};
use crate::spool_sim::rig::{config, wait};
use pixelgate::internals::spool::{Ack, Config, Durability, Env, Reader, Spool};

/// Cuts of each durability, unless `PIXELGATE_POWER_CUTS` says otherwise.
const CUTS: u64 = 300;
/// Cuts in one run.
const LIVES: u64 = 3;
/// A cut comes at one of this many calls. A run that ends before is cut at its end.
const CALLS_MAX: u64 = 250;
/// Rounds of work of a process before it ends.
const ACTIONS: u64 = 25;

/// An event that was answered 200.
struct Answered {
    text: String,
    life: usize,
    /// Syncs of segments that had begun when the answer was known.
    syncs_begun: u64,
}

/// The results of all runs of one durability.
#[derive(Default)]
struct Table {
    /// Cuts by the call that they met; `None`: between two calls.
    cuts: BTreeMap<String, u64>,
    answered: u64,
    lost: u64,
    /// Sectors that a cut dropped in whole or in part.
    dropped: u64,
}

struct Run {
    disk: SimFs,
    config: Config,
    dice: u64,
    tried: BTreeSet<String>,
    answered: Vec<Answered>,
    delivered: BTreeSet<String>,
    life: usize,
}

struct Process {
    spool: Spool,
    reader: Reader,
}

impl Run {
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }

    fn open(&self) -> Process {
        let env = Env { fs: Arc::new(self.disk.process()), ..Env::system() };
        let spool = Spool::open(&self.config, &["up".to_owned()], env).expect("opens");
        let reader = spool.reader("up").expect("configured");
        Process { spool, reader }
    }

    /// Appends some events at once and waits for their answers.
    fn append(&mut self, process: &Process) {
        let events = 1 + self.roll(5);
        let mut waiting = Vec::new();
        for _ in 0..events {
            let text = format!("{} {}", self.tried.len(), "x".repeat(self.roll(900) as usize));
            self.tried.insert(text.clone());
            let commit = process.spool.append(|out| out.extend_from_slice(text.as_bytes()));
            waiting.extend(commit.ok().map(|commit| (text, commit)));
        }
        for (text, commit) in waiting {
            if wait(commit).is_ok() {
                let syncs_begun = self.disk.syncs_begun();
                self.answered.push(Answered { text, life: self.life, syncs_begun });
            }
        }
    }

    fn deliver(&mut self, process: &mut Process, events_max: usize) {
        for entry in process.reader.try_read(events_max, 1 << 20) {
            let text = String::from_utf8(entry.payload.to_vec()).expect("as written");
            assert!(self.tried.contains(&text), "an invention: {text}");
            self.delivered.insert(text);
            process.reader.acknowledger().acknowledge(&[entry.record_id], Ack::Delivered);
        }
    }

    /// Another process takes over: beside the old one with `power`; else after its end, because
    /// the syncs of two segments would not be in one order. `None` if the power has gone.
    fn follow(&mut self, old: Process) -> Option<Process> {
        let beside = (self.config.durability == Durability::Power).then(|| self.open());
        // An error means that the power has gone.
        _ = old.spool.close(Duration::from_secs(60));
        drop(old);
        let goes_on = self.disk.met().is_none();
        goes_on.then(|| beside.unwrap_or_else(|| self.open()))
    }

    /// Runs until the power goes. Returns the call that it met.
    fn live(&mut self) -> Option<Call> {
        let trap = if self.roll(2) == 0 { Trap::PowerLoss } else { Trap::TornWrite };
        let at = 1 + self.roll(CALLS_MAX);
        self.disk.trap(at, trap);
        let mut process = self.open();
        for _ in 0..ACTIONS {
            match self.roll(20) {
                0..=11 => self.append(&process),
                12..=15 => {
                    let events = 1 + self.roll(20) as usize;
                    self.deliver(&mut process, events);
                }
                16..=18 => process.spool.checkpoint(),
                _ => match self.follow(process) {
                    Some(next) => process = next,
                    None => break,
                },
            }
            if self.disk.met().is_some() {
                break;
            }
        }
        let met = self.disk.met();
        if met.is_none() {
            self.disk.lose_power();
        }
        met
    }
}

fn check(seed: u64, durability: Durability, table: &mut Table) {
    let disk = SimFs::new(seed);
    let config = Config { durability, sync_ms: 1, commit_seconds_max: 60, ..config() };
    let dice = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let (tried, delivered) = (BTreeSet::new(), BTreeSet::new());
    let mut run = Run { disk, config, dice, tried, answered: Vec::new(), delivered, life: 0 };
    let mut ended = Vec::new();
    for life in 0..LIVES as usize {
        run.life = life;
        let met = run.live().map_or("between two calls".to_owned(), |call| format!("{call:?}"));
        *table.cuts.entry(met).or_default() += 1;
        ended.push(run.disk.syncs_ended());
    }
    run.disk.thaw();
    let mut process = run.open();
    for _ in 0..8 {
        run.deliver(&mut process, 1_000);
        process.spool.checkpoint();
    }
    let up = process.spool.status().upstreams.remove(0);
    assert_eq!(up.pending, 0, "seed {seed}: {up:?}");
    assert_eq!(up.accepted, up.delivered + up.lost, "seed {seed}: {up:?}");
    for event in run.answered.iter().filter(|event| !run.delivered.contains(&event.text)) {
        let is_unsynced = event.syncs_begun >= ended[event.life];
        let may_be_lost = durability == Durability::Interval && is_unsynced;
        assert!(
            may_be_lost,
            "seed {seed}: lost in life {}, answered after {} syncs began, {ended:?} ended: {up:?}",
            event.life, event.syncs_begun
        );
        table.lost += 1;
    }
    table.answered += run.answered.len() as u64;
    table.dropped += run.disk.dropped();
}

fn check_all(durability: Durability) {
    let set = std::env::var("PIXELGATE_POWER_CUTS").ok();
    let cuts = set.map_or(CUTS, |cuts| cuts.parse().expect("PIXELGATE_POWER_CUTS is a number"));
    let mut table = Table::default();
    (1..=cuts.div_ceil(LIVES)).for_each(|seed| check(seed, durability, &mut table));
    let Table { cuts, answered, lost, dropped } = table;
    println!(
        "{durability:?}: {} cuts, by the call that the power went at:",
        cuts.values().sum::<u64>()
    );
    cuts.iter().for_each(|(call, count)| println!("  {call:<18} {count:>6}"));
    println!(
        "  {answered} events answered, {lost} lost; {dropped} unsynced sectors dropped or torn"
    );
}

#[test]
fn power_loses_no_answered_event() {
    check_all(Durability::Power);
}

#[test]
fn interval_loses_only_what_was_answered_since_the_last_sync_began() {
    check_all(Durability::Interval);
}
