//! Restores the positions of the upstreams in a lane that is taken over.

use std::io;

use crate::spool::metering::format::Marks;
use crate::spool::read::cursor::{Cursor, POSITIONS_MAX};
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::routing::Routing;
use crate::spool::segment_index::SegmentIndex;

/// Whether the cursor does not name each of these upstreams.
pub(super) fn has_new(cursor: Option<&Cursor>, upstreams: &[String]) -> bool {
    let known = cursor.map_or(&[][..], |cursor| &cursor.positions);
    upstreams.iter().any(|name| known.iter().all(|position| position.name != *name))
}

/// The newer one of a position and the lane's counts by portal. The latter are written to disk as
/// the cursor is, so after a power loss either may be the newer one.
pub(super) fn resume_marks(
    position: ConsumerPosition,
    cursor: Option<&Cursor>,
    marks: Option<&Marks>,
) -> ConsumerPosition {
    let name = &position.name;
    // An upstream that the cursor does not name is new, or was forgotten and configured again.
    let is_known = cursor.is_some_and(|cursor| cursor.positions.iter().any(|p| p.name == *name));
    let marks = marks.filter(|_| is_known);
    match marks.and_then(|marks| marks.positions.iter().find(|mark| mark.name == *name)) {
        Some(mark) => position.or_newer(mark.start, mark.low, mark.below, mark.runs().clone()),
        None => position,
    }
}

/// Restores the positions of the upstreams, and seals the index at its end. The configured
/// upstreams come first, in their order. Removed upstreams for which events wait in this lane
/// follow. Then, as far as there is room, come removed upstreams that have every event of the lane.
/// Their positions are kept because, when configured again, they must not get events a second time
/// that another upstream still keeps here.
///
/// An upstream that the cursor does not name begins at the oldest record that any upstream of the
/// lane still waited for. So no pending event is lost when an upstream is renamed, and a new
/// upstream gets no events that all others have. Without a cursor, each upstream begins at the
/// oldest record that is left, or at the oldest one that had not ended by the counts by portal.
/// `resume` adds acknowledgements newer than the cursor.
pub(super) fn restore_positions(
    mut segment_index: SegmentIndex,
    cursor: Option<&Cursor>,
    marks: Option<&Marks>,
    upstreams: &[String],
    resume: impl Fn(ConsumerPosition) -> io::Result<ConsumerPosition>,
) -> io::Result<(SegmentIndex, Vec<ConsumerPosition>)> {
    let known = cursor.map_or(&[][..], |cursor| &cursor.positions);
    let oldest = segment_index.spans().next().map_or(segment_index.end(), |span| span.base);
    let low = marks.filter(|_| cursor.is_none()).map_or(oldest, Marks::low);
    let lows = known.iter().map(|position| position.low);
    let start = lows.min().unwrap_or(oldest.min(low));
    let position = |name: &String| {
        let found = known.iter().find(|position| position.name == *name);
        resume(found.cloned().unwrap_or_else(|| ConsumerPosition::new(name, start)))
    };
    let removed: Vec<_> = known.iter().filter(|p| !upstreams.contains(&p.name)).cloned().collect();
    let removed = removed.into_iter().map(&resume).collect::<io::Result<Vec<_>>>()?;
    let mut positions = upstreams.iter().map(position).collect::<io::Result<Vec<_>>>()?;
    // The ack file may be newer than the cursor and the counts by portal.
    let ends = positions.iter().chain(&removed).map(ConsumerPosition::end);
    let end = ends.fold(segment_index.end(), u64::max);
    segment_index.seal(end);
    let (waiting, done): (Vec<_>, Vec<_>) =
        removed.into_iter().partition(|position| position.low < end);
    positions.extend(waiting);
    let room = POSITIONS_MAX.saturating_sub(positions.len());
    positions.extend(done.into_iter().take(room));
    Ok((segment_index, positions))
}

/// Completes each position's count of foreign records up to the end of the lane. `scan` visits the
/// routed records from a number on. Returns whether the lane holds any.
///
/// Records that the cursor counts are not read again. For an upstream that the cursor does not
/// name, all records are counted.
pub(super) fn restore_foreign(
    positions: &mut [ConsumerPosition],
    cursor: Option<&Cursor>,
    routing: &Routing,
    scan: impl Fn(u64, &mut dyn FnMut(u64, &[u8])),
) -> bool {
    let mut routed = cursor.is_some_and(|cursor| cursor.routed);
    // Without a cursor, no record is counted. A version without routed records wrote none of them.
    let counted_to = cursor.map_or(0, |cursor| cursor.end.unwrap_or(u64::MAX));
    let is_known = |name: &str| {
        cursor.is_some_and(|cursor| cursor.positions.iter().any(|known| known.name == name))
    };
    // The number from which each position counts, and whether ended records are counted already.
    let begin = |position: &mut ConsumerPosition| {
        if !routed || is_known(&position.name) {
            return (counted_to.max(position.start), false);
        }
        position.foreign = position.passed_over();
        (position.low, true)
    };
    let begins: Vec<(u64, bool)> = positions.iter_mut().map(begin).collect();
    let from = begins.iter().map(|(from, _)| *from).min().unwrap_or(u64::MAX);
    scan(from, &mut |seq, record| {
        routed = true;
        for (position, (from, anew)) in positions.iter_mut().zip(&begins) {
            let is_counted = seq < *from || *anew && position.has_ended(seq);
            let is_foreign = !is_counted && !(routing.names)(record, &position.name);
            position.foreign += u64::from(is_foreign);
        }
    });
    routed
}
