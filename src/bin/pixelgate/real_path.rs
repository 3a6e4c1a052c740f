//! Paths in a form in which two of them can be compared.

use std::fs;
use std::path::{Path, PathBuf, absolute};

/// The most symbolic links that are followed, as in Linux.
pub const LINKS_MAX: usize = 40;

/// The absolute path. Asks no file system.
pub fn whole(path: &Path) -> PathBuf {
    // Fails only without a working directory; then no relative path can be opened either.
    absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The path with its symbolic links and its `..` replaced by what they lead to, as far as the path
/// exists. Asks the file system, which may hang.
pub fn resolved(path: &Path) -> PathBuf {
    let mut path = whole(path);
    for _ in 0..LINKS_MAX {
        if let Ok(real) = fs::canonicalize(&path) {
            return real;
        }
        // A link may lead to a file that does not exist yet.
        let Ok(target) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("/")).join(target);
    }
    let folder = path.parent().and_then(|folder| fs::canonicalize(folder).ok());
    match (folder, path.file_name()) {
        (Some(folder), Some(name)) => folder.join(name),
        _ => path,
    }
}
