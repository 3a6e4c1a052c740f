//! The model's world: a disk, the process that serves on it, and what callers were answered.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::spool_sim::{Fault, Op, SimFs};
use bytesize::ByteSize;
use pixelgate::internals::spool::{
    Ack, Commit, Config, Durability, Entry, Env, Metered, Metering, Overloaded, Reader, RecordId,
    Routing, Spool,
};

const UPSTREAMS: [&str; 2] = ["near", "far"];
const PORTALS: u64 = 3;
const ROOT: &str = "/spool";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Yes,
    No,
}

#[derive(Debug)]
struct Event {
    told: Told,
    /// Power was lost, or the process killed, since it was appended.
    crashed: bool,
    /// The durability does not promise it any more.
    forgiven: bool,
    /// The route that it was accepted with.
    route: u8,
}

/// One process with its spool, and what it has done with it.
struct Process {
    fs: SimFs,
    spool: Spool,
    readers: Vec<Reader>,
    waiting: Vec<(u64, Commit)>,
    out: [Vec<Entry>; 2],
    handed: [BTreeSet<RecordId>; 2],
    // The last event read, per lane: order holds within a lane.
    last: [BTreeMap<String, u64>; 2],
}

pub struct World {
    config: Config,
    disk: SimFs,
    now: Process,
    events: BTreeMap<u64, Event>,
    /// Acknowledged by each upstream.
    acknowledged: [BTreeSet<u64>; 2],
    next: u64,
    /// The route of events that are accepted now.
    pub route: u8,
    /// Acknowledged since the last power loss while nothing failed: these never come again.
    ended: [BTreeSet<u64>; 2],
    /// Something may fail.
    is_faulty: bool,
    /// Something failed at some time: then a power loss may cost a cursor.
    was_faulty: bool,
    since_ms: Option<u64>,
    /// Damage that a power loss may do to records that no caller was promised.
    may_lose: bool,
}

fn open(disk: &SimFs, config: &Config) -> Option<Process> {
    let fs = disk.process();
    let routing = Routing {
        is_routed: |record| record[ROUTE_AT] != 0,
        names: |record, upstream| goes_to(record[ROUTE_AT], upstream),
    };
    let metering = Metering { read: |r| Some(Metered { portal: portal(number(r)), day: 1 }) };
    let env = Env { fs: Arc::new(fs.clone()), routing, metering, ..Env::system() };
    let names = UPSTREAMS.map(str::to_owned);
    let spool = Spool::open(config, &names, env).ok()?;
    let readers = UPSTREAMS.map(|name| spool.reader(name).expect("configured")).into();
    Some(Process {
        fs,
        spool,
        readers,
        waiting: Vec::new(),
        out: Default::default(),
        handed: Default::default(),
        last: Default::default(),
    })
}

fn portal(event: u64) -> u64 {
    1 + event % PORTALS
}

/// Where a record has its route.
const ROUTE_AT: usize = 8;

/// Whether a route leads to an upstream.
fn goes_to(route: u8, upstream: &str) -> bool {
    match route {
        0 => true,
        1 => upstream == UPSTREAMS[0],
        2 => upstream == UPSTREAMS[1],
        _ => false,
    }
}

/// Events carry their number, their route, and a length that follows from the number.
fn payload(event: u64, route: u8) -> Vec<u8> {
    let mut bytes = event.to_le_bytes().to_vec();
    bytes.push(route);
    bytes.extend((0..event * 37 % 301).map(|at| (at ^ event) as u8));
    bytes
}

fn number(payload: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&payload[..8]);
    u64::from_le_bytes(word)
}

/// Waits in this thread, and not in its runtime if it has one.
pub fn wait(mut commit: Commit) -> Result<(), Overloaded> {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match Pin::new(&mut commit).poll(&mut context) {
            Poll::Ready(outcome) => return outcome,
            Poll::Pending => std::thread::park(),
        }
    }
}

impl World {
    pub fn new(durability: Durability, seed: u64) -> World {
        let config = Config {
            dir: ROOT.into(),
            durability,
            linger_ms: 0,
            sync_ms: 1,
            segment_bytes: ByteSize::kib(4),
            bytes_max: ByteSize::mib(16),
            ..Config::default()
        };
        let disk = SimFs::new(seed);
        let now = open(&disk, &config).expect("a new disk serves");
        let since_ms = now.spool.portals_since_ms();
        World {
            was_faulty: false,
            since_ms,
            config,
            disk,
            now,
            events: BTreeMap::new(),
            acknowledged: Default::default(),
            ended: Default::default(),
            is_faulty: false,
            next: 1,
            route: 0,
            may_lose: false,
        }
    }

    pub fn checkpoint(&self) {
        self.now.spool.checkpoint();
    }

