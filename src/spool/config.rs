//! The `[spool]` section: its keys, their defaults (SPEC 9) and their ranges.

use crate::config_error::ConfigError;
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;

use super::lane::Spares;

/// The greatest `spool.linger_ms`, in milliseconds: a request waits this long for its answer.
pub const LINGER_MS_MAX: u64 = 1_000;
/// The greatest `spool.sync_ms`, in milliseconds: answered events are in the page cache alone for
/// this time.
pub const SYNC_MS_MAX: u64 = 60_000;
/// The greatest `spool.commit_seconds_max`, in seconds: a request waits this long for a stalled
/// disk.
pub const COMMIT_SECONDS_MAX: u64 = 60;
/// The greatest `spool.unreadable_seconds_max`, in seconds: a year.
pub const UNREADABLE_SECONDS_MAX: u64 = 31_536_000;
/// The smallest segment, in bytes. Below it, headers and directory outweigh the records.
pub const SEGMENT_BYTES_MIN: u64 = 4 << 10;
/// The largest segment, in bytes. A start reads up to one segment before it serves.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 30;
/// The smallest `spool.bytes_max`, in bytes: four segments of the smallest size.
pub const SPOOL_BYTES_MIN: u64 = 16 << 10;
/// `spool.bytes_max` holds at least this many segments. Trimming frees whole segments, so the disk
/// stays near the limit only if segments are small in comparison.
const SEGMENTS_PER_BOUND: u64 = 4;
/// The smallest segment that is filled with zeros before it is written. For a smaller one, this
/// would cost more than it saves.
const FILLED_BYTES_MIN: u64 = 1 << 20;
/// The size of a lane's first segment, in bytes. It is small, because a start waits until it is
/// filled with zeros.
pub const FIRST_SEGMENT_BYTES: u64 = FILLED_BYTES_MIN;
/// The most trimmed segments that are kept as spares. A steady flow uses three in turn: the
/// committer writes one, and a segment is freed only when the cursor has been written twice.
const SPARES_MAX: u64 = 3;
/// The part of `spool.bytes_max` that spares may hold. One spare is always allowed.
const SPARES_PART_OF_BOUND: u64 = 8;

/// What an accepted event survives once it is answered (SPEC 6).
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
    /// The answer follows `fdatasync`. The event survives power loss.
    Power,
    /// The answer follows `write`, and a sync every `sync_ms`. The event survives any crash of the
    /// process.
    Interval,
    /// The answer is sent at once. The event survives a graceful stop.
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
    /// The folder of the spool, which is created if it is missing. It must be on a local file
    /// system with working `flock`. Default: `data/spool`.
    pub dir: PathBuf,
    /// What a 200 means. Default: `power`.
    pub durability: Durability,
    /// The time for which a group commit waits for more events after its first one, in
    /// milliseconds, 0 to 1000. The wait ends early if no open connection can send a further
    /// request before it gets a response. Default: 2.
    pub linger_ms: u64,
    /// The time between two `fdatasync`s in `interval`, in milliseconds, 1 to 60,000. Default: 50.
    pub sync_ms: u64,
    /// The longest wait of an event for its commit, in seconds, 1 to 60. After it, the events that
    /// wait are refused, and new events are refused at once, until the disk answers. Default: 5.
    pub commit_seconds_max: u64,
    /// The time for which the device must have refused to read bytes before their events count as
    /// lost, in seconds, 1 to 31,536,000. Default: 600.
    pub unreadable_seconds_max: u64,
    /// The most bytes of events that are not yet acknowledged by every upstream, at least 16 KiB.
    /// Beyond it, events are rejected as `overloaded`. The files may hold up to five segments more,
    /// because they are freed whole and up to three are kept as spares. Default: 8 GiB.
    pub bytes_max: ByteSize,
    /// The bytes that stay free on the disk. Below it, events are rejected as `overloaded`.
    /// Default: 256 MiB.
    pub free_bytes_min: ByteSize,
    /// The size of one segment file, 4 KiB to 1 GiB, but at most a quarter of `bytes_max`. Default:
    /// 64 MiB.
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

    /// The segment size that is used: `segment_bytes`, or less if `bytes_max` is small.
    pub(super) fn segment_bytes_used(&self) -> u64 {
        let fitting = self.bytes_max.as_u64() / SEGMENTS_PER_BOUND;
        self.segment_bytes.as_u64().min(fitting).max(SEGMENT_BYTES_MIN)
    }

    /// The longest time that a commit may take before its events are refused: `commit_seconds_max`
    /// less the linger, because events may have lingered before; but at least half of
    /// `commit_seconds_max`.
    pub(super) fn commit_limit(&self) -> Duration {
        let deadline = Duration::from_secs(self.commit_seconds_max);
        deadline.saturating_sub(Duration::from_millis(self.linger_ms)).max(deadline / 2)
    }

    /// Whether segments are large enough to be filled with zeros before they are written.
    pub(super) fn fills_spares(&self) -> bool {
        self.segment_bytes_used() >= FILLED_BYTES_MIN
    }

    /// The trimmed segments that are kept as spares.
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
