//! One open file of the file system in memory.

use std::collections::BTreeSet;
use std::io;

use pixelgate::internals::spool::fs::{File, FileId};

use super::calls::{Call, Outcome};
use super::{Inode, Op, SECTOR_BYTES, SimFs, absent};

/// An open file. Dropping it releases its lock.
pub struct SimFile {
    pub fs: SimFs,
    pub inode: u64,
    pub handle: u64,
    pub is_direct: bool,
}

impl SimFile {
    /// Counts a call, which may be made to fail. A short one does half of its bytes.
    fn call(&self, call: Call, bytes: usize) -> io::Result<usize> {
        match self.fs.call(call)? {
            Outcome::Whole => Ok(bytes),
            Outcome::Short => Ok(bytes.div_ceil(2)),
            Outcome::Torn => unreachable!("only of a write"),
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inode) -> T) -> io::Result<T> {
        let mut disk = self.fs.alive()?;
        let inode = disk.inodes.get_mut(&self.inode).ok_or_else(absent)?;
        Ok(act(inode))
    }

    /// Makes these sectors durable, unless a test makes that fail.
    fn sync_sectors(&self, sectors: BTreeSet<usize>) -> io::Result<()> {
        while self.fs.alive()?.stalled {
            std::thread::yield_now();
        }
        let fault = self.fs.alive()?.fails(Op::Sync);
        let is_direct = self.is_direct;
        self.with(|inode| {
            for (at, sector) in sectors.into_iter().enumerate() {
                inode.dirty.remove(&sector);
                // A failed sync has written some, and dropped the others for good.
                if fault.is_none_or(|fault| (at * 37 + 11) % 256 < usize::from(fault.part)) {
                    inode.write_back(sector);
                } else if is_direct {
                    inode.read_back(sector);
                }
            }
        })?;
        fault.map_or(Ok(()), |fault| Err(io::Error::from_raw_os_error(fault.errno)))
    }

    /// Whether a write around the cache may be made so.
    fn check_direct(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let places = [offset as usize, buf.len(), buf.as_ptr().addr()];
        let is_whole = places.iter().all(|place| place.is_multiple_of(SECTOR_BYTES));
        if self.fs.alive()?.refuses_direct || !is_whole {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let most = self.call(Call::Read, buf.len())?;
        let buf = &mut buf[..most];
        if self.fs.alive()?.is_unreadable(self.inode, offset, buf.len()) {
            return Err(io::Error::from_raw_os_error(5));
        }
        if let Some(fault) = self.fs.alive()?.fails(Op::Read) {
            return Err(io::Error::from_raw_os_error(fault.errno));
        }
        let mut disk = self.fs.alive()?;
        let seen = &disk.inodes.get(&self.inode).ok_or_else(absent)?.seen;
        let from = (offset as usize).min(seen.len());
        let bytes = buf.len().min(seen.len() - from);
        buf[..bytes].copy_from_slice(&seen[from..from + bytes]);
        disk.bytes_read += bytes as u64;
        Ok(bytes)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let outcome = self.fs.call(Call::Write)?;
        let mut most = match outcome {
            Outcome::Whole | Outcome::Torn => buf.len(),
            Outcome::Short => buf.len().div_ceil(2),
        };
        if self.is_direct {
            self.check_direct(buf, offset)?;
            most = most.next_multiple_of(SECTOR_BYTES);
        }
        let buf = &buf[..most];
        if self.fs.alive()?.unwritable.contains(&self.inode) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let (fault, full, short) = {
            let mut disk = self.fs.alive()?;
            let fault = disk.fails(Op::Write);
            // Now and then a write is short without being wrong.
            let short = disk.roll(4) == 0;
            (fault, disk.full, short)
        };
        let is_direct = self.is_direct;
        let mut sectors = BTreeSet::new();
        let written = self.with(|inode| {
            let least = if is_direct { SECTOR_BYTES } else { 1 };
            let mut bytes = buf.len();
            if let Some(fault) = fault {
                bytes = bytes * usize::from(fault.part) / 256;
            } else if short && bytes > least {
                bytes = bytes / 2 + least;
            }
            if full {
                bytes = bytes.min(inode.room(offset as usize));
            }
            bytes -= bytes % least;
            let end = offset as usize + bytes;
            if inode.seen.len() < end {
                inode.seen.resize(end, 0);
            }
            inode.seen[offset as usize..end].copy_from_slice(&buf[..bytes]);
            if bytes > 0 {
                sectors.extend(offset as usize / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
                inode.dirty.extend(&sectors);
                inode.reserved.extend(&sectors);
            }
            bytes
        })?;
        if matches!(outcome, Outcome::Torn) {
            self.fs.lose_power();
            return Err(io::Error::from_raw_os_error(5));
        }
        if is_direct {
            self.sync_sectors(sectors)?;
        }
        match fault {
            Some(fault) => Err(io::Error::from_raw_os_error(fault.errno)),
            None if written == 0 && !buf.is_empty() => Err(io::ErrorKind::StorageFull.into()),
            None => Ok(written),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.call(Call::Sync, 0)?;
        let begun = self.fs.alive()?.begin_sync(self.inode);
        let dirty = self.with(|inode| inode.dirty.clone())?;
        self.sync_sectors(dirty)?;
        if let Some(begun) = begun {
            let mut disk = self.fs.alive()?;
            disk.syncs_ended = disk.syncs_ended.max(begun);
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.call(Call::SetLen, 0)?;
        if let Some(fault) = self.fs.alive()?.fails(Op::Names) {
            return Err(io::Error::from_raw_os_error(fault.errno));
        }
        self.with(|inode| inode.resize(bytes as usize))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if self.fs.alive()?.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.set_len(bytes)?;
        let sectors = (bytes as usize).div_ceil(SECTOR_BYTES);
        self.with(|inode| inode.reserved.extend(0..sectors))
    }

    fn bytes(&self) -> io::Result<u64> {
        self.call(Call::Size, 0)?;
        self.with(|inode| inode.seen.len() as u64)
    }

    fn id(&self) -> io::Result<FileId> {
        self.call(Call::Size, 0)?;
        Ok(FileId { device: 1, inode: self.inode })
    }

    fn try_lock(&self) -> io::Result<bool> {
        self.call(Call::Lock, 0)?;
        let handle = self.handle;
        self.with(|inode| {
            let mine = inode.locked_by.is_none_or(|owner| owner == handle);
            if mine {
                inode.locked_by = Some(handle);
            }
            mine
        })
    }

    fn is_unlocked(&self) -> io::Result<bool> {
        self.call(Call::Lock, 0)?;
        self.with(|inode| inode.locked_by.is_none())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut disk = self.fs.locked();
        disk.open_files -= 1;
        let inode = disk.inodes.get_mut(&self.inode);
        if let Some(inode) = inode.filter(|inode| inode.locked_by == Some(self.handle)) {
            inode.locked_by = None;
        }
    }
}
