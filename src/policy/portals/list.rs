//! A portal list in memory. It is immutable except for the counters of its rates.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher},
    io::{self, BufReader, Read, Seek, SeekFrom},
    sync::Arc,
};

use super::draft::{Draft, ParseError};
use super::format::{Format, LIST_BYTES_MAX};
use super::parse;
use super::quota::{AcceptedByDay, Quotas};
use super::rate::{Meter, Meters, Rates};
use super::rules::{Quota, Rules};
use super::set::{Duplicate, Set};
use super::terms::Terms;
use crate::clock::Clock;

/// Size of one read, in bytes.
const READ_BYTES: usize = 64 << 10;

/// The most ids that memory is reserved for in advance.
const IDS_RESERVED_MAX: usize = 4 << 20;

/// A portal list.
pub(super) struct List {
    /// Portals without rules of their own: most of them.
    plain: Set,
    ruled: Set,
    /// The rules of the portals in `ruled`, by slot, completed by the defaults.
    rules: Box<[Rules]>,
    /// By slot, like `rules`.
    meters_of_ruled: Box<[Option<Meter>]>,
    defaults: Rules,
    meter_of_plain: Option<Meter>,
    meters: Meters,
    /// The counters of quotas, numbered as those of rates; empty if no portal has a quota.
    quotas: Quotas,
    /// Tells whether a second read of the source gave the same list.
    pub content: Content,
}

/// A hash of the bytes of a list. It differs between processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content(u64);

/// The entry of a portal in a list; the number is its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Plain(usize),
    Ruled(usize),
}

impl List {
    /// Reads a list, from the current position of `source`.
    pub(super) fn read(
        format: Format,
        source: &mut (impl Read + Seek),
        terms: &Terms,
    ) -> Result<List, ParseError> {
        let start = source.stream_position()?;
        let ids = count_ids(format, source)?;
        source.seek(SeekFrom::Start(start))?;
        let mut reader = BufReader::with_capacity(READ_BYTES, HashingReader::new(&mut *source));
        let draft = parse::parse(format, &mut reader, ids, &terms.bounds)?;
        // Bytes that the parser left unread still count for the hash and the size limit.
        io::copy(&mut reader, &mut io::sink())?;
        let content = reader.get_ref().content();
        List::build(draft, content, &terms.clock).map_err(|duplicate| {
            parse::locate(duplicate, |draft| {
                source.seek(SeekFrom::Start(start))?;
                let again = BufReader::with_capacity(READ_BYTES, &mut *source);
                parse::read(format, again, &terms.bounds, draft)
            })
        })
    }

    fn build(draft: Draft, content: Content, clock: &Arc<dyn Clock>) -> Result<List, Duplicate> {
        let Draft { ids, tables, defaults, .. } = draft;
        let plain = Set::new(ids.list)?;
        let ruled = Set::new(tables.iter().map(|&(id, _)| id).collect())?;
        if let Some(id) = ruled.iter().find(|&id| plain.contains(id)) {
            return Err(Duplicate(id));
        }
        let mut rules = vec![Rules::default(); ruled.len()];
        for (id, own) in tables {
            if let Some(slot) = ruled.slot(id) {
                rules[slot] = own.or(&defaults);
            }
        }
        let mut rates = Rates::default();
        let meters_of_ruled =
            rules.iter().map(|rules| rules.rate.map(|r| rates.meter(r))).collect();
        let meter_of_plain = defaults.rate.map(|rate| rates.meter(rate));
        let metered_plain = if meter_of_plain.is_some() { plain.len() } else { 0 };
        let meters = Meters::new(rates, ruled.len() + metered_plain, clock);
        let quota_of_plain = if defaults.quota.is_some() { plain.len() } else { 0 };
        let has_quota = quota_of_plain > 0 || rules.iter().any(|rules| rules.quota.is_some());
        let quotas = if has_quota { ruled.len() + quota_of_plain } else { 0 };
        let quotas = Quotas::new(quotas, clock);
        let rules = rules.into_boxed_slice();
        Ok(List {
            plain,
            ruled,
            rules,
            meters_of_ruled,
            defaults,
            meter_of_plain,
            meters,
            quotas,
            content,
        })
    }

