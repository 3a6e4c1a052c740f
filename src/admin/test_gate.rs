//! A gate for the tests of this room.

use crate::plugin::PixelGate;
use std::path::Path;

/// A gate that keeps all its files in `dir`.
#[cfg(test)]
pub fn open(dir: &Path) -> PixelGate {
    let list = dir.join("portals.txt");
    std::fs::write(&list, "1\n").unwrap();
    let mut config = crate::Config::default();
    config.portals.source = list.display().to_string();
    config.spool.dir = dir.join("spool");
    let files = format!("name = \"a\"\nkind = \"file\"\ndir = \"{}\"", dir.display());
    config.upstream = vec![toml::from_str(&files).unwrap()];
    PixelGate::builder(config).state_dir(dir).open().unwrap()
}