    pub fn fail(&mut self, op: Op, after: u32, times: u32, part: u8) {
        let errno = if part.is_multiple_of(2) { 5 } else { 28 };
        (self.is_faulty, self.was_faulty) = (true, true);
        self.disk.fault(Fault { op, after, times, errno, part });
    }

    pub fn fill(&mut self, full: bool) {
        (self.is_faulty, self.was_faulty) = (self.is_faulty | full, true);
        self.disk.set_full(full);
    }

    pub fn heal(&mut self) {
        self.is_faulty = false;
        self.disk.heal();
    }

    pub fn append(&mut self) {
        let (event, route) = (self.next, self.route);
        self.next += 1;
        let bytes = payload(event, route);
        if let Ok(commit) = self.now.spool.append(|out| out.extend_from_slice(&bytes)) {
            let told = match self.config.durability {
                Durability::Memory => Told::Yes,
                _ => Told::Nothing,
            };
            self.events.insert(event, Event { told, crashed: false, forgiven: false, route });
            self.now.waiting.push((event, commit));
        }
    }

    pub fn settle(&mut self) {
        for (event, commit) in std::mem::take(&mut self.now.waiting) {
            let told = if wait(commit).is_ok() { Told::Yes } else { Told::No };
            self.events.get_mut(&event).expect("appended").told = told;
        }
    }

    pub fn read(&mut self, upstream: usize, events_max: usize) -> usize {
        let entries = self.now.readers[upstream].try_read(events_max, 4_000);
        assert!(entries.len() <= events_max);
        for entry in &entries {
            let event = number(&entry.payload);
            let known = self.events.get(&event).expect("an invention");
            assert_eq!(entry.payload[..], payload(event, known.route)[..], "an invention");
            assert!(goes_to(known.route, UPSTREAMS[upstream]), "event {event} is misdirected");
            assert!(known.told != Told::No || known.crashed, "refused event {event} is delivered");
            assert!(!self.ended[upstream].contains(&event), "event {event} comes again");
            assert!(self.now.handed[upstream].insert(entry.record_id), "handed out twice");
            let lane = entry.record_id.to_string();
            let lane = lane.split('/').next().unwrap_or_default().to_owned();
            let before = self.now.last[upstream].insert(lane, event).unwrap_or(0);
            assert!(before < event, "event {event} after {before}");
        }
        let count = entries.len();
        self.now.out[upstream].extend(entries);
        count
    }

    pub fn acknowledge(&mut self, upstream: usize, from: usize, step: usize) {
        let out = &mut self.now.out[upstream];
        if out.is_empty() {
            return;
        }
        let from = from % out.len();
        let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(out)
            .into_iter()
            .enumerate()
            .partition(|(at, _)| *at >= from && (at - from).is_multiple_of(step));
        *out = left.into_iter().map(|(_, entry)| entry).collect();
        let record_ids: Vec<RecordId> = taken.iter().map(|(_, entry)| entry.record_id).collect();
        let ack = if step == 3 { Ack::Dead } else { Ack::Delivered };
        self.now.readers[upstream].acknowledger().acknowledge(&record_ids, ack);
        let events = taken.iter().map(|(_, entry)| number(&entry.payload));
        if !self.is_faulty {
            self.ended[upstream].extend(events.clone());
        }
        self.acknowledged[upstream].extend(events);
    }

    fn crashed(&mut self, power: bool) {
        for event in self.events.values_mut() {
            event.crashed = true;
            event.forgiven |= match self.config.durability {
                Durability::Power => false,
                Durability::Interval => power,
                Durability::Memory => true,
            };
        }
        self.may_lose |= power;
    }

    fn reopen(&mut self) {
        let next = open(&self.disk, &self.config).unwrap_or_else(|| {
            // A disk that fails may refuse a start; one that works may not.
            self.heal();
            open(&self.disk, &self.config).expect("a healthy disk serves")
        });
        self.now = next;
    }

    pub fn kill(&mut self) {
        self.disk.kill(&self.now.fs);
        self.crashed(false);
        self.reopen();
    }

    pub fn lose_power(&mut self) {
        self.disk.lose_power();
        self.ended = Default::default();
        self.crashed(true);
        self.reopen();
    }

    pub fn restart(&mut self) {
        // A graceful stop keeps its promises on a disk that works.
        self.heal();
        self.settle();
        self.now.spool.close(Duration::from_secs(60)).expect("closes");
        self.reopen();
    }

    pub fn upgrade(&mut self, graceful: bool) {
        let Some(next) = open(&self.disk, &self.config) else { return };
        let old = std::mem::replace(&mut self.now, next);
        if graceful {
            self.heal();
            for (event, commit) in old.waiting {
                let told = if wait(commit).is_ok() { Told::Yes } else { Told::No };
                self.events.get_mut(&event).expect("appended").told = told;
            }
            old.spool.close(Duration::from_secs(60)).expect("closes");
        } else {
            self.disk.kill(&old.fs);
            self.crashed(false);
        }
        drop((old.readers, old.spool));
        self.now.spool.checkpoint();
    }

