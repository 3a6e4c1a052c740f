//! The file `acks-<upstream>`: the acknowledgements of one upstream in one lane, written with each
//! acknowledgement and not synced.
//!
//! The cursor file is synced and up to a second old. This file is in the page cache at once, so
//! that after a kill only the batches that were in flight are sent again (SPEC 7). Each upstream
//! has a file of its own, so that the write for one never waits for the write for another. If the
//! file is lost, the acknowledgements that the cursor does not hold are lost.
//!
//! The file has three slots, and the newest sound one counts. A slot that was synced is not written
//! again before another one is synced, because a power loss may tear the other two. Small slots are
//! side by side, and large ones follow them. The bytes of a slot, little-endian:
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 40 | magic `pxgacks1`, or `pxgacks2` if foreign records were passed over; see `slot.rs` |
//! | 40 | 2 + name | the upstream |
//! | | 5 × 8 | start, low, delivered, dead, lost: as in the cursor file |
//! | | 8 | only in `pxgacks2`: foreign, as in the cursor file |
//! | | | the runs above `low`: see [`Runs::encode`] |

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counts::Counts;
use super::ledger::ConsumerPosition;
use super::runs::Runs;
use super::slot::{self, Kind, LaneKey, Opened};
use crate::spool::format::u64_at;
use crate::spool::fs::{File, Fs, Open, read_full, write_full};

const KIND: Kind = Kind { magic: *b"pxgacks1", magic_routed: *b"pxgacks2" };
const HEADER_BYTES: usize = 42;
const WORDS: usize = 5;
const SLOTS: usize = 3;
/// The size of a small slot, in bytes.
const SMALL_BYTES: usize = 4 << 10;
/// The size of a large slot, in bytes. Records whose runs do not fit are read again after a crash.
const LARGE_BYTES: usize = 1 << 20;
/// The shortest time between two writes of a large slot. Encoding it with each acknowledgement
/// would cost more than the few batches that are repeated after a kill.
const LARGE_PAUSE: Duration = Duration::from_millis(100);

/// The open file of one upstream in one lane.
pub struct AckFile {
    file: Arc<dyn File>,
    generation: u64,
    /// The slot that was written last.
    newest: usize,
    /// The slot that was synced last.
    synced: Option<usize>,
    /// When the last large slot was written.
    large_at: Option<Instant>,
}

/// The path of the file. Its name is short, however long the upstream's name is. If the checksums
/// of two names were equal, the upstreams would overwrite each other's file, which costs only
/// repetitions after a kill.
fn path(dir: &Path, upstream: &str) -> PathBuf {
    dir.join(format!("acks-{:08x}", crc32c::crc32c(upstream.as_bytes())))
}

impl AckFile {
    /// Opens the file to write it.
    pub fn open(fs: &dyn Fs, dir: &Path, key: LaneKey, upstream: &str) -> io::Result<AckFile> {
        let file = fs.open(&path(dir, upstream), Open::Ensure)?;
        let newest = newest(&*file, key, upstream)?;
        let (newest, generation) = newest.map_or((0, 0), |found| (found.slot, found.generation));
        Ok(AckFile { file, generation, newest, synced: None, large_at: None })
    }

    /// Whether the acknowledgements must be written now, and not together with later ones: see
    /// [`LARGE_PAUSE`].
    pub fn is_due(&self) -> bool {
        self.large_at.is_none_or(|at| at.elapsed() >= LARGE_PAUSE)
    }

    /// The bytes of the next slot, with the acknowledgements of this position.
    pub fn encode(&self, key: LaneKey, position: &ConsumerPosition) -> Vec<u8> {
        encode(self.generation + 1, key, position)
    }

    /// Writes the next slot.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let free = |slot: &usize| *slot != self.newest && Some(*slot) != self.synced;
        let slot = (0..SLOTS).find(free).unwrap_or(0);
        write_full(&*self.file, bytes, place(slot, bytes.len()))?;
        self.generation += 1;
        self.newest = slot;
        self.large_at = (bytes.len() > SMALL_BYTES).then(Instant::now);
        Ok(())
    }

    /// The file to sync, the slot that is durable after the sync, and whether the name of the file
    /// is durable already.
    pub fn newest(&self) -> (Arc<dyn File>, usize, bool) {
        (Arc::clone(&self.file), self.newest, self.synced.is_some())
    }

    /// Records that the slot is durable. It is not written again until another one is durable.
    pub fn keep(&mut self, slot: usize) {
        self.synced = Some(slot);
    }
}

