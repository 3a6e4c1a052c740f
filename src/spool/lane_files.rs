//! The names of the files of a lane, and their removal.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::fs::Fs;

/// The file that has the lane's lock and a copy of its salt.
pub(super) const IDENTITY: &str = "lane";
/// The positions of the upstreams.
pub(super) const CURSOR: &str = "cursor";
/// The counts by portal.
pub(super) const PORTALS: &str = "portals";
/// The counts by portal while they are written anew.
pub(super) const PORTALS_ASIDE: &str = "portals.new";
/// The extension of a spare: a file whose blocks have been written before and from which a segment
/// is made. It is a trimmed segment, or holds zeros.
pub(super) const SPARE_EXTENSION: &str = "spare";
/// A segment that is not finished. No record in it was ever answered.
pub(super) const MAKING: &str = "making";
/// A spare that is not finished.
pub(super) const FILLING: &str = "filling";

/// Removes the unfinished files and the spares of a process that has ended. A file that cannot be
/// removed does no harm, and is removed with the lane.
pub(super) fn remove_leftovers(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    for entry in fs.list(dir)? {
        let path = dir.join(&entry.name);
        let is_spare = path.extension().is_some_and(|extension| extension == SPARE_EXTENSION);
        let is_unfinished = [MAKING, FILLING, PORTALS_ASIDE].iter().any(|name| entry.name == *name);
        if is_spare || is_unfinished {
            _ = fs.remove_file(&path);
        }
    }
    Ok(())
}

/// Removes the folder of a lane. The identity is removed last, because it has the lock.
pub(super) fn remove_lane(fs: &dyn Fs, dir: &Path) -> io::Result<()> {
    for entry in fs.list(dir)? {
        if entry.name != IDENTITY {
            ignore_absent(fs.remove_file(&dir.join(entry.name)))?;
        }
    }
    ignore_absent(fs.remove_file(&dir.join(IDENTITY)))?;
    fs.remove_dir(dir)
}

/// The result of a removal, which also succeeds if the file did not exist.
pub(super) fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The folder of a lane.
pub(super) fn lane_dir(root: &Path, id: u64) -> PathBuf {
    root.join(lane_name(id))
}

fn lane_name(id: u64) -> String {
    format!("lane-{id:08}")
}

/// The number of the lane whose folder has this name.
pub(super) fn lane_id(name: &OsStr) -> Option<u64> {
    let id = name.to_str()?.strip_prefix("lane-")?.parse().ok()?;
    // Other spellings of a number are names of other files.
    (name == lane_name(id).as_str()).then_some(id)
}

/// The folder of damaged bytes, below the spool's own.
pub(super) const QUARANTINE: &str = "quarantine";

/// Whether the spool makes a folder of this name below its own.
pub fn is_own_folder(name: &OsStr) -> bool {
    name == QUARANTINE || lane_id(name).is_some()
}

/// The file of a segment.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:010}.seg")
}

/// The number of the segment in a file of this name.
pub(super) fn segment_number(name: &OsStr) -> Option<u64> {
    let number = name.to_str()?.strip_suffix(".seg")?.parse().ok()?;
    (name == segment_name(number).as_str()).then_some(number)
}