    pub fn identity_holds(&self) {
        for upstream in self.now.spool.status().upstreams {
            let sum = upstream.delivered + upstream.dead + upstream.lost + upstream.pending;
            assert_eq!(upstream.accepted, sum, "{upstream:?}");
            // A refused event may be on disk, and the disk that failed may lose it.
            let is_free = |event: &&Event| event.forgiven || event.told == Told::No;
            let not_promised = self.events.values().filter(is_free).count() as u64;
            let is_promised = !self.may_lose && upstream.lost > not_promised;
            assert!(!is_promised, "{upstream:?}: {not_promised} are not promised");
        }
    }

    /// Each portal's totals are those of its events, as long as they say so.
    fn portals_add_up(&self) {
        let may_lack = self.may_lose && self.was_faulty;
        if may_lack || self.now.spool.portals_since_ms() != self.since_ms {
            return;
        }
        let mut sums = [(0, 0); 2];
        for of in 1..=PORTALS {
            let totals = self.now.spool.portal(of);
            let own = |event: &&u64| portal(**event) == of;
            let events = |is_in: &dyn Fn(&Event) -> bool| {
                let is_in = |event: &&u64| own(event) && is_in(&self.events[event]);
                self.events.keys().filter(is_in).count() as u64
            };
            let least = events(&|event| event.told == Told::Yes && !event.forgiven);
            let most = events(&|event| event.told != Told::No || event.crashed);
            assert!((least..=most).contains(&totals.accepted), "{totals:?}: {least} to {most}");
            for (at, upstream) in totals.upstreams.iter().enumerate() {
                let ended = self.acknowledged[at].iter().filter(own).count() as u64;
                let counted = upstream.delivered + upstream.dead;
                assert!(self.may_lose || counted == ended, "{totals:?}: {ended} ended");
                sums[at] = (sums[at].0 + counted, sums[at].1 + upstream.dead);
            }
        }
        let upstreams = self.now.spool.status().upstreams;
        for (upstream, (ended, dead)) in upstreams.iter().zip(sums) {
            // What an upstream had of the records that a power loss took is of no known portal.
            let has_others = self.may_lose && ended < upstream.delivered + upstream.dead;
            assert!(has_others || ended == upstream.delivered + upstream.dead, "{upstream:?}");
            let may_differ = self.may_lose || self.was_faulty;
            assert!(dead == upstream.dead || may_differ, "{upstream:?}: {dead} dead");
        }
        let (_, all) = self.now.spool.busiest_portals(0);
        let delivered: u64 = upstreams.iter().map(|upstream| upstream.delivered).sum();
        assert!(all.delivered == delivered || self.was_faulty, "{all:?}, {upstreams:?}");
    }

    /// Everything still promised arrives, and then the spool is empty.
    pub fn drain(&mut self) {
        self.heal();
        self.settle();
        self.kill();
        self.now.spool.checkpoint();
        let unread = self.now.spool.status();
        for (upstream, name) in UPSTREAMS.iter().enumerate() {
            let mut idle = 0;
            while idle < 3 {
                if self.read(upstream, 1_000) == 0 {
                    idle += 1;
                    self.now.spool.checkpoint();
                }
                self.acknowledge(upstream, 0, 1);
            }
            for (event, known) in &self.events {
                let due = known.told == Told::Yes && !known.forgiven && goes_to(known.route, name);
                let here = self.acknowledged[upstream].contains(event);
                assert!(here || !due, "event {event} was answered and is not there: {known:?}");
            }
        }
        self.identity_holds();
        self.portals_add_up();
        let status = self.now.spool.status();
        // Without a power loss, what was counted before it was read is then read or lost.
        for (at, (now, before)) in status.upstreams.iter().zip(&unread.upstreams).enumerate() {
            let ended = self.acknowledged[at].len() as u64;
            assert!(self.may_lose || now.accepted == ended + now.lost, "{now:?}, {ended} ended");
            let more = now.accepted.wrapping_sub(before.accepted);
            assert!(self.may_lose || more <= now.lost, "{before:?}, then {now:?}");
        }
        assert!(status.upstreams.iter().all(|upstream| upstream.pending == 0), "{status:?}");
        assert_eq!(status.bytes, 0, "{status:?}");
        (0..4).for_each(|_| self.now.spool.checkpoint());
        let lanes: BTreeSet<_> =
            self.disk.files().iter().filter_map(|file| file.parent().map(Path::to_owned)).collect();
        let lanes: Vec<_> =
            lanes.iter().filter(|dir| dir.to_string_lossy().contains("lane-")).collect();
        assert_eq!(lanes.len(), 1, "drained lanes are gone: {:?}", self.disk.files());
    }
}