/// Adds to a position the acknowledgements in the upstream's file that the cursor does not hold. A
/// file that is absent or damaged changes nothing.
pub fn resume(
    fs: &dyn Fs,
    dir: &Path,
    key: LaneKey,
    position: ConsumerPosition,
) -> io::Result<ConsumerPosition> {
    let file = match fs.open(&path(dir, &position.name), Open::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(position),
        other => other?,
    };
    let Some(found) = newest(&*file, key, &position.name)? else { return Ok(position) };
    // The cursor is newer if the file was not written or was torn, or if a version of this program
    // ran that knows the cursor only.
    Ok(position.or_newer(found.start, found.low, found.below, found.runs))
}

/// The content of a slot.
struct SlotContent {
    slot: usize,
    generation: u64,
    start: u64,
    low: u64,
    below: Counts,
    runs: Runs,
}

fn place(slot: usize, bytes: usize) -> u64 {
    let at = match bytes > SMALL_BYTES {
        false => slot * SMALL_BYTES,
        true => SLOTS * SMALL_BYTES + slot * LARGE_BYTES,
    };
    at as u64
}

fn newest(file: &dyn File, key: LaneKey, upstream: &str) -> io::Result<Option<SlotContent>> {
    let mut newest: Option<SlotContent> = None;
    for slot in 0..SLOTS {
        for size in [SMALL_BYTES, LARGE_BYTES] {
            let mut bytes = vec![0; size];
            let filled = read_full(file, &mut bytes, place(slot, size))?;
            if let Some(found) = decode(&bytes[..filled], slot, key, upstream)
                && newest.as_ref().is_none_or(|newest| newest.generation < found.generation)
            {
                newest = Some(found);
            }
        }
    }
    Ok(newest)
}

fn encode(generation: u64, (lane, salt): LaneKey, position: &ConsumerPosition) -> Vec<u8> {
    let routed = position.passed_over() > 0;
    let mut out = KIND.begin(routed, generation, (lane, salt));
    out.extend_from_slice(&(position.name.len() as u16).to_le_bytes());
    out.extend_from_slice(position.name.as_bytes());
    let Counts { delivered, dead, lost, foreign, .. } = position.below;
    let words = [position.start, position.low, delivered, dead, lost, foreign];
    for word in &words[..WORDS + usize::from(routed)] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    // Records whose runs do not fit are read again after a crash.
    _ = position.runs().encode(position.low, routed, LARGE_BYTES - out.len(), &mut out);
    slot::seal(&mut out);
    out
}

