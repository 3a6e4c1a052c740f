//! The spool stores accepted events on disk, from before their answer until every upstream has
//! acknowledged them (SPEC 6).
//!
//! It stores bytes and knows no events: it does not encode, batch or deliver them. It does not
//! repair what a disk has damaged, but skips the damage and reports it. It is not built on a
//! database, because no crate offers appends from many threads below a microsecond, trimming in
//! order, and several processes at once. It uses `write` and not `mmap`, so that a full disk is an
//! error before the answer and not a SIGBUS.
//!
//! # Files
//!
//! ```text
//! <dir>/lock                         locked (flock) while lanes are created and adopted
//! <dir>/lane-00000001/lane           identity; locked (flock) while the lane's process lives
//! <dir>/lane-00000001/cursor         two slots, see `read/cursor.rs`
//! <dir>/lane-00000001/acks-*         one for each upstream, see `read/ack_file.rs`
//! <dir>/lane-00000001/portals        counts by portal, see `metering/`
//! <dir>/lane-00000001/portals.new    the same while it is written anew
//! <dir>/lane-00000001/0000000001.seg segments, oldest first; an empty file gives up its events
//! <dir>/lane-00000001/*.spare        spares: trimmed segments, and files of zeros
//! <dir>/lane-00000001/making         a segment that is not finished
//! <dir>/lane-00000001/filling        a spare that is not finished
//! <dir>/quarantine/<lane>-<segment>-<offset>.bin   damaged bytes, at most 64 MiB of them
//! ```
//!
//! A lane is the part of the spool that one process writes. All integers are little-endian.
//!
//! | segment header, at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `pxgspool` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | flags: 1, the file was another segment before |
//! | 16 | 8 | lane |
//! | 24 | 8 | number in the lane, from 1, never used twice (0: the identity file) |
//! | 32 | 8 | sequence number of the first record |
//! | 40 | 8 | the lane's random salt |
//! | 48 | 8 | number of the segment before it, 0 for none (version 0.1.0: always 0) |
//! | 56 | 4 | zero |
//! | 60 | 4 | crc32c of bytes 0 to 59 |
//!
//! | record, at | bytes | |
//! |---|---|---|
//! | 0 | 4 | crc32c of payload, length, sequence number, lane salt, segment number, in this order |
//! | 4 | 4 | length of the payload, 1 to 262,144 |
//! | 8 | 8 | sequence number: contiguous in the lane, from 1 |
//! | 16 | | payload |
//!
//! In the identity file, bytes 48 to 55 are 1 if the lane was created with a file `portals`.
//!
//! The salt and the segment number are in the checksum and not in the record. So the checksum
//! rejects old records in a recycled file, records copied from another file, and bytes that a
//! client wrote into an event to look like a record. Zeros are rejected by their length.
//!
//! Two rules make every other mark on disk unnecessary. **A segment ends where the next one
//! begins**: its records from the next one's first sequence number on do not count. **A lane ends
//! at its last sound record.**
//!
//! # Assumptions
//!
//! The spool needs a local file system with working `flock`. There, `fdatasync` makes a file's
//! bytes and size durable, `fsync` of a folder makes the names in it durable (not the folder's own
//! name), and `rename` is atomic. The disk reports only what it has done. Until a sync has
//! succeeded, a write may tear at any byte and sectors may arrive in any order. After a failed
//! `fdatasync` nothing is known of the bytes since the last successful one. A sector that is
//! written again with other bytes has, after a power loss, at each byte the old or the new value.
//!
//! One file system is known to break this: an ext4 (Linux 6.18) that is shut down by its ioctl
//! during an `fdatasync` of blocks that were reserved and never written. It may return success and
//! lose the blocks, because its journal does not yet say that they are written. A loop of `pwrite`
//! and `fdatasync` lost an acknowledged write in 11 of 60 such shutdowns, and in none of 60 where
//! the blocks had been written before. So segments are made of such blocks where possible, see
//! *Spares*.
//!
//! # Writes around the page cache
//!
//! In `power` a group is one call: a `pwrite` of whole blocks of 4096 bytes, with `O_DIRECT` (past
//! the page cache) and `O_DSYNC` (durable when it returns). For 24 KiB in blocks that were written
//! before it costs 14 to 19 us of CPU and 56 to 107 us of time, where a `pwrite` and an `fdatasync`
//! cost 32 to 41 us and 105 to 140 us.
//!
//! A record rarely ends where a block does, so the last block is filled up with zeros and is the
//! first one of the next write (`write/blocks.rs`):
//!
//! | bytes of the write | before it | after it |
//! |---|---|---|
//! | records of the group before, from the block's beginning | these records | the same bytes |
//! | records of this group | zeros, or a recycled file's old records | this group |
//! | the rest of the last block | as above | zeros |
//!
//! The bytes of the first row do not change. So the answered records stay sound, whichever sectors
//! a power loss lets through and wherever it tears one. It can tear only records of this group,
//! which were not answered, and the bytes behind them. A reader rejects both by their checksum or
//! their length. The form of a segment is the same as without `O_DIRECT`, so each version reads
//! what the other wrote.
//!
//! The kernel removes what it has cached of these blocks, so that a reader, also one of another
//! process, finds what was written. A reader of the same process that keeps up finds the last 1 MiB
//! in memory (`hot_tail.rs`). If the file system refuses `O_DIRECT`, the log says so once, and a
//! group is a `write` and an `fdatasync`. `interval` and `memory` answer before the disk has the
//! events, so they always write into the cache.
//!
//! # Spares
//!
//! A sync in blocks that have been written before changes nothing in the journal: on ext4 a
//! `pwrite` and `fdatasync` of 73 KB cost 40 us of CPU and 110 us of time there, and 96 us and
//! 267 us in blocks that were only reserved. A lane therefore begins with one small segment of
//! zeros. In the first second, or as soon as this segment is full, maintenance makes a large spare
//! of zeros, and one more when the first is used. Trimmed segments become spares as well. So a
//! steady flow uses the same few files all the time. A spool that needs more files than these makes
//! new ones with reserved blocks, each twice as large as the one before, up to `segment_bytes`:
//! filling each with zeros would double the bytes that are written.
//!
//! # What a crash can do, per operation
//!
//! - *Append.* The event is in memory only, and no answer was given. (`memory` promises to survive
//!   a graceful stop and nothing more. It syncs every 2 MiB all the same, so that the kernel never
//!   has much to write at a time.)
//! - *Group commit.* The group may be torn anywhere. In `power` none of its events was answered,
//!   and the answered records that share its first block are the same bytes before and after. In
//!   `interval` a crash of the process does not undo a finished `write`. Recovery keeps the sound
//!   records, so an event that was not answered may be delivered, as at-least-once allows.
//! - *New segment.* First its header and the group that opens it are made durable, then its name.
//!   Before the name there is no segment; with the name it is whole.
//! - *Failed write or sync.* The segment is given up and never written again. All records that are
//!   not yet durable are written once more, into a new segment that begins at the first of their
//!   numbers. With its name, and not before, the new one cuts the old one, whatever the old file
//!   holds: so in `interval` each answered record is always in one of the two. If the new segment
//!   fails too, the group is refused, its numbers are free again, and the next segment cuts in the
//!   same way. Refused events can be delivered only after a crash before any further segment was
//!   made, and only if cutting the file had failed as well.
//! - *Cursor.* It has two slots that are written in turn, so the other one stays sound. Records
//!   that the older slot does not know to be acknowledged are read again.
//! - *Acknowledgement.* One of three slots of the upstream's ack file is written and not synced: it
//!   survives the death of the process. If it is torn or lost, the records that were acknowledged
//!   since the last cursor are delivered again.
//! - *Counts by portal.* An entry that is torn is counted again from the records.
//! - *Trim.* Only segments that both slots have passed and whose records are counted by portal are
//!   removed, so either slot is enough. A segment that comes back after a power loss is before
//!   every cursor and is trimmed again.
//! - *Recycle.* A spare is used only when its name is durable, and it has no segment's name until
//!   its new header is durable. Its old records carry another segment's number in their checksums.
//! - *Adopt.* Adopting a lane makes the names of its files durable, because the next cursor proves
//!   them. Then it reads the lane, and cuts off the bytes after the end of its last segment.
//!   Adopting it again has the same result.
//! - *Fold and remove.* A delivered lane's counts by portal go into the own lane's file, where they
//!   do not count before the cursor names the lane. Its other totals go into the own lane's cursor
//!   together with the lane's identity, into both slots, before its folder is removed. The cursor
//!   names the identity until the removal is durable, even if another process has adopted the own
//!   lane meanwhile: so no process ever counts these totals a second time.
//!
//! # What a disk can do
//!
//! - *Damage* costs the records that it touches. A reader that finds damaged bytes searches for the
//!   next sound record, copies the bytes before it to the quarantine, and counts the missing
//!   sequence numbers as lost. A damaged segment header costs nothing, because the salt stands in
//!   three places; a damaged cursor makes the readers begin at the lane's oldest segment.
//! - *A segment that is missing or cannot be opened* is a fault and is tried again each second,
//!   without an end. An operator gives its events up by creating an empty file with its name. A
//!   missing segment is known by the header of the next one or, if none follows, by the cursor.
//! - *A lane that ends before the last record that the cursor proves*, although its last segment is
//!   there. The bytes were read, so these records are lost. In `interval` a power loss does this,
//!   and in `memory` also a kill.
//! - *A cursor or a file of counts by portal that is missing or damaged* is a fault until the next
//!   start. The process that writes the lane makes a removed one anew.
//! - *Bytes that the device refuses* (`EIO`) are a fault and are tried again each second. After
//!   `unreadable_seconds_max` the sectors that are still refused count as damage. The records of a
//!   lane are read in order, so later records of this lane wait until then; other lanes go on.
//! - *A lane that cannot be taken over* is a fault and is tried again each second. After
//!   `unreadable_seconds_max` it is taken over without the sectors that the device refuses.
//! - *A start on a disk that takes nothing.* Where the folder, its lock or the own lane cannot be
//!   made, the process holds the lanes that it could adopt, and no own lane. It refuses events, and
//!   maintenance tries again each second. Each lane's two cursor slots have had their blocks since
//!   the lane was created, so delivered segments can be trimmed on a full disk. A lane that could
//!   be made only in part is removed again. Delivered lanes are folded once there is an own lane.
//! - *A folder that is removed, moved or replaced.* The committer compares the file at the path of
//!   the segment with its open file before each answer, and maintenance compares that of the lane
//!   each second. While they differ, events are refused.
//! - *A stall.* When a commit takes `commit_seconds_max`, the watch refuses the events that wait,
//!   and all further ones until the disk answers. The committer then cuts the refused records out
//!   of the segment.
//!
//! # Upstreams that come and go
//!
//! At each start, positions are created from the configuration. A new upstream begins at the oldest
//! event that any upstream still waited for. So no pending event is lost when an upstream is
//! renamed, and a new upstream does not get events that all others have. A removed upstream keeps
//! its position in the lanes in which events wait for it, and these events are not trimmed; new
//! events are not meant for it. Its totals stay under its name. When it is configured again, it
//! goes on at its position and with its totals, unless `pixelgate spool forget` has removed them.
//! `accepted` counts from where an upstream began. Without any upstream, no segment is trimmed. A
//! record may be meant for some upstreams only: see `routing.rs`.
//!
//! # Threads
//!
//! Any thread appends into a staging buffer of its own (`write/group.rs`). One committer writes and
//! syncs (`write/commit.rs`), in `interval` together with a syncer (`write/syncer.rs`). The watch
//! refuses events while the disk is stalled (`write/watch.rs`). Maintenance runs each second
//! (`maintenance.rs`). Readers read in the tasks of their upstreams, mostly from memory: the hot
//! tail in `power`, else the page cache (`read/reader.rs`).

