//! Which lanes a spool's folder holds, and taking over those whose process is gone.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::quarantine::Quarantine;
use super::recover::{Adopted, adopt};
use crate::spool::fs::{File, Fs, Open};
use crate::spool::lane::lane_id;

/// The lock of the spool's folder: held while lanes are made and adopted.
const SPOOL_LOCK: &str = "lock";

/// Takes the folder's lock; `None` while another process is making or adopting lanes.
pub fn lock_spool(fs: &dyn Fs, root: &Path) -> io::Result<Option<Arc<dyn File>>> {
    let lock = fs.open(&root.join(SPOOL_LOCK), Open::Ensure)?;
    Ok(lock.try_lock()?.then_some(lock))
}

/// The lanes that a spool's folder holds, oldest first.
pub fn lane_ids(fs: &dyn Fs, root: &Path) -> io::Result<Vec<u64>> {
    let entries = fs.list(root)?;
    let mut ids: Vec<u64> = entries
        .iter()
        .filter(|entry| entry.is_dir)
        .filter_map(|entry| lane_id(&entry.name))
        .collect();
    ids.sort_unstable();
    Ok(ids)
}

/// Adopts each of these lanes whose process is gone. Under the folder's lock, so that no lane
/// that is just being made looks dead. A lane that cannot be read is left for a later turn.
pub fn adopt_dead(
    fs: &Arc<dyn Fs>,
    root: &Path,
    ids: &[u64],
    upstreams: &[String],
    quarantine: &Quarantine,
) -> Vec<Adopted> {
    let mut lanes = Vec::new();
    for &id in ids {
        match adopt(fs, root, id, upstreams, quarantine) {
            Ok(Some(adopted)) => lanes.push(adopted),
            Ok(None) => {}
            // Removed by the process that had it, between the listing and the look.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => ::log::error!("spool: lane {id} cannot be read yet: {error}"),
        }
    }
    lanes
}
