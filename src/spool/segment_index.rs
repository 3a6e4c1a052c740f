//! The segments of a lane, with the sequence numbers and bytes that each of them holds.
//!
//! A span ends where the next one begins, even if its file holds more. So a segment that was given
//! up after a failed write or sync is cut, on disk and in memory.

use std::collections::VecDeque;

use super::format::SEGMENT_HEADER_BYTES;

/// One segment, as readers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The segment's number.
    pub number: u64,
    /// The first sequence number.
    pub base: u64,
    /// The end of the readable bytes in the file.
    pub bytes: u64,
    /// Whether the bytes after them may be those of another segment.
    pub recycled: bool,
    /// The number of the segment before this one; 0 if it is not known.
    pub previous: u64,
    // The bytes of all earlier spans, trimmed ones included.
    before: u64,
}

impl Span {
    /// A segment as it was found on disk.
    pub fn found(number: u64, base: u64, recycled: bool, bytes: u64) -> Span {
        Span { number, base, bytes, recycled, previous: 0, before: 0 }
    }

    /// The number of the segment before this one. Version 0.1.0 did not store it, and then it is
    /// taken to be the next smaller number.
    fn previous_number(&self) -> u64 {
        if self.previous > 0 { self.previous } else { self.number.saturating_sub(1) }
    }

    /// The number of a missing segment directly before this one. `number` is that of the last
    /// segment before this one that is there.
    pub fn missing_after(&self, number: u64) -> Option<u64> {
        // The header names the segment before, because a number may have been used up by a segment
        // that could not be created.
        Some(self.previous_number()).filter(|previous| *previous > number)
    }
}

/// The place of a record that is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The record is in this segment.
    Segment(View),
    /// The record is in a segment whose file is missing, or in one before it.
    Missing { number: u64 },
    /// No record before `until` is left, although every segment was read.
    Lost { until: u64 },
}

/// The segment that a reader reads next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    pub span: Span,
    /// The sequence number at which the span ends.
    pub limit: u64,
    /// Whether more may still be written into the segment.
    pub open: bool,
    /// The number of a missing segment between this one and the next one that is there.
    pub missing_behind: Option<u64>,
}

impl View {
    /// Whether this view holds all that `other` held: a segment may have been cut meanwhile.
    pub fn covers(&self, other: &View) -> bool {
        self.span.number == other.span.number
            && self.span.bytes >= other.span.bytes
            && self.limit >= other.limit
    }
}

/// The segments of a lane, oldest first.
#[derive(Debug)]
pub struct SegmentIndex {
    spans: VecDeque<Span>,
    /// The sequence number after the last readable record.
    end: u64,
    sealed: bool,
    /// Records before this number that are in no segment were in segments that are missing.
    missing_until: u64,
    /// The number of the lane's last segment if it is missing, else 0.
    missing_last: u64,
}

impl SegmentIndex {
    /// The index of an empty lane whose first record will have the number `end`.
    pub fn new(end: u64) -> SegmentIndex {
        SegmentIndex {
            spans: VecDeque::new(),
            end,
            sealed: false,
            missing_until: 0,
            missing_last: 0,
        }
    }

    /// Adds a segment after the others.
    pub fn push(&mut self, number: u64, base: u64, recycled: bool, bytes: u64) {
        self.push_span(Span::found(number, base, recycled, bytes));
    }

    /// Adds a segment that was found on disk, after the others.
    pub fn push_span(&mut self, span: Span) {
        let before = self.spans.back().map_or(0, |span| span.before + span.bytes);
        self.spans.push_back(Span { before, ..span });
        self.end = self.end.max(span.base);
    }

    /// Adds segments that were missing in a sealed lane. Returns whether any of them is new.
    pub fn insert(&mut self, found: &[Span]) -> bool {
        let is_known = |span: &Span, spans: &VecDeque<Span>| {
            spans.iter().any(|known| known.number == span.number)
        };
        let last = self.last_number();
        let is_new = |span: &&Span| span.number <= last && !is_known(span, &self.spans);
        let new: Vec<Span> = found.iter().filter(is_new).copied().collect();
        self.spans.extend(&new);
        self.spans.make_contiguous().sort_by_key(|span| span.number);
        let mut before = 0;
        for span in &mut self.spans {
            span.before = before;
            before += span.bytes;
        }
        !new.is_empty()
    }

