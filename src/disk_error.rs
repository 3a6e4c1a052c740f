//! Tells the errors of a file system that are a mistake in a path from those that are a condition
//! of the disk. SPEC 6 lets only the former stop a start.

use std::io;

/// Whether the path itself is the mistake: it leads through a file, names a folder that does not
/// exist, or this process lacks the permission. Such an error lasts until an operator changes the
/// configuration or the owner of the path. Every other error may end without a change: no space, no
/// inode, a quota, a read-only mount, a device that fails, too many open files.
pub fn is_of_path(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AlreadyExists, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound,
        PermissionDenied, Unsupported,
    };
    let is_loop = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    is_loop
        || matches!(
            error.kind(),
            AlreadyExists
                | InvalidFilename
                | InvalidInput
                | IsADirectory
                | NotADirectory
                | NotFound
                | PermissionDenied
                | Unsupported
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn conditions_of_a_disk_are_told_from_mistakes_in_a_path() {
        let of_the_disk = [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::IO,
            Errno::ROFS,
            Errno::MFILE,
            Errno::NFILE,
            Errno::FBIG,
            Errno::NOMEM,
            Errno::STALE,
            Errno::NODEV,
        ];
        let of_the_path = [
            Errno::NOTDIR,
            Errno::ISDIR,
            Errno::EXIST,
            Errno::ACCESS,
            Errno::PERM,
            Errno::LOOP,
            Errno::NAMETOOLONG,
            Errno::NOENT,
        ];
        for errno in of_the_disk {
            assert!(!is_of_path(&errno.into()), "{errno}");
        }
        for errno in of_the_path {
            assert!(is_of_path(&errno.into()), "{errno}");
        }
    }
}
