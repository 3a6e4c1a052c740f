//! The `[spool]` section: its keys, their defaults (SPEC 9) and their ranges.

use crate::config_error::ConfigError;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use super::lane::Spares;

/// Longest wait, in milliseconds, that `spool.linger_ms` may put before an answer.
pub const LINGER_MS_MAX: u64 = 1_000;
/// Longest time, in milliseconds, that `interval` may leave answered events to the page cache.
pub const SYNC_MS_MAX: u64 = 60_000;
/// Longest time, in seconds, that `spool.commit_seconds_max` may leave a request to a stalled disk.
pub const COMMIT_SECONDS_MAX: u64 = 60;
/// Longest time, in seconds, that `spool.unreadable_seconds_max` may wait for bytes: a year.
pub const UNREADABLE_SECONDS_MAX: u64 = 31_536_000;
/// Smallest segment; below it the headers and the directory outweigh the records.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// Largest segment; a start reads up to one segment before it serves.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// Smallest bound on the spool: room for one segment with room around it.
pub const SPOOL_BYTES_MIN: u64 = 16 << 10;
/// A bound holds at least this many segments, so that trimming, which frees whole segments,
/// keeps the disk near the bound.
const SEGMENTS_PER_BOUND: u64 = 4;

/// Smaller segments are made of new files: for them it is not worth writing zeros ahead.
const FILLED_BYTES_MIN: u64 = 1 << 20;
/// Size of a lane's first segment: small, because a start waits until it is filled.
pub const FIRST_SEGMENT_BYTES: u64 = FILLED_BYTES_MIN;
/// Most trimmed segments that are kept to be written again. In a steady flow three go around
/// between the committer and the slowest cursor, which the disk has twice before it frees one.
const SPARES_MAX: u64 = 3;
/// Spares hold at most this part of the bound, but always one.
const SPARES_PART_OF_BOUND: u64 = 8;

/// What an accepted event survives from the moment it is answered (SPEC 6).
///
/// ```
/// use pixelgate::config::{Durability, Spool};
///
/// assert_eq!(Spool::default().durability, Durability::Power);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Durability {
    /// Answered after `fdatasync`: survives power loss.
    Power,
    /// Answered after `write`; synced every `sync_ms`: survives any crash of the process.
    Interval,
    /// Answered at once: survives a graceful stop.
    Memory,
}

/// The `[spool]` section.
///
/// ```
/// use pixelgate::config::Spool;
///
/// let mut spool = Spool::default();
/// spool.dir = "/var/lib/pixelgate/spool".into();
/// spool.linger_ms = 5;
/// assert!(spool.validate().is_ok());
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Config {
    /// The spool's folder; created when absent. On a local file system with working `flock`.
    /// Default: `data/spool`.
    pub dir: PathBuf,
    /// What a 200 means. Default: `power`.
    pub durability: Durability,
    /// How long a group commit waits for more events after its first one, in milliseconds, 0 to
    /// 1000; less where every request in flight waits already. Default: 2.
    pub linger_ms: u64,
    /// Time between two `fdatasync`s in `interval`, in milliseconds, 1 to 60,000. Default: 50.
    pub sync_ms: u64,
    /// Longest time in seconds, 1 to 60, that an event waits for its commit. Then those that wait
    /// are refused, and new ones are refused at once, until the disk answers. Default: 5.
    pub commit_seconds_max: u64,
    /// Time in seconds, 1 to 31536000, for which the device must have refused to read bytes before
    /// their events count as lost. Default: 600.
    pub unreadable_seconds_max: u64,
    /// Most bytes of events not yet acknowledged by every upstream. Beyond it: `overloaded`. The
    /// files may hold up to five segments more: they are freed whole, and up to three are kept to
    /// be written again. At least 16 KiB. Default: 8 GiB.
    pub bytes_max: ByteSize,
    /// The disk keeps at least this many bytes free; below it: `overloaded`. Default: 256 MiB.
    pub free_bytes_min: ByteSize,
    /// Size of one segment file, 4 KiB to 1 GiB. A spool with a small `bytes_max` uses smaller
    /// ones: a quarter. Default: 64 MiB.
    pub segment_bytes: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            dir: PathBuf::from("data/spool"),
            durability: Durability::Power,
            linger_ms: 2,
            sync_ms: 50,
            commit_seconds_max: 5,
            unreadable_seconds_max: 600,
            bytes_max: ByteSize::gib(8),
            free_bytes_min: ByteSize::mib(256),
            segment_bytes: ByteSize::mib(64),
        }
    }
}

/// A [`Config`] that [`Config::validate`] has checked.
#[derive(Debug, Clone)]
pub struct ValidConfig(Config);

impl Deref for ValidConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.0
    }
}

impl TryFrom<&Config> for ValidConfig {
    type Error = ConfigError;

    fn try_from(config: &Config) -> Result<ValidConfig, ConfigError> {
        config.validate()
    }
}