    /// Sets the number before which numbers that no segment holds were in missing segments, and not
    /// in bytes that were read and are damaged; and the number of the lane's last segment if it is
    /// missing, else 0.
    pub fn set_missing(&mut self, until: u64, last: u64) {
        (self.missing_until, self.missing_last) = (until, last);
    }

    /// The number of the lane's last segment if it is missing.
    pub fn missing_last(&self) -> Option<u64> {
        Some(self.missing_last).filter(|last| *last > 0)
    }

    /// The numbers of missing segments that held records from `low` on, as far as they are known.
    pub fn missing(&self, low: u64) -> Vec<u64> {
        if !self.sealed {
            return Vec::new();
        }
        let first = self.spans.front().filter(|first| low < first.base.min(self.missing_until));
        let first = first.map(Span::previous_number);
        let last = Some(self.missing_last).filter(|last| *last > 0 && self.spans.is_empty());
        let behind = (0..self.spans.len()).filter(|at| low < self.limit(*at));
        let behind = behind.filter_map(|at| self.missing_behind(at));
        first.into_iter().chain(last.filter(|_| low < self.end)).chain(behind).collect()
    }

    /// Makes the last segment readable up to this byte and sequence number. Both may go back,
    /// because a segment whose sync failed is cut.
    pub fn publish(&mut self, bytes: u64, end: u64) {
        if let Some(span) = self.spans.back_mut() {
            span.bytes = bytes;
        }
        self.end = end;
    }

