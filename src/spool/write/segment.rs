//! The segment that is being written.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::blocks::BlockWriter;
use crate::spool::format::{ChecksumSeed, SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::spool::fs::{File, FileId, Open, refuses_direct, write_full};
use crate::spool::lane::Lane;
use crate::spool::lane_files::MAKING;

/// Smallest segment that is tried when the disk has no room for a whole one.
const SEGMENT_BYTES_TRIED_MIN: u64 = 64 << 10;

/// An open segment and how far it is good.
pub struct Segment {
    file: Arc<dyn File>,
    /// Writes around the page cache, where each write is durable. `None`: writes go into the cache.
    blocks: Option<BlockWriter>,
    /// Which file it is, to see whether it is still at its path.
    pub id: FileId,
    pub number: u64,
    pub seed: ChecksumSeed,
    pub recycled: bool,
    /// Where it is closed. Not a hard limit: a group is never split.
    pub capacity: u64,
    /// Where the next record goes.
    pub offset: u64,
    /// What is before it is on disk, by a sync of this thread.
    synced: u64,
}

impl Segment {
    /// Makes segment `number`, whose first records, from sequence number `base_seq` on, are
    /// `records`: a spare of the lane or a new file. Header and records are durable before the file
    /// has a segment's name, because with the name it cuts the segment before it, which may hold
    /// the same records. A crash on the way leaves a file whose name is not that of a segment.
    ///
    /// `direct`: it is written around the page cache. Reset where the file system refuses that.
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
        // The size as well, where the file is new.
        file.sync_data()?;
        let id = file.id()?;
        let path = lane.segment_path(number);
        let named = lane.fs().rename(&making, &path).and_then(|()| lane.fs().sync_dir(lane.dir()));
        if let Err(error) = named {
            // Its records may be refused now, and should then not be found.
            lane.discard_segment(number);
            return Err(error);
        }
        let offset = (SEGMENT_HEADER_BYTES + records.len()) as u64;
        let seed = ChecksumSeed::new(lane.salt, number);
        Ok(Segment { file, blocks, id, number, seed, recycled, capacity, offset, synced: offset })
    }

    /// Writes records behind the others. After an error the segment must be given up.
    pub fn write(&mut self, records: &[u8]) -> io::Result<()> {
        match &mut self.blocks {
            Some(blocks) => blocks.write(&*self.file, &[records], self.offset)?,
            None => write_full(&*self.file, records, self.offset)?,
        }
        self.offset += records.len() as u64;
        Ok(())
    }

    /// Whether what is written is durable, and not in the page cache.
    pub fn is_direct(&self) -> bool {
        self.blocks.is_some()
    }

    /// The file, for a sync by another thread.
    pub fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    /// `fdatasync`, unless all that was written is durable. After an error the segment must be
    /// given up: what the kernel could not write it may have marked clean, and a second sync would
    /// succeed and lie.
    pub fn sync(&mut self) -> io::Result<()> {
        if !self.is_direct() {
            self.file.sync_data()?;
        }
        self.synced = self.offset;
        Ok(())
    }

    /// Syncs if at least `most` bytes are not yet on disk. If the kernel wrote a whole segment at a
    /// time, it would keep a core from answering.
    pub fn sync_beyond(&mut self, most: u64) -> io::Result<()> {
        if self.offset - self.synced >= most { self.sync() } else { Ok(()) }
    }

    /// Cuts what is behind `bytes`: the best that can be done for a segment that was given up,
    /// which also gives a full disk its room back. The next segment's base cuts it in any case.
    pub fn cut(&self, bytes: u64) {
        if let Err(error) = self.file.set_len(bytes) {
            ::log::warn!("spool: segment {} could not be cut: {error}", self.number);
        }
    }
}

/// Opens the file once more, to write around the page cache, and writes its beginning. `None` if it
/// is to be written through the cache.
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

/// Reserves the segment, or as much of it as the disk has.
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