impl Config {
    /// Checks every range, without touching the disk.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be used.
    pub fn validate(&self) -> Result<ValidConfig, ConfigError> {
        let segment_bytes = self.segment_bytes.as_u64();
        let rules = [
            (!self.dir.as_os_str().is_empty(), "spool.dir", "must name a folder"),
            (self.linger_ms <= LINGER_MS_MAX, "spool.linger_ms", "must be 0 to 1000"),
            ((1..=SYNC_MS_MAX).contains(&self.sync_ms), "spool.sync_ms", "must be 1 to 60000"),
            (
                (1..=COMMIT_SECONDS_MAX).contains(&self.commit_seconds_max),
                "spool.commit_seconds_max",
                "must be 1 to 60",
            ),
            (
                (1..=UNREADABLE_SECONDS_MAX).contains(&self.unreadable_seconds_max),
                "spool.unreadable_seconds_max",
                "must be 1 to 31536000",
            ),
            (
                self.bytes_max.as_u64() >= SPOOL_BYTES_MIN,
                "spool.bytes_max",
                "must be at least 16KiB",
            ),
            (
                (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes),
                "spool.segment_bytes",
                "must be 4KiB to 1GiB",
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, reason)) => Err(ConfigError::new(key, reason)),
            None => Ok(ValidConfig(self.clone())),
        }
    }

    /// The segment size that is used: a small bound gets segments to match.
    pub(super) fn segment_bytes_used(&self) -> u64 {
        let fitting = self.bytes_max.as_u64() / SEGMENTS_PER_BOUND;
        self.segment_bytes.as_u64().min(fitting).max(SEGMENT_BYTES_MIN)
    }

    /// How long a commit may take before its events are refused: the deadline without the time for
    /// which they may have lingered before.
    pub(super) fn commit_limit(&self) -> Duration {
        let deadline = Duration::from_secs(self.commit_seconds_max);
        deadline.saturating_sub(Duration::from_millis(self.linger_ms)).max(deadline / 2)
    }

    /// Whether segments are worth writing zeros ahead.
    pub(super) fn fills_spares(&self) -> bool {
        self.segment_bytes_used() >= FILLED_BYTES_MIN
    }

    /// Which trimmed segments are kept.
    pub(super) fn spares(&self) -> Spares {
        let bytes = self.segment_bytes_used();
        let fitting = self.bytes_max.as_u64() / SPARES_PART_OF_BOUND / bytes;
        Spares { count_max: fitting.clamp(1, SPARES_MAX) as usize, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(edit: impl FnOnce(&mut Config), expect: Option<&str>) {
        let mut config = Config::default();
        edit(&mut config);
        assert_eq!(config.validate().err().map(|error| error.key().to_owned()).as_deref(), expect);
    }

    #[test]
    fn each_range_is_checked_at_its_edge() {
        check(|_| {}, None);
        check(|c| c.linger_ms = LINGER_MS_MAX, None);
        check(|c| c.linger_ms = LINGER_MS_MAX + 1, Some("spool.linger_ms"));
        check(|c| c.linger_ms = 0, None);
        check(|c| c.sync_ms = 0, Some("spool.sync_ms"));
        check(|c| c.sync_ms = SYNC_MS_MAX, None);
        check(|c| c.sync_ms = SYNC_MS_MAX + 1, Some("spool.sync_ms"));
        check(|c| c.bytes_max = ByteSize(SPOOL_BYTES_MIN), None);
        check(|c| c.bytes_max = ByteSize(SPOOL_BYTES_MIN - 1), Some("spool.bytes_max"));
        check(|c| c.segment_bytes = ByteSize(SEGMENT_BYTES_MIN), None);
        check(|c| c.segment_bytes = ByteSize(SEGMENT_BYTES_MIN - 1), Some("spool.segment_bytes"));
        check(|c| c.segment_bytes = ByteSize(SEGMENT_BYTES_MAX + 1), Some("spool.segment_bytes"));
        check(|c| c.commit_seconds_max = 0, Some("spool.commit_seconds_max"));
        check(|c| c.commit_seconds_max = COMMIT_SECONDS_MAX, None);
        check(|c| c.commit_seconds_max = COMMIT_SECONDS_MAX + 1, Some("spool.commit_seconds_max"));
        check(|c| c.unreadable_seconds_max = 0, Some("spool.unreadable_seconds_max"));
        check(|c| c.unreadable_seconds_max = UNREADABLE_SECONDS_MAX, None);
        check(|c| c.dir = PathBuf::new(), Some("spool.dir"));
    }

    #[test]
    fn a_small_bound_gets_small_segments() {
        let config = Config { bytes_max: ByteSize::mib(1), ..Config::default() };
        assert_eq!(config.segment_bytes_used(), 256 << 10);
        assert_eq!(Config::default().segment_bytes_used(), 64 << 20);
        assert_eq!(config.spares(), Spares { count_max: 1, bytes: 256 << 10 });
        assert_eq!(Config::default().spares(), Spares { count_max: 3, bytes: 64 << 20 });
    }

    #[test]
    fn the_section_reads_from_toml_and_refuses_unknown_keys() {
        let config: Config =
            toml::from_str("durability = \"interval\"\nbytes_max = \"1GiB\"").expect("valid");
        assert_eq!(config.durability, Durability::Interval);
        assert_eq!(config.bytes_max, ByteSize::gib(1));
        assert!(toml::from_str::<Config>("durable = true").is_err());
        assert!(toml::from_str::<Config>("durability = \"Power\"").is_err());
    }
}
