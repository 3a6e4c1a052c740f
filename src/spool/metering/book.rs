//! The totals of each portal, over all lanes that this process has.
//!
//! Counts are *open* until they are written to the file of their lane. Readers of the totals see
//! them at once. They are taken out to be written, together with the positions up to which they
//! count. Both change under the lock of the lane, so the file never has one without the other.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::counts::{Column, Tallies, Totals};
use super::living::{Found, LivingLanes};
use super::table::{GROWTH, OTHER, PORTALS_MAX, Table};
use super::{Metered, Metering};
use crate::clock::{Clock, DAY_MS};
use crate::spool::format::{self, RECORD_HEADER_BYTES};
use crate::spool::status::{PortalTotals, PortalUpstream};
use crate::telemetry::faults::{FaultKind, Faults};

/// Looks up the numbers of portals of records. It remembers the last portal, because the events of
/// one portal often follow each other.
pub struct Numbering<'b> {
    book: &'b Book,
    last: Option<(Metered, u32)>,
}

impl Numbering<'_> {
    /// Returns the number of a record's portal, and the day of the record.
    pub fn number(&mut self, record: &[u8]) -> (u32, u32) {
        let Some(metered) = (self.book.metering.read)(record) else { return (OTHER, 0) };
        if let Some((last, number)) = self.last
            && last == metered
        {
            return (number, metered.day);
        }
        let number = self.book.number_of(metered.portal);
        self.last = Some((metered, number));
        (number, metered.day)
    }
}

struct Pages {
    /// The names of the upstreams: first the configured ones in their order, then removed ones.
    names: Vec<String>,
    totals: Totals,
    /// The totals of the lanes whose process lives, which are in none of the other fields.
    living: LivingLanes,
    /// The open counts of each lane.
    open: BTreeMap<u64, Tallies>,
    /// The sums over all portals: accepted, rejected, delivered.
    sums: [u64; 3],
    /// See [`Book::since_ms`]; 0 if it is not known.
    since_ms: u64,
    /// The number of times that accepted events of other processes were counted.
    takeovers: u64,
}

/// The totals of each portal.
pub struct Book {
    metering: Metering,
    /// The number of configured upstreams.
    configured: usize,
    clock: Arc<dyn Clock>,
    faults: Faults,
    /// The number of this process's own lane, in which rejected events are counted.
    own: AtomicU64,
    table: Mutex<Table>,
    pages: Mutex<Pages>,
    /// Whether the log has reported that the table has no room.
    is_full: AtomicBool,
    /// Rejected events of portals without totals, which are not written yet.
    rejected_others: AtomicU64,
}

impl Book {
    pub fn new(
        metering: Metering,
        upstreams: &[String],
        clock: Arc<dyn Clock>,
        faults: Faults,
    ) -> Book {
        let pages = Pages {
            names: upstreams.to_vec(),
            totals: Totals::default(),
            living: LivingLanes::default(),
            open: BTreeMap::new(),
            sums: [0; 3],
            since_ms: 0,
            takeovers: 0,
        };
        Book {
            metering,
            configured: upstreams.len(),
            clock,
            faults,
            own: AtomicU64::new(0),
            table: Mutex::new(Table::new()),
            pages: Mutex::new(pages),
            is_full: AtomicBool::new(false),
            rejected_others: AtomicU64::new(0),
        }
    }

