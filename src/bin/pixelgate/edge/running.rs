//! Stores the values that a running edge has in force in a file in `edge.state_dir`, with which
//! `pixelgate check --diff` compares a configuration (SPEC 8).
//!
//! The values may be secrets. So the file holds, for each key of the configuration, a keyed hash of
//! the value (HMAC-SHA-256). The key of the hashes is in the file and is new for each file. Equal
//! values have equal hashes within one file.

use crate::config::keys::{Changes, Values};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The name of the file in `edge.state_dir`.
pub const FILE_NAME: &str = "configuration.json";
/// Why there is nothing to compare with.
pub const NO_EDGE: &str = "no edge runs with this edge.state_dir";
/// The length of the key of the hashes, in bytes.
const KEY_BYTES: usize = 32;
/// The most bytes of the file that are read: enough for more keys than a configuration has.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The content of the file: the configuration of a running edge.
#[derive(Debug, Serialize, Deserialize)]
pub struct Running {
    /// The key of the hashes, in base64.
    hash_key: String,
    /// The hash of the value of each configuration key, in base64.
    values: BTreeMap<String, String>,
}

impl Running {
    /// Returns the content of the file for `values`.
    fn of(values: &Values) -> io::Result<Running> {
        let mut key = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
        let hashed = values.all().iter().map(|(name, value)| (name.clone(), hash(&key, value)));
        Ok(Running { hash_key: BASE64_STANDARD.encode(key), values: hashed.collect() })
    }

    /// Writes the values that are in force, in place of an earlier file. Only this user may read
    /// the file. After a failure there is no file, because an earlier one has other values.
    pub fn write(state_dir: &Path, values: &Values) -> io::Result<()> {
        let content = serde_json::to_vec(&Self::of(values)?).map_err(io::Error::other)?;
        let making = state_dir.join(format!("{FILE_NAME}.{}", std::process::id()));
        let path = state_dir.join(FILE_NAME);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        fs::create_dir_all(state_dir)
            .and_then(|()| options.open(&making)?.write_all(&content))
            .and_then(|()| fs::rename(&making, &path))
            .inspect_err(|_| [&making, &path].into_iter().for_each(|at| _ = fs::remove_file(at)))
    }

    /// Reads the file of the edge that runs with this `edge.state_dir`.
    ///
    /// # Errors
    ///
    /// The path of the file, and why it cannot be read.
    pub fn read(state_dir: &Path) -> Result<Running, String> {
        let path = state_dir.join(FILE_NAME);
        let failed = |why: String| format!("{}: {why}", path.display());
        let text = pixelgate::tools::read_regular_file(&path, FILE_BYTES_MAX);
        let unknown = "or its disk does not take the file (the fault `state_dir`); a changed \
                       edge.state_dir cannot be compared";
        let text = text.map_err(|e| failed(format!("{e}: {NO_EDGE}, {unknown}")))?;
        serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))
    }

    /// Returns the keys whose value in `values` is not the one that this edge has in force.
    pub fn changes(&self, values: &Values) -> Changes {
        let key = BASE64_STANDARD.decode(&self.hash_key).unwrap_or_default();
        let same = |name: &str| match (values.all().get(name), self.values.get(name)) {
            (Some(new), Some(hashed)) => hash(&key, new) == *hashed,
            (None, None) => true,
            _ => false,
        };
        // If `order` has changed, it needs an upgrade and is named beside `concurrency_max`.
        let in_order = |name: &str| values.keeps_order(name);
        Changes::between(values.all().keys().chain(self.values.keys()), same, in_order)
    }
}

fn hash(key: &[u8], value: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    BASE64_STANDARD.encode(hmac::sign(&key, value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn changes_are_found_and_no_value_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| Values::of(&toml::from_str(text).unwrap());
        let old = of("[admin]\ntoken = \"sixteen bytes ok\"\n[edge]\nthreads = 2");
        Running::write(dir.path(), &old).unwrap();
        let path = dir.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("admin.token") && !text.contains("sixteen"), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let running = Running::read(dir.path()).unwrap();
        assert_eq!(running.changes(&old), Changes::default());
        let changes = running.changes(&of("[edge]\nthreads = 3"));
        assert_eq!(changes.reload, ["admin.token"]);
        assert_eq!(changes.upgrade, ["edge.threads"]);
    }
}
