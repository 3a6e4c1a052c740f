//! The spool: accepted events, on disk before they are answered, until every upstream has them.
//!
//! It stores bytes and knows nothing of events. It does not encode, batch or deliver; it does not
//! repair what a disk has damaged, it steps around it and says so. Why not a database: no crate
//! gives a multi-producer append below a microsecond, trimming in order, and several processes at
//! once. Why `write` and not `mmap`: a full disk is an error before the answer, not a SIGBUS.
//!
//! # Files
//!
//! ```text
//! <dir>/lock                         held while lanes are made and adopted
//! <dir>/lane-00000001/lane           identity; its flock says that the lane's process lives
//! <dir>/lane-00000001/cursor         two slots, see `cursor.rs`
//! <dir>/lane-00000001/acks-*         one for each upstream, see `ack_file.rs`
//! <dir>/lane-00000001/0000000001.seg segments, oldest first
//! <dir>/lane-00000001/*.spare        files to make segments of: trimmed segments, and zeros
//! <dir>/lane-00000001/making, filling    a segment, and a spare, in the making
//! <dir>/quarantine/<lane>-<segment>-<offset>.bin   damaged bytes, at most 64 MiB of them
//! ```
//!
//! A lane is written by one process in its life. All integers are little-endian.
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
//! | 48 | 12 | zero |
//! | 60 | 4 | crc32c of bytes 0 to 59 |
//!
//! | record, at | bytes | |
//! |---|---|---|
//! | 0 | 4 | crc32c of payload, length, sequence number, lane salt, segment number, in this order |
//! | 4 | 4 | length of the payload, 1 to 262,144 |
//! | 8 | 8 | sequence number: contiguous in the lane, from 1 |
//! | 16 | | payload |
//!
//! The salt and the segment number are in the checksum and not in the record: what a recycled file
//! still holds, what was copied from elsewhere, and what a client wrote into an event to look like
//! a record, all fail it; and zeros fail by their length.
//!
//! Two rules replace every other mark on disk. **A segment ends where the next one begins**: its
//! records from the next one's first sequence number on do not count. **A lane ends at its last
//! sound record.**
//!
//! # Assumptions
//!
//! A local file system with working `flock`, on which `fdatasync` makes a file's bytes and size
//! durable, `fsync` of a folder its names, and `rename` is atomic; a disk that does not lie about
//! it. A write may tear at any byte and sectors may arrive in any order until then. After a
//! failed `fdatasync` nothing is known of the bytes since the last good one.
//!
//! One case is known where a file system breaks this: an ext4 (Linux 6.18) that is shut down by
//! its ioctl, with the process living on, while an `fdatasync` of blocks is under way that were
//! reserved and never written: it may return success for it and lose them, because a word in the
//! journal is missing that says that they are written. A bare loop of `pwrite` and `fdatasync` lost
//! an acknowledged write in 11 of 60 such shutdowns, and in blocks that had been written before in
//! none of 60. So segments are made of the latter where that is possible, see *Spares*.
//!
//! # Spares
//!
//! A sync in blocks that have been written before needs no word in the journal: on ext4 a `pwrite`
//! and `fdatasync` of 73 KB cost 40 us of CPU and 110 us of time there, and 96 us and 267 us in
//! blocks that were only reserved. A lane therefore begins with one small segment of zeros; in the
//! first second, or as soon as that one is full, maintenance makes a large one, and one more when
//! it is used; and what is trimmed is written again. So a steady flow uses the same few files for
//! ever. A spool that grows beyond them, or before they are there, takes new files with reserved
//! blocks, each twice as large as the one before, up to `segment_bytes`: zeros for each would
//! double what is written.
//!
//! # What a crash can do, per operation
//!
//! - *Append.* In memory only; no answer was given (`memory` promises a graceful stop, not more; it
//!   syncs every few MiB all the same, so that the kernel never has much to write at one go).
//! - *Group commit.* Torn anywhere: none of its events was answered in `power`, and in `interval`
//!   a crash of the process does not undo a finished `write`. Recovery keeps the sound records;
//!   an event that was not answered may thereby be delivered, which at-least-once allows.
//! - *New segment.* Header and the group that opens it durable, then the name. Before the name
//!   there is no segment; behind it, it is whole.
//! - *Failed write or sync.* The segment is given up and never written again; all that is not yet
//!   durable goes once more into a new segment that begins at the first such number. With its
//!   name, and not before, it cuts the old one, whatever that one's file holds: so in `interval`
//!   what was answered after `write` is always in one of the two. If that fails too the group is
//!   refused, its numbers are free again, and the next segment cuts in the same way. Only a crash
//!   in between, before any further segment could be made and where cutting the file failed as
//!   well, can let refused events be delivered.
//! - *Cursor.* One of two slots, in turn; the other stands. What the older one forgets is read
//!   again.
//! - *Acknowledgement.* One of three slots of the upstream's ack file, not synced: it survives the
//!   death of the process. A torn or lost one costs what the cursor does not know.
//! - *Trim.* Only segments that both slots have passed; so either slot is enough. A segment that
//!   comes back after a power loss lies before every cursor and is trimmed again.
//! - *Recycle.* A spare is taken when its name is durable, and is no segment by name until its
//!   new header is durable; its old records carry another segment's number in their checksums.
//! - *Adopt.* Reads, and cuts off what is behind the end. Done again it does the same.
//! - *Fold and remove.* A delivered lane's totals go into the own cursor together with the lane's
//!   name, into both slots, before its folder goes. A folder that is still there is recognized by
//!   that name and only removed, not counted twice.
//!
//! Corruption at rest costs the records it touches. A reader that meets a bad spot searches for
//! the next sound record, copies the bytes between to the quarantine, and counts the missing
//! sequence numbers as lost. A damaged segment header costs nothing (the salt stands in three
//! places), a lost cursor re-reads the lane from its oldest segment. A read that fails without
//! giving bytes (`EIO`) is no corruption: it is tried again each second, and that upstream waits.
//!
//! # Upstreams that come and go
//!
//! Positions are made anew from the configuration at each start. A new upstream begins at the
//! oldest event that any upstream still waited for: after renaming one nothing pending is lost,
//! and a newcomer does not get what the others are through with. A removed one keeps its position
//! in the lanes in which events wait for it, and these events are not trimmed; new events are not
//! meant for it. When it is configured again it goes on there; `pixelgate spool forget` removes its
//! positions. Its other counts are forgotten. `accepted` counts from where an upstream began.
//! Without any upstream nothing is trimmed.
//!
//! # Threads
//!
//! Any thread appends into a staging buffer of its own (`group.rs`); one committer writes and
//! syncs (`commit.rs`), in `interval` with a syncer beside it (`syncer.rs`); one maintenance thread
//! runs each second (`maintenance.rs`); readers read in the tasks of their upstreams, from the
//! page cache as a rule (`reader.rs`).

mod config;
mod env;
mod error;
mod format;
pub mod fs;
mod handle;
mod lane;
mod maintenance;
mod parker;
mod read;
mod record_id;
pub mod recovery;
mod removed;
mod segment_index;
mod state;
mod status;
mod write;

pub use config::{Config, Durability};
pub use env::Env;
pub use error::{CloseError, OpenError};
pub use format::RECORD_BYTES_MAX;
pub use handle::Spool;
pub use read::counts::Ack;
pub use read::cursor::{UPSTREAM_NAME_BYTES_MAX, UPSTREAMS_MAX};
pub use read::ledger::RUNS_MAX;
pub use read::reader::{Acknowledger, Entry, Reader};
pub use record_id::RecordId;
pub use status::{Status, UpstreamStatus};
pub use write::admission::PENDING_BYTES_MAX;
pub use write::group::{Commit, Overloaded};