    /// Returns a reader of the numbers of many records.
    pub fn numbering(&self) -> Numbering<'_> {
        Numbering { book: self, last: None }
    }

    /// The time, in milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// The UTC day, in days since 1970-01-01.
    pub fn today(&self) -> u32 {
        u32::try_from(self.now_ms() / DAY_MS).unwrap_or(u32::MAX)
    }

    /// Returns the number of a portal, a new one if it has none. See [`Table::number`].
    pub fn number_of(&self, portal: u64) -> u32 {
        self.table.lock().number(portal)
    }

    /// Returns the portal of a number, or 0 for [`OTHER`].
    pub fn portal_of(&self, number: u32) -> u64 {
        self.table.lock().portal(number)
    }

    /// How many numbers are in use, [`OTHER`] included.
    pub fn numbers(&self) -> usize {
        self.table.lock().len() + 1
    }

    /// Counts the records in `staged` as accepted.
    pub fn count_staged(&self, mut staged: &[u8], counts: &mut Tallies) {
        let mut numbers = self.numbering();
        while staged.len() >= RECORD_HEADER_BYTES {
            let (record, rest) = staged.split_at(format::record_bytes(staged).min(staged.len()));
            staged = rest;
            let payload = &record[RECORD_HEADER_BYTES.min(record.len())..];
            let (number, day) = numbers.number(payload);
            counts.tally(Column::Accepted(day)).add(number, 1);
        }
    }

    /// Adds counts of a lane to its open ones, and empties `counts`. The lane's state must be
    /// locked.
    pub fn add(&self, lane: u64, counts: &mut Tallies) {
        if counts.is_empty() {
            return;
        }
        let mut pages = self.pages.lock();
        pages.add_sums(counts);
        let open = pages.open.entry(lane).or_default();
        for (column, tally) in counts.iter() {
            let sum = open.tally(*column);
            tally.iter().for_each(|(number, events)| sum.add(number, events));
        }
        counts.empty();
    }

    /// Adds one event of a column for each number. The lane's state must be locked.
    pub fn add_each(&self, lane: u64, column: Column, numbers: impl Iterator<Item = u32>) {
        let mut pages = self.pages.lock();
        let tally = pages.open.entry(lane).or_default().tally(column);
        let mut events = 0;
        for number in numbers {
            tally.add(number, 1);
            events += 1;
        }
        if let Some(sum) = column.sum() {
            pages.sums[sum] += events;
        }
    }

    /// Counts a rejected event. A portal that has no totals yet gets some only if `is_listed` says
    /// that it is in the portal list, so that clients cannot fill the table with invented portals.
    /// Any other portal is counted under [`OTHER`].
    pub fn reject(&self, portal: u64, is_listed: impl FnOnce() -> bool) {
        let known = self.table.lock().find(portal);
        let number = match known {
            Some(number) => number,
            None if is_listed() => self.number_of(portal),
            None => OTHER,
        };
        if number == OTHER {
            self.rejected_others.fetch_add(1, Relaxed);
        } else {
            let own = self.own.load(Relaxed);
            self.add_each(own, Column::Rejected, std::iter::once(number));
        }
    }

    /// Sets the own lane of this process, in which rejected events are counted from now on. Moves
    /// the open counts of the previous one there.
    pub fn set_own(&self, lane: u64) {
        let mut pages = self.pages.lock();
        let before = self.own.swap(lane, Relaxed);
        if let Some(counts) = pages.open.remove(&before) {
            pages.open.entry(lane).or_default().append(counts);
        }
    }

    /// Takes out the open counts of a lane, to be written. They stay in the totals. The lane's
    /// state must be locked.
    pub fn take_out(&self, lane: u64) -> Tallies {
        let today = self.today();
        let mut pages = self.pages.lock();
        if lane == self.own.load(Relaxed) {
            let others = self.rejected_others.swap(0, Relaxed);
            pages.sums[1] += others;
            pages.open.entry(lane).or_default().tally(Column::Rejected).add(OTHER, others);
        }
        let counts = pages.open.remove(&lane).unwrap_or_default();
        for (column, tally) in counts.iter() {
            pages.totals.add(*column, tally.iter(), today);
        }
        counts
    }

    /// Whether a lane has open counts.
    pub fn has_open(&self, lane: u64) -> bool {
        let is_own = lane == self.own.load(Relaxed);
        is_own && self.rejected_others.load(Relaxed) > 0
            || self.pages.lock().open.get(&lane).is_some_and(|counts| !counts.is_empty())
    }

    /// Adds the counts of a lane that was taken over to the totals. They replace those that were
    /// known while its process lived, and are complete from `since_ms` on, in milliseconds since
    /// 1970. 0: from the beginning of the lane.
    pub fn take_in(&self, lane: u64, counts: &[&Tallies], since_ms: u64) {
        let today = self.today();
        let mut pages = self.pages.lock();
        pages.living.retain(|living| living != lane);
        for counts in counts {
            pages.add_sums(counts);
            for (column, tally) in counts.iter() {
                pages.totals.add(*column, tally.iter(), today);
            }
        }
        pages.since_ms = pages.since_ms.max(since_ms);
        pages.takeovers += 1;
    }

    /// Takes over the totals of a lane whose process lives, as its file has them.
    pub fn set_living(&self, lane: u64, found: &Found, since_ms: u64) {
        let today = self.today();
        let mut pages = self.pages.lock();
        pages.since_ms = pages.since_ms.max(since_ms);
        pages.takeovers += u64::from(pages.living.take_in(lane, found, today));
    }

    /// Removes the totals of the lanes of living processes that are not to be kept.
    pub fn retain_living(&self, is_kept: impl Fn(u64) -> bool) {
        self.pages.lock().living.retain(is_kept);
    }

    /// The time from which the totals count, in milliseconds since 1970. `None` while only another
    /// process knows it, which holds the lane whose file has this time.
    pub fn since_ms(&self) -> Option<u64> {
        Some(self.pages.lock().since_ms).filter(|since| *since > 0)
    }

    /// The number of times that accepted events of other processes were counted.
    pub fn takeovers(&self) -> u64 {
        self.pages.lock().takeovers
    }

    /// Returns the place of an upstream's name in the list of names, and adds a new name.
    pub fn name(&self, name: &str) -> usize {
        let mut pages = self.pages.lock();
        let known = pages.names.iter().position(|known| known == name);
        known.unwrap_or_else(|| {
            pages.names.push(name.to_owned());
            pages.names.len() - 1
        })
    }

    /// Returns the name of the upstream at a place.
    pub fn name_at(&self, place: usize) -> String {
        self.pages.lock().names.get(place).cloned().unwrap_or_default()
    }

    /// Returns the totals of a portal, which are zeros if it has none.
    pub fn portal(&self, portal: u64) -> PortalTotals {
        let number = self.table.lock().find(portal);
        let pages = self.pages.lock();
        let upstreams = &pages.names[..self.configured];
        match number {
            Some(number) => pages.of(portal, number, upstreams),
            None => pages.of(portal, u32::MAX, upstreams),
        }
    }

    /// Returns the number of events of a portal that were accepted on a day.
    pub fn accepted_on(&self, portal: u64, day: u32) -> u64 {
        let Some(number) = self.table.lock().find(portal) else { return 0 };
        let pages = self.pages.lock();
        let written = pages.all_totals().map(|totals| totals.on(day, number)).sum::<u64>();
        let is_today =
            |column| matches!(column, Column::Accepted(on) | Column::Today(on) if on == day);
        written + pages.open.values().map(|counts| counts.of(number, is_today)).sum::<u64>()
    }

    /// Returns the `portals_max` portals with the most requests (accepted and rejected events), the
    /// busiest first, and the sum of all others, whose portal is 0.
    pub fn busiest(&self, portals_max: usize) -> (Vec<PortalTotals>, PortalTotals) {
        let mut busiest = BinaryHeap::with_capacity(portals_max + 1);
        let numbers = self.numbers();
        for from in (1..numbers).step_by(GROWTH) {
            // The lock is released again and again, because the committer and the tasks of
            // upstreams wait for it.
            let pages = self.pages.lock();
            for number in from..numbers.min(from + GROWTH) {
                let requests =
                    pages.all_totals().map(|totals| totals.of(number as u32, is_request));
                let row = (requests.sum::<u64>(), Reverse(number as u32));
                // Most portals are not among the busiest, so this is checked first.
                let is_less = busiest.peek().is_some_and(|Reverse(least)| row < *least);
                if busiest.len() >= portals_max && is_less {
                    continue;
                }
                busiest.push(Reverse(row));
                if busiest.len() > portals_max {
                    busiest.pop();
                }
            }
        }
        let numbers: Vec<u32> = busiest
            .into_sorted_vec()
            .into_iter()
            .map(|Reverse((_, Reverse(number)))| number)
            .collect();
        let portals: Vec<u64> = numbers.iter().map(|number| self.portal_of(*number)).collect();
        let pages = self.pages.lock();
        let upstreams = &pages.names[..self.configured];
        let each = portals.iter().zip(&numbers);
        let mut shown: Vec<PortalTotals> =
            each.map(|(portal, number)| pages.of(*portal, *number, upstreams)).collect();
        shown.retain(|totals| totals.accepted + totals.rejected > 0);
        let [accepted, rejected, delivered] = pages.all_sums();
        let rejected = rejected + self.rejected_others.load(Relaxed);
        let sum = |of: fn(&PortalTotals) -> u64| shown.iter().map(of).sum::<u64>();
        let others = PortalTotals {
            accepted: accepted.saturating_sub(sum(|totals| totals.accepted)),
            rejected: rejected.saturating_sub(sum(|totals| totals.rejected)),
            delivered: delivered.saturating_sub(sum(|totals| totals.delivered)),
            ..PortalTotals::default()
        };
        (shown, others)
    }

    /// Returns the sums over all portals: accepted, rejected, delivered.
    pub fn sums(&self) -> [u64; 3] {
        self.pages.lock().all_sums()
    }

    /// Raises the fault that further portals get no totals, if the table is full. Logs it once.
    pub fn report_full(&self) {
        if self.table.lock().is_full() {
            if !self.is_full.swap(true, Relaxed) {
                ::log::error!(
                    "spool: {PORTALS_MAX} portals have totals, which is the limit: further portals \
are counted together, as `other`"
                );
            }
            self.faults.raise(
                FaultKind::PortalTotals,
                "portals",
                format!("{PORTALS_MAX} portals have totals of their own, which is the limit"),
                "The events of every further portal are counted together, as `other`. The totals \
                 of all portals begin anew with a new spool folder."
                    .to_owned(),
            );
        }
    }
}

