//! Creates a lane: its folder and its small files.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::format::SegmentHeader;
use super::fs::{File, Fs, Open, write_full};
use super::lane::Lane;
use super::lane_files::{CURSOR, IDENTITY, lane_dir, remove_lane};
use super::metering::journal::Journal;
use super::read::cursor::CursorFile;
use super::read::ledger::ConsumerPosition;
use super::segment_index::SegmentIndex;

/// The most attempts to lock a new lane, 1 ms apart.
const LOCK_TRIES: u32 = 1_000;

/// The value of `previous` in the identity of a lane that has a file of counts by portal.
pub const METERED: u64 = 1;

impl Lane {
    /// Creates a lane with its folder, lock, identity, cursor and counts, and makes all of it
    /// durable. If that fails, the folder is removed as far as the disk allows. `since_ms` is the
    /// time from which its counts by portal are complete, see `metering/`.
    pub fn create(
        fs: &Arc<dyn Fs>,
        root: &Path,
        id: u64,
        salt: u64,
        upstreams: &[String],
        since_ms: u64,
    ) -> io::Result<Lane> {
        let dir = lane_dir(root, id);
        Lane::create_in(&dir, fs, (root, id), salt, upstreams, since_ms)
            .inspect_err(|_| _ = remove_lane(&**fs, &dir))
    }

    fn create_in(
        dir: &Path,
        fs: &Arc<dyn Fs>,
        (root, id): (&Path, u64),
        salt: u64,
        upstreams: &[String],
        since_ms: u64,
    ) -> io::Result<Lane> {
        let dir = dir.to_owned();
        fs.create_dir_all(&dir)?;
        let lock = fs.open(&dir.join(IDENTITY), Open::Create)?;
        take_lock(&*lock)?;
        // The identity has the form of a segment's header with the number 0, which no segment has.
        let identity = SegmentHeader {
            lane: id,
            number: 0,
            base_seq: 1,
            salt,
            previous: METERED,
            recycled: false,
        };
        write_full(&*lock, &identity.encode(), 0)?;
        lock.sync_data()?;
        let (cursor, _) = CursorFile::load(fs.open(&dir.join(CURSOR), Open::Create)?)?;
        let journal = Journal::create(&**fs, &dir, (id, salt), since_ms)?;
        let positions = upstreams.iter().map(|name| ConsumerPosition::new(name, 1)).collect();
        let lane = Lane::assemble(
            Arc::clone(fs),
            (id, dir),
            salt,
            lock,
            (cursor, journal),
            SegmentIndex::new(1),
            positions,
        );
        // Writes both slots, so that a later write needs no further room, and a lane can be trimmed
        // on a full disk.
        lane.save_cursor()?;
        lane.save_cursor()?;
        fs.sync_dir(lane.dir())?;
        fs.sync_dir(root)?;
        Ok(lane)
    }
}

/// Locks a new lane. Another process takes this lock only for a moment, to check whether the lane
/// is locked.
fn take_lock(lock: &dyn File) -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        if lock.try_lock()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    Err(io::Error::other("another process keeps the new lane locked"))
}
