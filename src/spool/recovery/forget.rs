//! Gives up the events that wait for an upstream which is not configured any more, for the command
//! `pixelgate spool forget`.
//!
//! A running process has the positions of all upstreams in memory and writes them to the cursors
//! each second. So its lanes cannot be changed from outside, and no process may use the spool.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::adoption::{lane_ids, lock_spool};
use super::living::Reading;
use super::quarantine::Quarantine;
use super::recover::{Adoption, AdoptionInputs, adopt};
use super::snapshot::LaneSnapshot;
use crate::clock::SystemClock;
use crate::spool::fs::{Fs, Open, SystemFs};
use crate::spool::lane_files::{CURSOR, IDENTITY, ignore_absent, lane_dir, segment_number};
use crate::spool::metering::Metering;
use crate::spool::metering::book::Book;
use crate::spool::read::cursor::{Cursor, CursorFile};
use crate::spool::routing::Routing;
use crate::telemetry::faults::Faults;

/// The lanes and events that [`forget`] gave up.
///
/// ```
/// use pixelgate::tools::forget::Forgotten;
///
/// fn line(forgotten: Forgotten) -> String {
///     format!("{} events in {} lanes are given up", forgotten.pending, forgotten.lanes)
/// }
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// The lanes that had a position of the upstream, or its totals.
    pub lanes: u64,
    /// The events that waited for the upstream.
    pub pending: u64,
}

/// Why an upstream could not be forgotten.
///
/// ```
/// use pixelgate::tools::forget::ForgetError;
///
/// assert_eq!(ForgetError::Running.to_string(), "an edge uses this spool: stop it first");
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// A process uses the spool.
    #[error("an edge uses this spool: stop it first")]
    Running,
    /// Reading or writing a file failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Removes the position and the totals of an upstream from every lane. If a lane has no other
/// upstream, its events are removed as well; its totals by portal stay until the next start takes
/// them over. `routing` and `metering` say how to read the records.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let spool = dir.path();
/// use pixelgate::tools::forget::{Forgotten, forget};
/// use pixelgate::tools::{EVENT_METERING, EVENT_ROUTING};
///
/// let forgotten = forget(spool, "removed", &EVENT_ROUTING, &EVENT_METERING)?;
/// assert_eq!(forgotten, Forgotten::default());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`ForgetError::Running`] while a process uses the spool; nothing was changed then.
/// [`ForgetError::Io`] for errors of the file system, after which the command can be repeated.
pub fn forget(
    root: &Path,
    upstream: &str,
    routing: &Routing,
    metering: &Metering,
) -> Result<Forgotten, ForgetError> {
    let Some(_making_no_lanes) = lock_spool(&SystemFs, root)? else {
        return Err(ForgetError::Running);
    };
    let ids = lane_ids(&SystemFs, root)?;
    if is_used(root, &ids)? {
        return Err(ForgetError::Running);
    }
    let mut forgotten = Forgotten::default();
    for &id in &ids {
        let dir = lane_dir(root, id);
        let (mut file, cursor) = CursorFile::load(SystemFs.open(&dir.join(CURSOR), Open::Write)?)?;
        let Some(mut cursor) = cursor.filter(|cursor| cursor.lane == id) else { continue };
        let has_totals = cursor.removed.take(upstream).is_some();
        let place = cursor.positions.iter().position(|position| position.name == upstream);
        forgotten.lanes += u64::from(place.is_some() || has_totals);
        let Some(place) = place else {
            if has_totals {
                save_both(&mut file, &cursor)?;
            }
            continue;
        };
        cursor.positions.remove(place);
        let snapshot = LaneSnapshot::read(root, id)?;
        let counted = snapshot.counted_positions(routing);
        let position = counted.iter().find(|position| position.name == upstream);
        let pending = position.map(|position| position.totals(snapshot.end()).pending());
        forgotten.pending += pending.unwrap_or(0);
        let is_last = cursor.positions.is_empty();
        if is_last {
            count_portals(root, id, (upstream, routing, metering), &ids)?;
        }
        save_both(&mut file, &cursor)?;
        if is_last {
            remove_segments(&dir)?;
        }
    }
    SystemFs.sync_dir(root)?;
    Ok(forgotten)
}

/// Whether a process uses one of these lanes. No process can take one meanwhile, because that needs
/// the lock of the spool.
fn is_used(root: &Path, ids: &[u64]) -> io::Result<bool> {
    for id in ids {
        let identity = SystemFs.open(&lane_dir(root, *id).join(IDENTITY), Open::Read)?;
        if !identity.is_unlocked()? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Writes both slots, so that no older slot brings the position back.
fn save_both(file: &mut CursorFile, cursor: &Cursor) -> io::Result<()> {
    file.save(cursor)?;
    file.save(cursor).map(drop)
}

/// Counts the records of a lane by portal that its file does not count yet, before they are
/// removed.
fn count_portals(
    root: &Path,
    id: u64,
    (upstream, routing, metering): (&str, &Routing, &Metering),
    lanes: &[u64],
) -> io::Result<()> {
    let fs: Arc<dyn Fs> = Arc::new(SystemFs);
    let upstreams = [upstream.to_owned()];
    let book = Book::new(*metering, &upstreams, Arc::new(SystemClock), Faults::unregistered());
    let quarantine = Quarantine::open(Arc::clone(&fs), root);
    let reading = Reading { upstreams: &upstreams, lanes, book: &book, seen: &BTreeMap::new() };
    let with = AdoptionInputs { routing, quarantine: &quarantine, reading: &reading };
    match adopt(&fs, root, id, &with, true)? {
        Adoption::Adopted(lane) => lane.save_counts(&book),
        Adoption::Living { .. } => Err(io::Error::other("a process has taken the lane")),
    }
}

fn remove_segments(dir: &Path) -> io::Result<()> {
    for entry in SystemFs.list(dir)? {
        if segment_number(&entry.name).is_some() {
            ignore_absent(SystemFs.remove_file(&dir.join(entry.name)))?;
        }
    }
    SystemFs.sync_dir(dir)
}
