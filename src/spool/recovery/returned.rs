//! Takes up segments of an adopted lane that were missing and are there again.
//!
//! The last segment of a lane may hold records that neither the cursor nor the counts by portal
//! know: those of the last second before a kill. These records become part of the lane when the
//! segment is back.

use std::io;

use super::count_foreign::scan;
use super::recover::{Segment, scan_to_end, survey};
use crate::spool::fs::Open;
use crate::spool::lane::Lane;
use crate::spool::metering::counts::{Column, Tallies};
use crate::spool::metering::table::OTHER;
use crate::spool::segment_index::Span;
use crate::spool::state::SpoolState;

/// Looks again for the missing segments of a lane. Returns whether some are back or, where an empty
/// file has the name of one, given up.
pub fn find_missing(lane: &Lane, spool: &SpoolState) -> io::Result<bool> {
    let (fs, dir) = (lane.fs(), lane.dir());
    let survey = survey(&**fs, dir, lane.id, lane.salt, Some(&spool.quarantine))?;
    let (end, last_number, missing_last) = {
        let state = lane.state();
        let index = &state.segment_index;
        (index.end(), index.last_number(), index.missing_last())
    };
    let last = survey.segments.last().filter(|last| Some(last.number) == missing_last);
    let last = last.map(|last| Returned::read(lane, spool, last, end)).transpose()?;
    let mut counts = Tallies::default();
    let mut state = lane.state();
    let mut found = state.segment_index.insert(&survey.spans());
    survey.note_missing(last_number, &mut state.segment_index);
    found |= missing_last.is_some() && state.segment_index.missing_last().is_none();
    // The reader of another upstream may have taken the segment up meanwhile.
    if let Some(last) = last.filter(|_| state.segment_index.end() == end) {
        state.segment_index.publish(last.offset, last.end.max(end));
        state.accepted = state.segment_index.end();
        state.routed |= last.routed;
        for (position, foreign) in state.positions.iter_mut().zip(last.foreign) {
            position.foreign += foreign;
        }
        counts = last.counts;
    }
    spool.book.add(lane.id, &mut counts);
    if found {
        state.dirty = true;
        lane.publish_held(&state, &spool.bounds);
    }
    Ok(found)
}

/// The last segment of a lane, which is back.
struct Returned {
    /// The offset at which its records end.
    offset: u64,
    /// The number after its last record.
    end: u64,
    /// The records by portal that were in no count.
    counts: Tallies,
    /// The numbers of these records that are foreign to each position.
    foreign: Vec<u64>,
    /// Whether any of them is not meant for all upstreams.
    routed: bool,
}

impl Returned {
    /// Reads the segment. The records before `known` are counted already.
    fn read(lane: &Lane, spool: &SpoolState, last: &Segment, known: u64) -> io::Result<Returned> {
        let file = lane.fs().open(&lane.segment_path(last.number), Open::Read)?;
        let (offset, end) = scan_to_end(&*file, last, lane.salt)?;
        let names: Vec<String> =
            lane.state().positions.iter().map(|position| position.name.clone()).collect();
        let (mut counts, mut foreign) = (Tallies::default(), vec![0; names.len()]);
        let (mut routed, mut counted) = (false, 0);
        let mut numbers = spool.book.numbering();
        let span = Span::found(last.number, last.base, last.recycled, offset);
        scan(&**lane.fs(), lane.dir(), lane.salt, &(span, last.base..end), |seq, record| {
            if seq < known {
                return;
            }
            counted += 1;
            let (number, day) = numbers.number(record);
            counts.tally(Column::Accepted(day)).add(number, 1);
            routed |= (spool.routing.is_routed)(record);
            for (foreign, name) in foreign.iter_mut().zip(&names) {
                *foreign += u64::from(spool.routing.is_foreign(record, name));
            }
        })?;
        // The portal of a damaged record is unknown.
        let damaged = end.saturating_sub(known.max(last.base)).saturating_sub(counted);
        counts.tally(Column::Accepted(0)).add(OTHER, damaged);
        Ok(Returned { offset, end, counts, foreign, routed })
    }
}
