//! Whose a lane is: its number and its salt, which its identity, its cursor and each of its
//! segments have.

use std::io;
use std::path::Path;

use crate::spool::format::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::spool::fs::{File, Fs, Open, read_full};
use crate::spool::lane_files::segment_number;
use crate::spool::read::cursor::Cursor;

/// Checks that the folder of a lane was not renamed or copied: its segments would not count as
/// segments of the lane that its name says, and its events would be lost.
pub(super) fn check_name(identity: Option<&SegmentHeader>, id: u64) -> io::Result<()> {
    match identity {
        Some(identity) if identity.lane != id => {
            let own = identity.lane;
            let what = format!("the folder is that of lane {own}: give it its name again");
            Err(io::Error::other(what))
        }
        _ => Ok(()),
    }
}

/// The salt of a lane. The identity, each cursor slot and each segment have it, and any of them is
/// enough.
pub(super) fn salt(
    fs: &dyn Fs,
    dir: &Path,
    id: u64,
    identity: Option<&dyn File>,
    cursor: Option<&Cursor>,
) -> io::Result<u64> {
    if let Some(identity) = identity
        && let Some(header) = header(identity)?
        && header.lane == id
    {
        return Ok(header.salt);
    }
    if let Some(cursor) = cursor {
        return Ok(cursor.salt);
    }
    for entry in fs.list(dir)? {
        if segment_number(&entry.name).is_some()
            && let Some(header) = header(&*fs.open(&dir.join(&entry.name), Open::Read)?)?
            && header.lane == id
        {
            return Ok(header.salt);
        }
    }
    Ok(0)
}

/// The header of a segment or of an identity. `None`: it is damaged.
pub(crate) fn header(file: &dyn File) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let filled = read_full(file, &mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes[..filled]))
}