    /// Seals the lane: no further record will be written.
    pub fn seal(&mut self, end: u64) {
        self.sealed = true;
        self.end = end;
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether this segment holds records from `low` on.
    pub fn is_needed(&self, number: u64, low: u64) -> bool {
        let at = self.spans.iter().position(|span| span.number == number);
        at.is_some_and(|at| low < self.limit(at))
    }

    /// The number of the last segment, whether its file is there or missing; 0 if there is none.
    pub fn last_number(&self) -> u64 {
        self.spans.back().map_or(0, |span| span.number).max(self.missing_last)
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    pub fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter()
    }

    /// The place of the record `seq`. `None` if the lane ends before it.
    pub fn place(&self, seq: u64) -> Option<Place> {
        if seq >= self.end {
            return None;
        }
        let Some(at) = self.at(seq) else {
            return Some(match self.missing_last {
                0 => Place::Lost { until: self.end },
                number => Place::Missing { number },
            });
        };
        let span = self.spans[at];
        if seq < span.base {
            return Some(match seq < self.missing_until {
                true => Place::Missing { number: span.previous_number() },
                false => Place::Lost { until: span.base },
            });
        }
        let open = at + 1 == self.spans.len() && !self.sealed;
        let missing_behind = self.missing_behind(at);
        Some(Place::Segment(View { span, limit: self.limit(at), open, missing_behind }))
    }

    /// The number of a segment that is missing between the segment at this place and the next one.
    pub fn missing_behind(&self, at: usize) -> Option<u64> {
        let span = self.spans.get(at).filter(|_| self.sealed)?;
        match self.spans.get(at + 1) {
            Some(next) => next.missing_after(span.number),
            None => Some(self.missing_last).filter(|last| *last > span.number),
        }
    }

    /// The bytes of the records from `low` on, without the headers of segments. In the segment of
    /// `low`, each record counts as of their mean size.
    pub fn held_bytes(&self, low: u64) -> u64 {
        let Some(last) = self.spans.back() else { return 0 };
        if low >= self.end {
            return 0;
        }
        let Some(at) = self.at(low) else { return 0 };
        let headers = ((self.spans.len() - at) * SEGMENT_HEADER_BYTES) as u64;
        let total = (last.before + last.bytes).saturating_sub(headers);
        let span = &self.spans[at];
        let events = self.limit(at).saturating_sub(span.base).max(1);
        let done = low.saturating_sub(span.base).min(events);
        let payload = span.bytes.saturating_sub(SEGMENT_HEADER_BYTES as u64);
        // In 128 bits, because a GiB times the events of a segment does not fit into 64 bits.
        let done_bytes = (u128::from(payload) * u128::from(done) / u128::from(events)) as u64;
        total.saturating_sub(span.before + done_bytes)
    }

    /// Removes the segments that end at or before `low`, except the one that is being written.
    pub fn trim(&mut self, low: u64) -> Vec<u64> {
        let mut numbers = Vec::new();
        while let Some(first) = self.spans.front() {
            let last = self.spans.len() == 1;
            if self.limit(0) > low || (last && !(self.sealed && low >= self.end)) {
                break;
            }
            numbers.push(first.number);
            self.spans.pop_front();
        }
        numbers
    }

    fn at(&self, seq: u64) -> Option<usize> {
        let behind = self.spans.partition_point(|span| span.base <= seq);
        (!self.spans.is_empty()).then(|| behind.saturating_sub(1))
    }

    fn limit(&self, at: usize) -> u64 {
        self.spans.get(at + 1).map_or(self.end, |next| next.base)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment_index() -> SegmentIndex {
        let mut segment_index = SegmentIndex::new(1);
        segment_index.push(1, 1, false, 1064);
        segment_index.push(2, 11, false, 1064);
        segment_index.push(3, 21, false, 564);
        segment_index.publish(564, 26);
        segment_index
    }

    fn view(segment_index: &SegmentIndex, seq: u64) -> View {
        match segment_index.place(seq) {
            Some(Place::Segment(view)) => view,
            other => panic!("{seq} is in a segment, and not {other:?}"),
        }
    }

    #[test]
    fn a_sequence_number_is_found_in_its_segment() {
        let segment_index = segment_index();
        for (seq, number, limit, open) in
            [(1, 1, 11, false), (10, 1, 11, false), (11, 2, 21, false), (25, 3, 26, true)]
        {
            let view = view(&segment_index, seq);
            assert_eq!((view.span.number, view.limit, view.open), (number, limit, open));
        }
        assert_eq!(segment_index.place(26), None);
    }

    #[test]
    fn a_number_before_the_first_segment_is_lost_or_in_a_missing_one() {
        let mut segment_index = segment_index();
        assert_eq!(segment_index.trim(11), [1]);
        assert_eq!(segment_index.place(3), Some(Place::Lost { until: 11 }));
        segment_index.set_missing(11, 0);
        assert_eq!(segment_index.place(3), Some(Place::Missing { number: 1 }));
    }

    #[test]
    fn missing_segments_are_known_by_the_next_one_or_as_the_last_one() {
        let mut segment_index = SegmentIndex::new(1);
        for (number, base, previous) in [(2, 11, 1), (4, 21, 2), (6, 41, 5)] {
            let span = Span { previous, ..Span::found(number, base, false, 1064) };
            segment_index.push_span(span);
        }
        segment_index.set_missing(11, 8);
        segment_index.seal(61);
        // Number 3 was used up by a segment that could not be created.
        assert_eq!(segment_index.missing(1), [1, 5, 8]);
        assert_eq!(segment_index.missing(11), [5, 8]);
        assert_eq!(segment_index.missing(41), [8]);
        assert_eq!(segment_index.missing(61), [0; 0]);
        let behind = [11, 21, 41].map(|seq| view(&segment_index, seq).missing_behind);
        assert_eq!(behind, [None, Some(5), Some(8)]);
        assert_eq!(segment_index.last_number(), 8);
        // Without any segment, all records are in the last one or before it.
        assert_eq!(segment_index.trim(60), [2, 4]);
        let mut none = SegmentIndex::new(1);
        none.seal(61);
        assert_eq!(none.place(1), Some(Place::Lost { until: 61 }));
        none.set_missing(0, 8);
        assert_eq!(none.place(1), Some(Place::Missing { number: 8 }));
    }

    #[test]
    fn trimming_keeps_the_open_segment_and_takes_a_sealed_one() {
        let mut segment_index = segment_index();
        assert_eq!(segment_index.trim(26), [1, 2]);
        assert_eq!(segment_index.trim(26), [0; 0]);
        segment_index.seal(26);
        assert_eq!(segment_index.trim(25), [0; 0]);
        assert_eq!(segment_index.trim(26), [3]);
    }

    #[test]
    fn a_cut_segment_ends_where_the_next_begins() {
        let mut segment_index = segment_index();
        segment_index.publish(64, 21);
        segment_index.push(4, 21, false, 164);
        segment_index.publish(164, 22);
        let view = view(&segment_index, 21);
        assert_eq!((view.span.number, view.limit), (4, 22));
        assert_eq!(segment_index.trim(21), [1, 2, 3]);
    }

    #[test]
    fn held_bytes_fall_with_what_is_acknowledged() {
        let segment_index = segment_index();
        assert_eq!(segment_index.held_bytes(1), 1000 + 1000 + 500);
        assert_eq!(segment_index.held_bytes(6), 1000 + 1000 + 500 - 500);
        assert_eq!(segment_index.held_bytes(21), 500);
        assert_eq!(segment_index.held_bytes(26), 0);
    }
}
