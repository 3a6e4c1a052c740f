//! The files and folders that other keys name. The access log must be none of them, because its
//! lines would spoil them.
//!
//! A symbolic link or a second name (a hard link) may lead to such a file, so the files themselves
//! are compared, by device and inode. This asks file systems, and one of them may hang. So it is
//! done only where the access log is opened or checked.

use crate::real_path::{resolved, whole};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The most entries of a folder that are compared with the access log.
const ENTRIES_MAX: usize = 1_000_000;

/// The files and folders that other keys name.
#[derive(Debug, Clone, Default)]
pub struct OtherFiles {
    /// Each file with what it is, such as `the file that edge.origin_ca names`.
    pub files: Vec<(String, PathBuf)>,
    /// Each folder with the key that names it.
    pub folders: Vec<(String, PathBuf)>,
    /// Folders that a start makes, and in which the access log may be, each with its key.
    pub made: Vec<(String, PathBuf)>,
}

impl OtherFiles {
    /// Returns why the file at `path` cannot be the access log. `None`: nothing else uses it, or it
    /// does not exist yet.
    pub fn conflict(&self, path: &Path) -> Option<String> {
        let (whole, real) = (whole(path), resolved(path));
        let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file);
        let id = metadata.as_ref().map(id);
        let has_names = metadata.is_some_and(|metadata| metadata.nlink() > 1);
        for (what, named) in &self.files {
            let named_id = fs::metadata(named).ok().as_ref().map(self::id);
            if real == resolved(named) || id.is_some() && id == named_id {
                return Some(format!("it leads to {what}"));
            }
        }
        let mut made = self.folders.iter().chain(&self.made);
        let is_above =
            |folder: &Path| folder.starts_with(&whole) || resolved(folder).starts_with(&real);
        if let Some((key, _)) = made.find(|(_, folder)| is_above(folder)) {
            return Some(format!("it is a folder that a start makes, because of {key}"));
        }
        for (key, folder) in &self.folders {
            let folder = resolved(folder);
            if real.starts_with(&folder) {
                return Some(format!("it leads into the folder that {key} names"));
            }
            if has_names && id.is_some_and(|id| holds(&folder, id)) {
                return Some(format!("it is also a file in the folder that {key} names"));
            }
        }
        None
    }
}

/// The device and the inode of a file.
fn id(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether one of the files below a folder is this one.
fn holds(folder: &Path, file: (u64, u64)) -> bool {
    let mut folders = vec![folder.to_owned()];
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            entries += 1;
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) if id(&metadata) == file => return true,
                _ => {}
            }
            if entries == ENTRIES_MAX {
                return false;
            }
        }
    }
    false
}
