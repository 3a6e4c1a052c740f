//! The configuration that the running edge has in force, as a file in `edge.state_dir`.
//!
//! `pixelgate check --diff` compares a configuration with it. It holds the name of each key and a
//! keyed hash of its value, with a key of its own that is made anew each time: equal values have
//! equal hashes within one file, and no value can be read from it.

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

/// Its name in `edge.state_dir`.
const FILE_NAME: &str = "configuration.json";
/// Length of the key of its hashes, in bytes.
const KEY_BYTES: usize = 32;
/// Largest file that is read, in bytes: more keys than a configuration has.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The configuration of a running edge.
#[derive(Debug, Serialize, Deserialize)]
pub struct Running {
    /// The key of the hashes, in base64.
    hash_key: String,
    /// From each configuration key to the hash of its value, in base64.
    values: BTreeMap<String, String>,
}

impl Running {
    /// The file's content for these values.
    fn of(values: &Values) -> io::Result<Running> {
        let mut key = [0; KEY_BYTES];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
        let hashed = values.all().iter().map(|(name, value)| (name.clone(), hash(&key, value)));
        Ok(Running { hash_key: BASE64_STANDARD.encode(key), values: hashed.collect() })
    }

    /// Writes the values that are in force, for this user alone, in place of an earlier file.
    pub fn write(state_dir: &Path, values: &Values) -> io::Result<()> {
        let content = Self::of(values)?;
        fs::create_dir_all(state_dir)?;
        let making = state_dir.join(format!("{FILE_NAME}.{}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&making)?;
        let written = serde_json::to_vec(&content).map_err(io::Error::other);
        let written = written.and_then(|text| file.write_all(&text));
        let placed = written.and_then(|()| fs::rename(&making, state_dir.join(FILE_NAME)));
        placed.inspect_err(|_| drop(fs::remove_file(&making)))
    }

    /// Reads what the edge of this `edge.state_dir` has in force.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is none of this version.
    pub fn read(state_dir: &Path) -> Result<Running, String> {
        let path = state_dir.join(FILE_NAME);
        let failed = |why: String| format!("{}: {why}", path.display());
        let text = pixelgate::tools::read_regular_file(&path, FILE_BYTES_MAX);
        let unknown = "no edge has run with this edge.state_dir, and a changed edge.state_dir \
                       cannot be compared";
        let text = text.map_err(|e| failed(format!("{e}: {unknown}")))?;
        serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))
    }

    /// The keys of `values` that this edge has not in force, or has and `values` has not.
    pub fn changes(&self, values: &Values) -> Changes {
        let key = BASE64_STANDARD.decode(&self.hash_key).unwrap_or_default();
        let same = |name: &str| match (values.all().get(name), self.values.get(name)) {
            (Some(new), Some(hashed)) => hash(&key, new) == *hashed,
            (None, None) => true,
            _ => false,
        };
        // A changed order needs an upgrade in any case, and is named beside this key.
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
