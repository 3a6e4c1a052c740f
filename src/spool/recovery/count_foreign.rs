//! Counts the records of a lane that are foreign to an upstream, beyond those that its cursor
//! counts.
//!
//! A record that cannot be read is not counted. It is lost, or becomes readable later, and then the
//! reader that passes over it counts it.

use std::io;
use std::ops::Range;
use std::path::Path;

use crate::spool::fs::{Fs, Open};
use crate::spool::lane_files::segment_name;
use crate::spool::read::scanner::{Scanner, Step};
use crate::spool::routing::Routing;
use crate::spool::segment_index::{SegmentIndex, Span};

/// A segment and the range of its sequence numbers, for a scan without the lane's lock.
pub type Stretch = (Span, Range<u64>);

/// The segments that hold records from `from` on.
pub fn stretches(segment_index: &SegmentIndex, from: u64) -> Vec<Stretch> {
    let spans: Vec<Span> = segment_index.spans().copied().collect();
    let limit = |at: usize| spans.get(at + 1).map_or(segment_index.end(), |next| next.base);
    let all = spans.iter().enumerate().map(|(at, span)| (*span, span.base..limit(at)));
    all.filter(|(_, seqs)| seqs.end > from).collect()
}

/// Calls `each` with the number and the bytes of each sound record of a segment.
pub fn scan(
    fs: &dyn Fs,
    dir: &Path,
    salt: u64,
    (span, seqs): &Stretch,
    mut each: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    let file = fs.open(&dir.join(segment_name(span.number)), Open::Read)?;
    let mut scanner = Scanner::new(span.number, salt, seqs.start);
    loop {
        match scanner.step(&*file, span.bytes, seqs.end)? {
            Step::Record { seq, payload } => each(seq, &payload),
            Step::Gap { .. } => {}
            Step::Tail | Step::End => return Ok(()),
        }
    }
}

/// Calls `each` with the number and the bytes of each routed record from `from` on.
pub fn each_routed(
    fs: &dyn Fs,
    dir: &Path,
    salt: u64,
    stretches: &[Stretch],
    from: u64,
    routing: &Routing,
    mut each: impl FnMut(u64, &[u8]),
) {
    for stretch in stretches {
        let scanned = scan(fs, dir, salt, stretch, |seq, record| {
            if seq >= from && (routing.is_routed)(record) {
                each(seq, record);
            }
        });
        if let Err(error) = scanned {
            ::log::warn!(
                "spool: the events in segment {} of {} cannot be counted yet: {error}",
                stretch.0.number,
                dir.display()
            );
        }
    }
}
