//! The segment that is being written.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::blocks::BlockWriter;
use crate::spool::format::{ChecksumSeed, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::spool::fs::{File, FileId, Open, refuses_direct, write_full};
use crate::spool::lane::Lane;
use crate::spool::lane_files::MAKING;

/// The smallest segment that is tried if the disk has no room for a whole one, in bytes.
const SEGMENT_BYTES_TRIED_MIN: u64 = 64 << 10;

/// An open segment, and the end of its records.
pub struct Segment {
    file: Arc<dyn File>,
    /// Writes around the page cache, where each write is durable. `None`: writes go into the cache.
    blocks: Option<BlockWriter>,
    /// The identity of the file, by which it is checked to be still at its path.
    pub id: FileId,
    pub number: u64,
    pub seed: ChecksumSeed,
    pub recycled: bool,
    /// The size at which the segment is closed. A group is never split, so it may grow beyond it.
    pub capacity: u64,
    /// The offset of the next record.
    pub offset: u64,
    /// The offset up to which the segment was synced by this thread.
    synced: u64,
}

impl Segment {
    /// Makes segment `number` from a spare of the lane or a new file. It begins with `records`,
    /// which have sequence numbers from `base_seq` on. The header and these records are durable
    /// before the file gets the name of a segment, because with the name it cuts the segment before
    /// it, which may hold the same records. A crash before that leaves a file with another name.
    ///
    /// `direct` says whether to write around the page cache. It is reset if the file system refuses
    /// that.
    pub fn create(
        lane: &Lane,
        number: u64,
        base_seq: u64,
        bytes: u64,
        records: &[u8],
        direct: &mut bool,
    ) -> io::Result<Segment> {
        let making = lane.dir().join(MAKING);
        let spare = lane.take_spare();
        let recycled = spare.is_some_and(|spare| lane.fs().rename(&spare, &making).is_ok());
        let how = if recycled { Open::Write } else { Open::Create };
        let file = lane.fs().open(&making, how)?;
        let capacity = if recycled { file.bytes()? } else { allocate(&*file, bytes)? };
        let header = SegmentHeader {
            lane: lane.id,
            number,
            base_seq,
            salt: lane.salt,
            previous: lane.state().segment_index.last_number(),
            recycled,
        };
        let begin = [&header.encode(), records];
        let (file, blocks) = match begin_direct(lane, &making, &begin, direct)? {
            Some((file, blocks)) => (file, Some(blocks)),
            None => {
                write_full(&*file, begin[0], 0)?;
                write_full(&*file, begin[1], SEGMENT_HEADER_BYTES as u64)?;
                (file, None)
            }
        };
        // This also makes the size of a new file durable.
        file.sync_data()?;
        let id = file.id()?;
        let path = lane.segment_path(number);
        let named = lane.fs().rename(&making, &path).and_then(|()| lane.fs().sync_dir(lane.dir()));
        if let Err(error) = named {
            // The records may be refused now, and must not be found then.
            lane.discard_segment(number);
            return Err(error);
        }
        let offset = (SEGMENT_HEADER_BYTES + records.len()) as u64;
        let seed = ChecksumSeed::new(lane.salt, number);
        Ok(Segment { file, blocks, id, number, seed, recycled, capacity, offset, synced: offset })
    }

    /// Writes records after the others. After an error, the segment must be given up.
    pub fn write(&mut self, records: &[u8]) -> io::Result<()> {
        match &mut self.blocks {
            Some(blocks) => blocks.write(&*self.file, &[records], self.offset)?,
            None => write_full(&*self.file, records, self.offset)?,
        }
        self.offset += records.len() as u64;
        Ok(())
    }

    /// Whether written records are durable at once, and not in the page cache.
    pub fn is_direct(&self) -> bool {
        self.blocks.is_some()
    }

    /// The file, for a sync by another thread.
    pub fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    /// Makes all written records durable (`fdatasync`). After an error, the segment must be given
    /// up: the kernel may have marked pages as clean that it could not write, and a second sync
    /// would then succeed although they are lost.
    pub fn sync(&mut self) -> io::Result<()> {
        if !self.is_direct() {
            self.file.sync_data()?;
        }
        self.synced = self.offset;
        Ok(())
    }

    /// Syncs if at least `most` bytes are not yet on disk. If the kernel had a whole segment to
    /// write at a time, it would keep a core from answering requests.
    pub fn sync_beyond(&mut self, most: u64) -> io::Result<()> {
        if self.offset - self.synced >= most { self.sync() } else { Ok(()) }
    }

    /// Cuts the file after `bytes`, which also frees space on a full disk. An error is only logged,
    /// because the base of the next segment cuts this one in any case.
    pub fn cut(&self, bytes: u64) {
        if let Err(error) = self.file.set_len(bytes) {
            ::log::warn!("spool: segment {} cannot be truncated: {error}", self.number);
        }
    }
}

/// Opens the file once more, to write around the page cache, and writes its beginning. `None` if it
/// must be written through the cache.
fn begin_direct(
    lane: &Lane,
    path: &Path,
    begin: &[&[u8]],
    direct: &mut bool,
) -> io::Result<Option<(Arc<dyn File>, BlockWriter)>> {
    if !*direct {
        return Ok(None);
    }
    let mut blocks = BlockWriter::default();
    let file = lane.fs().open(path, Open::Direct);
    let begun = file.and_then(|file| blocks.write(&*file, begin, 0).map(|()| file));
    match begun {
        Ok(file) => Ok(Some((file, blocks))),
        Err(error) if refuses_direct(&error) => {
            *direct = false;
            ::log::info!(
                "spool: the file system takes no writes around its cache, so each group costs a \
                 write and an fdatasync: {error}"
            );
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reserves space for the segment, or for as much of it as the disk has.
fn allocate(file: &dyn File, bytes: u64) -> io::Result<u64> {
    let mut wanted = bytes;
    loop {
        match file.allocate(wanted) {
            Ok(()) => return Ok(wanted),
            Err(error) if is_full(&error) && wanted / 2 >= SEGMENT_BYTES_TRIED_MIN.min(bytes) => {
                file.set_len(0)?;
                wanted /= 2;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Whether there is no room for a file of this size: on the disk, or under a quota or limit.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