fn decode(bytes: &[u8], slot: usize, key: LaneKey, upstream: &str) -> Option<SlotContent> {
    let Opened { whole, routed, generation, key: found_key } = KIND.open(bytes)?;
    let header = whole.get(..HEADER_BYTES)?;
    let name_bytes = usize::from(u16::from_le_bytes([header[40], header[41]]));
    let name = whole.get(HEADER_BYTES..HEADER_BYTES + name_bytes)?;
    let words = whole.get(HEADER_BYTES + name_bytes..)?;
    let (words, runs) = words.split_at_checked(8 * (WORDS + usize::from(routed)))?;
    if name != upstream.as_bytes() || found_key != key {
        return None;
    }
    let [start, low, delivered, dead, lost] = [0, 8, 16, 24, 32].map(|at| u64_at(words, at));
    let foreign = if routed { u64_at(words, 40) } else { 0 };
    Some(SlotContent {
        slot,
        generation,
        start,
        low,
        below: Counts { accepted: 0, delivered, dead, lost, foreign },
        runs: Runs::decode(low, routed, runs)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::fs::SystemFs;
    use crate::spool::read::counts::Ack;

    const KEY: LaneKey = (3, 4);

    fn write(file: &mut AckFile, position: &ConsumerPosition) {
        file.write(&file.encode(KEY, position)).expect("writes");
    }

    /// Ten records of 30 are out, those in `acks` are acknowledged.
    fn position(acks: &[u64]) -> ConsumerPosition {
        let mut position = ConsumerPosition::new("collector", 1);
        position.hand_out(29);
        acks.iter().for_each(|&seq| position.settle(seq..seq + 1, Ack::Delivered));
        position.advance();
        position
    }

    fn many(runs: u64) -> ConsumerPosition {
        let mut position = ConsumerPosition::new("collector", 1);
        position.hand_out(3 * runs as usize);
        (1..=runs).for_each(|n| position.settle(2 * n..2 * n + 1, Ack::Delivered));
        position
    }

    fn read(dir: &Path) -> ConsumerPosition {
        let position = ConsumerPosition::new("collector", 1);
        resume(&SystemFs, dir, KEY, position).expect("reads")
    }

    #[test]
    fn what_was_written_last_is_taken_over_whatever_its_size() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(read(dir.path()).runs().len(), 0);
        for acks in [&[1, 5][..], &[1, 5, 6, 9], &[1, 2, 5, 6, 9]] {
            // Opened anew each time, as after a crash.
            let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
            write(&mut file, &position(acks));
            let (now, expect) = (read(dir.path()), position(acks));
            assert_eq!((now.low, now.below), (expect.low, expect.below));
            assert_eq!(format!("{:?}", now.runs()), format!("{:?}", expect.runs()));
        }
        let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
        write(&mut file, &many(5_000));
        assert_eq!(read(dir.path()).runs().len(), 5_000);
        write(&mut file, &position(&[1, 2, 3]));
        assert_eq!((read(dir.path()).low, read(dir.path()).runs().len()), (4, 0));
    }

    #[test]
    fn the_bound_of_runs_fits_into_a_slot() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
        let runs = crate::spool::read::ledger::RUNS_MAX;
        write(&mut file, &many(runs as u64));
        assert_eq!(read(dir.path()).runs().len(), runs);
    }

    #[test]
    fn a_synced_slot_stands_until_another_is_synced() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
        write(&mut file, &position(&[2]));
        let (_, slot, _) = file.newest();
        file.keep(slot);
        for acks in [&[2, 4][..], &[2, 4, 6], &[2, 4, 6, 8]] {
            write(&mut file, &position(acks));
            assert_ne!(file.newest, slot);
        }
        // A power loss tears both others.
        for torn in (0..SLOTS).filter(|torn| *torn != slot) {
            file.file.write_at(&[0xff; 50], place(torn, 0)).expect("writes");
        }
        assert_eq!(read(dir.path()).runs().len(), 1);
    }

    #[test]
    fn a_flipped_bit_another_lane_and_another_upstream_count_for_nothing() {
        let bytes = encode(1, KEY, &position(&[1, 5]));
        assert!(decode(&bytes, 0, KEY, "collector").is_some());
        assert!(decode(&bytes, 0, (3, 5), "collector").is_none());
        assert!(decode(&bytes, 0, KEY, "collectos").is_none());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, 0, KEY, "collector").is_none(), "bit {bit}");
        }
    }

    #[test]
    fn foreign_records_that_were_passed_over_are_taken_over() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
        let mut expect = position(&[1, 5]);
        for passed in [6..8, 2..4] {
            expect.pass_over(passed);
            expect.advance();
            write(&mut file, &expect);
            let now = read(dir.path());
            assert_eq!((now.low, now.below), (expect.low, expect.below));
            assert_eq!(format!("{:?}", now.runs()), format!("{:?}", expect.runs()));
        }
        assert_eq!((expect.low, expect.below.foreign, expect.passed_over()), (4, 2, 4));
    }

    #[test]
    fn a_cursor_that_knows_more_than_the_file_stands() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
        write(&mut file, &position(&[1, 5]));
        let newer = position(&[1, 5, 6, 7, 9]);
        let now = resume(&SystemFs, dir.path(), KEY, newer.clone()).expect("reads");
        assert_eq!(format!("{:?}", now.runs()), format!("{:?}", newer.runs()));
    }

    #[test]
    fn a_cursor_that_went_on_without_the_file_keeps_its_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut file = AckFile::open(&SystemFs, dir.path(), KEY, "collector").expect("opens");
        write(&mut file, &position(&[1, 5, 6, 9, 12]));
        // An older version has delivered up to 9 and knows nothing of what is above.
        let below = Counts { delivered: 8, ..Counts::default() };
        let cursor = ConsumerPosition::new("collector", 1).resume(9, below, Runs::default());
        let now = resume(&SystemFs, dir.path(), KEY, cursor.expect("sound")).expect("reads");
        assert_eq!((now.low, now.below.delivered), (10, 9));
        assert_eq!(now.next(), 10..12);
    }
}
