//! A portal list, ready to be asked: immutable but for what the rates have used.

use std::{
    fmt,
    hash::{DefaultHasher, Hasher},
    io::{self, BufReader, Read, Seek, SeekFrom},
    sync::Arc,
};

use super::draft::{Draft, ParseError};
use super::format::{Format, LIST_BYTES_MAX};
use super::parse;
use super::rate::{Meter, Meters, Rates};
use super::rules::Rules;
use super::set::{Duplicate, Set};
use crate::clock::Clock;

/// Read in pieces of this size.
const READ_BYTES: usize = 64 << 10;

/// The most ids that memory is set aside for before they are seen.
const IDS_RESERVED_MAX: usize = 4 << 20;

/// A portal list.
pub(super) struct List {
    /// Portals without rules of their own: most of them.
    plain: Set,
    ruled: Set,
    /// The rules of `ruled`, by slot, completed by the defaults.
    rules: Box<[Rules]>,
    /// By slot, like `rules`.
    meters_of_ruled: Box<[Option<Meter>]>,
    defaults: Rules,
    meter_of_plain: Option<Meter>,
    meters: Meters,
    /// Tells whether another reading of the source is the same list.
    pub content: Content,
}

/// A fingerprint of a list's bytes. Compared within one process only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content(u64);

/// Where a portal stands in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Plain(usize),
    Ruled(usize),
}

impl List {
    /// Reads a list, from the place where `source` stands.
    pub(super) fn read(
        format: Format,
        source: &mut (impl Read + Seek),
        clock: &Arc<dyn Clock>,
    ) -> Result<List, ParseError> {
        let start = source.stream_position()?;
        let ids = count_ids(format, source)?;
        source.seek(SeekFrom::Start(start))?;
        let mut tap = BufReader::with_capacity(READ_BYTES, Tap::new(&mut *source));
        let draft = parse::parse(format, &mut tap, ids)?;
        // Whatever the parser left unread still belongs to the content.
        io::copy(&mut tap, &mut io::sink())?;
        let content = tap.get_ref().content();
        List::build(draft, content, clock).or_else(|twice| {
            source.seek(SeekFrom::Start(start))?;
            let again = BufReader::with_capacity(READ_BYTES, Tap::new(source));
            Err(parse::locate(format, again, twice))
        })
    }

    fn build(draft: Draft, content: Content, clock: &Arc<dyn Clock>) -> Result<List, Duplicate> {
        let Draft { ids, tables, defaults, .. } = draft;
        let plain = Set::new(ids.list)?;
        let ruled = Set::new(tables.iter().map(|&(id, _)| id).collect())?;
        if let Some(twice) = ruled.iter().find(|&id| plain.contains(id)) {
            return Err(Duplicate(twice));
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
        let rules = rules.into_boxed_slice();
        Ok(List { plain, ruled, rules, meters_of_ruled, defaults, meter_of_plain, meters, content })
    }

    /// How many portals are in it, expired ones included.
    pub(super) fn len(&self) -> usize {
        self.plain.len() + self.ruled.len()
    }

    #[inline]
    pub(super) fn place(&self, portal: u64) -> Option<Place> {
        match self.plain.slot(portal) {
            Some(slot) => Some(Place::Plain(slot)),
            None => self.ruled.slot(portal).map(Place::Ruled),
        }
    }

    /// The rules of a portal in the list, or those for all others.
    #[inline]
    pub(super) fn rules(&self, place: Option<Place>) -> &Rules {
        match place {
            Some(Place::Ruled(slot)) => &self.rules[slot],
            Some(Place::Plain(_)) | None => &self.defaults,
        }
    }

    /// The rules of portals that have some of their own.
    pub(super) fn ruled(&self) -> impl Iterator<Item = (u64, &Rules)> {
        self.ruled.iter().zip(&self.rules)
    }

    /// How many portals have no rules but the defaults.
    pub(super) fn plain_len(&self) -> usize {
        self.plain.len()
    }

    /// Takes one event of a portal's rate, if there is one left.
    #[inline]
    pub(super) fn take_rate(&self, place: Place) -> bool {
        self.meter(place).is_none_or(|(meter, cell)| self.meters.take(meter, cell))
    }

    #[inline]
    fn meter(&self, place: Place) -> Option<(Meter, usize)> {
        match place {
            Place::Ruled(slot) => Some((self.meters_of_ruled[slot]?, slot)),
            Place::Plain(slot) => Some((self.meter_of_plain?, self.ruled.len() + slot)),
        }
    }

    /// Carries over what the rates of an earlier list have used, for each portal whose rate is
    /// still the same.
    pub(super) fn carry_rates(&self, earlier: &List) {
        let carry = |id: u64, place: Place| {
            let (meter, cell) = self.meter(place)?;
            let (earlier_meter, earlier_cell) = earlier.meter(earlier.place(id)?)?;
            if self.meters.rate(meter) == earlier.meters.rate(earlier_meter) {
                self.meters.carry(cell, &earlier.meters, earlier_cell);
            }
            Some(())
        };
        for (slot, id) in self.ruled.iter().enumerate() {
            carry(id, Place::Ruled(slot));
        }
        if self.meter_of_plain.is_some() {
            for (slot, id) in self.plain.iter().enumerate() {
                carry(id, Place::Plain(slot));
            }
        }
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// How many ids a list has, or a few more. A vector that has to grow needs up to three times the
/// memory, and all of it while there are two lists; reading twice costs next to nothing.
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

/// Reads no more than a list may have, and fingerprints what it reads.
struct Tap<R> {
    inner: R,
    left: u64,
    hasher: DefaultHasher,
}

impl<R: Read> Tap<R> {
    fn new(inner: R) -> Tap<R> {
        Tap { inner, left: LIST_BYTES_MAX, hasher: DefaultHasher::new() }
    }

    fn content(&self) -> Content {
        Content(self.hasher.finish())
    }
}

impl<R: Read> Read for Tap<R> {
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
