//! The `[access_log]` section: its keys, their defaults and limits (SPEC 9).

use super::others::OtherFiles;
use bytesize::ByteSize;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The value of `path` that stands for standard error.
const STDERR: &str = "stderr";
/// Limits of `buffer_bytes`, in bytes. The longest line must fit, and the process holds two
/// buffers in memory.
const BUFFER_BYTES: std::ops::RangeInclusive<u64> = 16 << 10..=1 << 30;
/// Largest `flush_seconds`: an hour.
const FLUSH_SECONDS_MAX: u64 = 3600;

/// The `[access_log]` section.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The path of the file, or `stderr`. Empty (the default): no access log is written.
    pub path: PathBuf,
    /// The format of a line. Default: `json`.
    pub format: Format,
    /// The most bytes of lines that wait to be written; further lines are lost. Default: 1 MiB.
    pub buffer_bytes: ByteSize,
    /// The longest time that a line waits to be written, in seconds. Default: 1.
    pub flush_seconds: u64,
    /// The files and folders that other keys name. Not a key.
    #[serde(skip)]
    pub others: Arc<OtherFiles>,
}

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object.
    #[default]
    Json,
    /// The combined log format of Apache and nginx.
    Combined,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            format: Format::default(),
            buffer_bytes: ByteSize::mib(1),
            flush_seconds: 1,
            others: Arc::default(),
        }
    }
}

impl Config {
    /// Checks the limits of every key.
    ///
    /// # Errors
    ///
    /// The first key that cannot be used, without `access_log.`, and the reason.
    pub fn validate(&self) -> Result<(), (&'static str, String)> {
        if !BUFFER_BYTES.contains(&self.buffer_bytes.as_u64()) {
            return Err(("buffer_bytes", "must be 16KiB to 1GiB".to_owned()));
        }
        if !(1..=FLUSH_SECONDS_MAX).contains(&self.flush_seconds) {
            return Err(("flush_seconds", format!("must be 1 to {FLUSH_SECONDS_MAX} seconds")));
        }
        Ok(())
    }

    /// Why the file at `path` cannot be the access log: another key names it. Asks the file
    /// systems.
    pub fn conflict(&self) -> Option<String> {
        let is_file = self.is_on() && !self.is_stderr();
        is_file.then(|| self.others.conflict(&self.path)).flatten()
    }

    /// Whether an access log is written.
    pub fn is_on(&self) -> bool {
        !self.path.as_os_str().is_empty()
    }

    /// Whether lines go to standard error.
    pub fn is_stderr(&self) -> bool {
        self.path.as_os_str() == STDERR
    }

    /// `buffer_bytes` as a length in memory. `validate` has limited it.
    pub fn buffer_len(&self) -> usize {
        usize::try_from(self.buffer_bytes.as_u64()).unwrap_or(usize::MAX)
    }

    /// `flush_seconds` as a duration.
    pub fn flush(&self) -> Duration {
        Duration::from_secs(self.flush_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_a_smallest_and_a_largest_value() {
        let refused = |set: fn(&mut Config)| {
            let mut config = Config::default();
            set(&mut config);
            config.validate().err().map(|(key, _)| key)
        };
        assert_eq!(refused(|_| {}), None);
        assert_eq!(refused(|c| c.buffer_bytes = ByteSize::kib(16)), None);
        assert_eq!(refused(|c| c.buffer_bytes = ByteSize::kib(15)), Some("buffer_bytes"));
        assert_eq!(refused(|c| c.buffer_bytes = ByteSize::gib(2)), Some("buffer_bytes"));
        assert_eq!(refused(|c| c.flush_seconds = 0), Some("flush_seconds"));
        assert_eq!(refused(|c| c.flush_seconds = 3601), Some("flush_seconds"));
    }
}
