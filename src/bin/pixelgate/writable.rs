//! Checks that files can be made where a configuration says, and leaves none there.
//!
//! The permissions alone do not show it: they never stop root, and some file systems make no files,
//! such as `/proc`, or only folders, as that of control groups. So a folder with a file is made in
//! the nearest folder that exists, and removed at once.

use crate::real_path::{LINKS_MAX, whole};
use pixelgate::tools::is_of_path;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why no file can be made.
#[derive(Debug)]
pub struct Unwritable {
    /// The place and the reason, as the end of a message.
    pub why: String,
    /// Whether the path is the reason, so that `run` ends with exit code 2. Otherwise the disk is:
    /// `run` starts and tries again.
    pub is_of_path: bool,
}

impl Unwritable {
    fn of(at: &Path, what: &str, e: &io::Error) -> Self {
        Self { why: format!("{} {what}: {e}", at.display()), is_of_path: is_of_path(e) }
    }

    fn wrong(at: &Path, what: &str) -> Self {
        Self { why: format!("{} {what}", at.display()), is_of_path: true }
    }
}

/// Checks that `path` is a folder or can be made one, and that files can be made in it.
pub fn folder(path: &Path) -> Result<(), Unwritable> {
    // This also finds a symbolic link to a place that does not exist, in which no folder can be
    // made.
    let is_absent = |path: &Path| {
        let found = fs::symlink_metadata(path);
        found.is_err_and(|e| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory))
    };
    let there = path.ancestors().find(|path| !is_absent(path));
    // A relative path that does not exist at all begins in the working directory.
    let there = there.filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::metadata(there) {
        Ok(found) if found.is_dir() => probe(there),
        Ok(_) => Err(Unwritable::wrong(there, "is no folder")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Err(Unwritable::wrong(there, "is a symbolic link to a place that does not exist"))
        }
        Err(e) => Err(Unwritable::of(there, "cannot be used", &e)),
    }
}

/// Makes `path` a folder, with those above it, and checks that files can be made in it.
pub fn make_folder(path: &Path) -> Result<(), Unwritable> {
    fs::create_dir_all(path).map_err(|e| Unwritable::of(path, "cannot be made", &e))?;
    folder(path)
}

/// Checks that `path` is a file that can be written, or can be made one: its folder exists, or is
/// `made` or above it, which a start makes before.
pub fn file(path: &Path, made: &Path) -> Result<(), Unwritable> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    match OpenOptions::new().append(true).custom_flags(nonblocking).open(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let target = target(path);
            // The standard library leaves out what ends a folder's path; the system does not.
            let text = target.as_os_str().as_bytes();
            let is_folder = text.ends_with(b"/") || text.ends_with(b"/.");
            match is_folder {
                true => Err(Unwritable::wrong(path, "is the path of a folder")),
                false => parent(&target, made),
            }
        }
        Err(e) => Err(Unwritable::of(path, "cannot be opened", &e)),
    }
}

/// Checks that a file can be made at `path`: its folder exists, or is `made` or above it.
pub fn parent(path: &Path, made: &Path) -> Result<(), Unwritable> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let is_made = || whole(made).starts_with(whole(parent));
    match fs::metadata(parent) {
        Err(e) if e.kind() == ErrorKind::NotFound && is_made() => folder(parent),
        Err(e) => Err(Unwritable::of(path, "cannot be made", &e)),
        Ok(found) if found.is_dir() => probe(parent),
        Ok(_) => Err(Unwritable::wrong(parent, "is no folder")),
    }
}

/// The path at which a file is made when `path` is opened: that to which symbolic links lead.
fn target(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(link) = fs::read_link(&path) else { break };
        path = path.parent().unwrap_or(Path::new("")).join(link);
    }
    path
}

/// Makes and removes a folder with a file in one that exists.
fn probe(folder: &Path) -> Result<(), Unwritable> {
    let made = folder.join(format!(".pixelgate-check-{}", std::process::id()));
    let file = made.join("file");
    let written = match fs::create_dir(&made) {
        // A folder of this name was made by a process of the same number in another container.
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(e),
        _ => fs::write(&file, "written"),
    };
    let _ = fs::remove_file(&file);
    let _ = fs::remove_dir(&made);
    written.map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            Unwritable::wrong(folder, "cannot be written: the file system makes no files there")
        }
        _ => Unwritable::of(folder, "cannot be written", &e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_place_is_writable_where_a_start_could_write_and_nothing_is_left_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("text"), "a").unwrap();
        symlink(at("none"), at("dangling")).unwrap();
        symlink("to-be-made", at("to-file")).unwrap();
        symlink("none/file", at("too-deep")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("none/", at("to-folder")).unwrap();
        let state = at("state/below");
        let check = |checked: Result<(), Unwritable>, expect: &str| match checked {
            Ok(()) => assert_eq!(expect, ""),
            Err(found) => {
                assert!(found.is_of_path && !expect.is_empty(), "{found:?}");
                assert!(found.why.contains(expect), "{found:?}");
            }
        };
        for (name, expect) in [
            ("", ""),
            ("new", ""),
            ("new/below", ""),
            ("text", "is no folder"),
            ("text/below", "is no folder"),
            ("dangling", "symbolic link"),
            ("dangling/below", "symbolic link"),
            ("loop/below", "symbolic link"),
        ] {
            check(folder(&at(name)), expect);
        }
        for (name, expect) in [
            ("text", ""),
            ("new", ""),
            ("to-file", ""),
            ("state/access.log", ""),
            ("state/below/access.log", ""),
            ("state/below/further/access.log", "No such file"),
            ("none/access.log", "No such file"),
            ("too-deep", "No such file"),
            ("text/below", "Not a directory"),
            ("", "Is a directory"),
            ("loop", "symbolic link"),
            ("new/", "path of a folder"),
            ("new/.", "path of a folder"),
            ("to-folder", "path of a folder"),
        ] {
            check(file(&at(name), &state), expect);
        }
        for (makes_none, expect) in [
            ("/proc", "cannot be written: the file system makes no files"),
            ("/proc/new/below", "cannot be written: the file system makes no files"),
            ("/sys", "cannot be written"),
        ] {
            check(folder(Path::new(makes_none)), expect);
        }
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        left.retain(|entry| !entry.path().is_symlink());
        assert_eq!(left.len(), 1, "{left:?}");
    }
}