mod beginning;
mod config;
mod env;
mod error;
mod faults;
mod format;
pub mod fs;
mod handle;
mod held_back;
mod hot_tail;
mod lane;
mod lane_counts;
mod lane_create;
mod lane_files;
mod lane_place;
mod lanes;
mod maintenance;
mod metering;
mod missing;
mod parker;
mod predecessors;
mod read;
mod read_around;
mod record_id;
pub mod recovery;
mod removed;
mod routing;
mod segment_index;
mod state;
mod status;
mod unreadable;
mod write;

pub use config::{Config, Durability, ValidConfig};
pub use env::Env;
pub use error::{CloseError, OpenError};
pub use format::RECORD_BYTES_MAX;
pub use handle::{DayCounts, Spool};
pub use lane_files::is_own_folder;
pub use metering::table::PORTALS_MAX;
pub use metering::{Metered, Metering};
pub use predecessors::PREDECESSOR_SECONDS_MAX;
pub use read::counts::Ack;
pub use read::cursor::{UPSTREAM_NAME_BYTES_MAX, UPSTREAMS_MAX};
pub use read::ledger::RUNS_MAX;
pub use read::reader::{Acknowledger, Entry, Reader};
pub use record_id::RecordId;
pub use routing::Routing;
pub use status::{PortalTotals, PortalUpstream, Status, UpstreamStatus};
pub use write::admission::PENDING_BYTES_MAX;
pub use write::group::{Commit, Overloaded};
