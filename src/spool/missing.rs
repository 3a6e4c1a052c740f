//! Reports segments whose files are missing although a lane is known to have had them.
//!
//! Their events wait, because the files may come back: see `recovery/returned.rs`.

use std::io;
use std::sync::Arc;

use super::faults::DiskFaults;
use super::fs::is_absent;
use super::lane::Lane;
use crate::telemetry::faults::FaultKind;

/// Raises a fault for each missing segment of these lanes, which are all lanes that this process
/// holds, and clears the faults of segments that are back, delivered or given up.
pub fn report(lanes: &[Arc<Lane>], faults: &DiskFaults) {
    let paths: Vec<String> = lanes.iter().flat_map(|lane| paths(lane)).collect();
    let error = io::Error::new(io::ErrorKind::NotFound, "the file is missing");
    for path in &paths {
        _ = faults.raise(FaultKind::SpoolSegment, path, "reading", &error);
    }
    // The subjects of faults of single upstreams end with the upstream.
    let is_missing =
        |subject: &str| !subject.ends_with(".seg") || paths.iter().any(|p| p == subject);
    faults.retain(FaultKind::SpoolSegment, is_missing);
}

/// The paths of a lane's missing segments that hold records for which an upstream waits.
fn paths(lane: &Lane) -> Vec<String> {
    let state = lane.state();
    if state.positions.is_empty() {
        return Vec::new();
    }
    let (low, index) = (state.low(), &state.segment_index);
    let mut numbers = index.missing(low);
    numbers.extend(state.vanished.iter().filter(|number| index.is_needed(**number, low)));
    drop(state);
    let paths = numbers.into_iter().map(|number| lane.segment_path(number));
    let missing = paths.filter(|path| is_absent(&lane.fs().id(path)));
    missing.map(|path| path.display().to_string()).collect()
}