fn is_request(column: Column) -> bool {
    matches!(column, Column::Accepted(_) | Column::Rejected)
}

impl Pages {
    fn add_sums(&mut self, counts: &Tallies) {
        self.sums.iter_mut().zip(counts.sums()).for_each(|(sum, events)| *sum += events);
    }

    /// The totals of this process and those of each lane whose process lives.
    fn all_totals(&self) -> impl Iterator<Item = &Totals> {
        std::iter::once(&self.totals).chain(self.living.totals())
    }

    fn all_sums(&self) -> [u64; 3] {
        std::array::from_fn(|at| self.sums[at] + self.living.sums()[at])
    }

    fn of(&self, portal: u64, number: u32, upstreams: &[String]) -> PortalTotals {
        let count = |is_wanted: &dyn Fn(Column) -> bool| {
            let open = self.open.values().map(|counts| counts.of(number, is_wanted));
            let totals = self.all_totals().map(|totals| totals.of(number, is_wanted));
            totals.sum::<u64>() + open.sum::<u64>()
        };
        let upstream = |(place, name): (usize, &String)| PortalUpstream {
            name: name.clone(),
            delivered: count(&|column| column == Column::Delivered(place)),
            dead: count(&|column| column == Column::Dead(place)),
        };
        PortalTotals {
            portal,
            accepted: count(&|column| matches!(column, Column::Accepted(_))),
            rejected: count(&|column| column == Column::Rejected),
            delivered: count(&|column| matches!(column, Column::Delivered(_))),
            upstreams: upstreams.iter().enumerate().map(upstream).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    const LANE: u64 = 1;

    fn book() -> Book {
        let read = |record: &[u8]| {
            let portal = u64::from_le_bytes(record.try_into().ok()?);
            Some(Metered { portal, day: 20_000 })
        };
        let upstreams = ["a".to_owned(), "b".to_owned()];
        let faults = Faults::unregistered();
        let book = Book::new(Metering { read }, &upstreams, Arc::new(SystemClock), faults);
        book.set_own(LANE);
        book
    }

    /// Counts an event of each of these portals as accepted.
    fn accept(book: &Book, portals: &[u64]) {
        let mut counts = Tallies::default();
        for portal in portals {
            let payload = portal.to_le_bytes();
            let staged = [&format::stage(&payload)[..], &payload].concat();
            book.count_staged(&staged, &mut counts);
        }
        book.add(LANE, &mut counts);
        assert!(counts.is_empty());
    }

    #[test]
    fn what_is_open_is_in_the_totals_once() {
        let book = book();
        accept(&book, &[7, 7, 8]);
        let number = book.number_of(7);
        book.add_each(LANE, Column::Delivered(0), [number, number].into_iter());
        book.add_each(LANE, Column::Delivered(1), [number].into_iter());
        book.add_each(LANE, Column::Dead(1), [number].into_iter());
        book.reject(7, || true);
        book.reject(9, || false);
        for _ in 0..2 {
            let totals = book.portal(7);
            assert_eq!((totals.accepted, totals.rejected, totals.delivered), (2, 1, 3));
            let by_upstream = totals.upstreams.iter().map(|of| (of.delivered, of.dead));
            assert_eq!(by_upstream.collect::<Vec<_>>(), [(2, 0), (1, 1)]);
            assert_eq!((book.accepted_on(7, 20_000), book.accepted_on(7, 20_001)), (2, 0));
            let (busiest, others) = book.busiest(0);
            assert_eq!((busiest.len(), others.accepted, others.rejected), (0, 3, 2));
            // The second time it is taken out to be written.
            drop(book.take_out(LANE));
        }
        assert!(!book.has_open(LANE));
        let (busiest, others) = book.busiest(1);
        assert_eq!(busiest, [book.portal(7)]);
        assert_eq!((others.accepted, others.rejected, others.delivered), (1, 1, 0));
        let unknown = book.portal(9);
        assert_eq!((unknown.portal, unknown.accepted, unknown.rejected), (9, 0, 0));
    }

    #[test]
    fn a_portal_beyond_the_limit_is_counted_with_the_others_and_said_so() {
        let book = book();
        (2..=PORTALS_MAX as u64).for_each(|portal| _ = book.number_of(portal));
        book.report_full();
        assert_eq!(book.faults.list().len(), 0);
        accept(&book, &[PORTALS_MAX as u64 + 1, PORTALS_MAX as u64 + 2, 7]);
        book.report_full();
        let fault = book.faults.list().remove(0);
        assert_eq!((fault.what, fault.subject.as_str()), (FaultKind::PortalTotals, "portals"));
        // The first of the two got the last place.
        assert_eq!(book.portal(PORTALS_MAX as u64 + 1).accepted, 1);
        assert_eq!(book.portal(PORTALS_MAX as u64 + 2).accepted, 0);
        assert_eq!(book.portal(7).accepted, 1);
        book.reject(PORTALS_MAX as u64 + 2, || true);
        drop(book.take_out(LANE));
        let (_, others) = book.busiest(2);
        assert_eq!((others.accepted, others.rejected), (1, 1), "nothing is lost");
    }
}
