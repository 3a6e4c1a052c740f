//! Finds out since when events wait in a lane that is not held, for the lag of each upstream.

use std::io;

use super::count_foreign::{Stretch, stretches};
use crate::spool::fs::Open;
use crate::spool::lane::Lane;
use crate::spool::read::ledger::ConsumerPosition;
use crate::spool::read::scanner::{Scanner, Step};
use crate::spool::routing::Routing;

/// For each of these upstreams, when the oldest event was received that waits for it in this lane,
/// in milliseconds since 1970, UTC. `None`: none waits. `received_ms` reads the time of a record.
///
/// Reads at most one segment for each upstream, so that a start does not take longer the more
/// events wait. An event in a later segment counts as received when the last record of this one
/// was. If no time can be read, the event counts as received at `now_ms`.
pub fn oldest_ms(
    lane: &Lane,
    upstreams: &[String],
    routing: &Routing,
    received_ms: fn(record: &[u8]) -> Option<u64>,
    now_ms: u64,
) -> Vec<Option<u64>> {
    let state = lane.state();
    let end = state.end();
    let positions = state.positions.iter().take(upstreams.len()).cloned().enumerate();
    let mut waiting: Vec<(usize, ConsumerPosition)> =
        positions.filter(|(_, position)| position.totals(end).pending() > 0).collect();
    let low = waiting.iter().map(|(_, position)| position.low).min().unwrap_or(end);
    let stretches = stretches(&state.segment_index, low);
    drop(state);
    let mut oldest = vec![None; upstreams.len()];
    for stretch in stretches {
        let begin_here = |(_, position): &mut (_, ConsumerPosition)| position.low < stretch.1.end;
        let mut here: Vec<_> = waiting.extract_if(.., begin_here).collect();
        if here.is_empty() {
            continue;
        }
        let mut last_ms = now_ms;
        // The readers report an error when they come to this segment.
        _ = scan(lane, &stretch, |seq, record| {
            last_ms = received_ms(record).unwrap_or(now_ms);
            here.retain(|(number, position)| {
                let waits = !position.has_ended(seq) && !routing.is_foreign(record, &position.name);
                if waits {
                    oldest[*number] = Some(last_ms);
                }
                !waits
            });
            !here.is_empty()
        });
        here.iter().for_each(|(number, _)| oldest[*number] = Some(last_ms));
    }
    waiting.iter().for_each(|(number, _)| oldest[*number] = Some(now_ms));
    oldest
}

/// Calls `each` with the records of a segment until it returns `false`.
fn scan(
    lane: &Lane,
    (span, seqs): &Stretch,
    mut each: impl FnMut(u64, &[u8]) -> bool,
) -> io::Result<()> {
    let file = lane.fs().open(&lane.segment_path(span.number), Open::Read)?;
    let mut scanner = Scanner::new(span.number, lane.salt, seqs.start);
    loop {
        match scanner.step(&*file, span.bytes, seqs.end)? {
            Step::Record { seq, payload } if !each(seq, &payload) => return Ok(()),
            Step::Record { .. } | Step::Gap { .. } => {}
            Step::Tail | Step::End => return Ok(()),
        }
    }
}