    /// The number of portals in the list, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.plain.len() + self.ruled.len()
    }

    #[inline]
    pub(super) fn find(&self, portal: u64) -> Option<Entry> {
        match self.plain.slot(portal) {
            Some(slot) => Some(Entry::Plain(slot)),
            None => self.ruled.slot(portal).map(Entry::Ruled),
        }
    }

    /// The rules of an entry. `None` stands for a portal that is not in the list, to which the
    /// defaults apply.
    #[inline]
    pub(super) fn rules(&self, entry: Option<Entry>) -> &Rules {
        match entry {
            Some(Entry::Ruled(slot)) => &self.rules[slot],
            Some(Entry::Plain(_)) | None => &self.defaults,
        }
    }

    /// The portals that have rules of their own, with these rules.
    pub(super) fn ruled(&self) -> impl Iterator<Item = (u64, &Rules)> {
        self.ruled.iter().zip(&self.rules)
    }

    /// The number of portals that have only the default rules.
    pub(super) fn plain_len(&self) -> usize {
        self.plain.len()
    }

    /// Counts one event against the portal's rate. False if the rate is exceeded.
    #[inline]
    pub(super) fn take_rate(&self, entry: Entry) -> bool {
        self.meter(entry).is_none_or(|(meter, cell)| self.meters.take(meter, cell))
    }

    /// Counts one event against the portal's quota. If the quota is used up, the error holds the
    /// seconds until the next UTC day.
    #[inline]
    pub(super) fn take_quota(&self, entry: Entry) -> Result<(), u32> {
        match self.quota(entry) {
            None => Ok(()),
            Some((quota, cell)) => self.quotas.take(cell, quota.per_day.get()),
        }
    }

    /// Returns an event to the portal's quota.
    pub(super) fn give_back(&self, entry: Entry) {
        if let Some((_, cell)) = self.quota(entry) {
            self.quotas.give_back(cell);
        }
    }

    /// A portal's quota of a day, and how many events of it are used.
    pub(super) fn quota_used(
        &self,
        portal: u64,
        accepted: Option<&dyn AcceptedByDay>,
    ) -> Option<(u32, u64)> {
        let (quota, cell) = self.quota(self.find(portal)?)?;
        // Modes other than `enforce` accept events without counting them against the quota.
        if let (Some(accepted), Ok(day)) = (accepted, u32::try_from(self.quotas.today())) {
            self.quotas.raise(cell, accepted.accepted(portal, day));
        }
        Some((quota.per_day.get(), self.quotas.used(cell)))
    }

    /// Raises each quota's count to the events that were accepted today, if they are more.
    pub(super) fn raise_quotas(&self, accepted: &dyn AcceptedByDay) {
        let Ok(day) = u32::try_from(self.quotas.today()) else { return };
        self.each_quota(|id, cell| self.quotas.raise(cell, accepted.accepted(id, day)));
    }

    #[inline]
    fn quota(&self, entry: Entry) -> Option<(Quota, usize)> {
        match entry {
            Entry::Ruled(slot) => Some((self.rules[slot].quota?, slot)),
            Entry::Plain(slot) => Some((self.defaults.quota?, self.ruled.len() + slot)),
        }
    }

    /// Calls `each` with the id and the cell of each portal that has a quota.
    fn each_quota(&self, mut each: impl FnMut(u64, usize)) {
        let mut portal = |id: u64, entry: Entry| {
            if let Some((_, cell)) = self.quota(entry) {
                each(id, cell);
            }
        };
        for (slot, id) in self.ruled.iter().enumerate() {
            portal(id, Entry::Ruled(slot));
        }
        if self.defaults.quota.is_some() {
            for (slot, id) in self.plain.iter().enumerate() {
                portal(id, Entry::Plain(slot));
            }
        }
    }

    #[inline]
    fn meter(&self, entry: Entry) -> Option<(Meter, usize)> {
        match entry {
            Entry::Ruled(slot) => Some((self.meters_of_ruled[slot]?, slot)),
            Entry::Plain(slot) => Some((self.meter_of_plain?, self.ruled.len() + slot)),
        }
    }

    /// Copies the counters of an earlier list: those of all quotas, and those of each rate that is
    /// unchanged.
    pub(super) fn carry(&self, earlier: &List) {
        self.each_quota(|id, cell| {
            let before = earlier.find(id).and_then(|entry| earlier.quota(entry));
            if let Some((_, earlier_cell)) = before {
                self.quotas.carry(cell, &earlier.quotas, earlier_cell);
            }
        });
        let carry = |id: u64, entry: Entry| {
            let (meter, cell) = self.meter(entry)?;
            let (earlier_meter, earlier_cell) = earlier.meter(earlier.find(id)?)?;
            if self.meters.rate(meter) == earlier.meters.rate(earlier_meter) {
                self.meters.carry(cell, &earlier.meters, earlier_cell);
            }
            Some(())
        };
        for (slot, id) in self.ruled.iter().enumerate() {
            carry(id, Entry::Ruled(slot));
        }
        if self.meter_of_plain.is_some() {
            for (slot, id) in self.plain.iter().enumerate() {
                carry(id, Entry::Plain(slot));
            }
        }
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Counts the ids of a list, to reserve memory for them; the result may be a little too high. A
/// vector that grows would need up to three times the memory while two lists are loaded.
fn count_ids(format: Format, source: &mut impl Read) -> io::Result<usize> {
    let mut buffer = vec![0; READ_BYTES];
    let mut ids = 1;
    let mut source = source.take(LIST_BYTES_MAX);
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(ids.min(IDS_RESERVED_MAX)),
            read => ids += memchr::memchr_iter(format.separator(), &buffer[..read]).count(),
        }
    }
}

/// A reader that hashes the bytes that are read, and fails after [`LIST_BYTES_MAX`] bytes.
struct HashingReader<R> {
    inner: R,
    left: u64,
    hasher: DefaultHasher,
}

impl<R: Read> HashingReader<R> {
    fn new(inner: R) -> HashingReader<R> {
        HashingReader { inner, left: LIST_BYTES_MAX, hasher: DefaultHasher::new() }
    }

    fn content(&self) -> Content {
        Content(self.hasher.finish())
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let what = format!("larger than {} MiB", LIST_BYTES_MAX >> 20);
            io::Error::new(io::ErrorKind::FileTooLarge, what)
        })?;
        self.hasher.write(&buffer[..read]);
        Ok(read)
    }
}
