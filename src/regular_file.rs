//! Opens regular files and no others, without waiting.
//!
//! If a FIFO stood in the place of a list, a certificate or a key, opening it would wait until a
//! process writes to it, and reading would wait until that process ends.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use rustix::fs::{Mode, OFlags};
use rustix::io::retry_on_intr;

/// Opens a regular file for reading.
///
/// # Errors
///
/// The file cannot be opened, or it is a FIFO, a socket, a device or a folder.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("is not a regular file")),
    }
}

/// Reads a regular file of at most `bytes_max` bytes.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("key.pem");
/// use pixelgate::tools::read_regular_file;
///
/// std::fs::write(&path, "text")?;
/// assert_eq!(read_regular_file(&path, 1 << 20)?, b"text");
/// assert!(read_regular_file(&path, 3).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The file cannot be opened or read, is longer, or is a FIFO, a socket, a device or a folder.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match read as u64 > bytes_max {
        true => Err(io::Error::other(format!("is longer than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_opened_and_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let [file, fifo] = ["file", "fifo"].map(|name| dir.path().join(name));
        std::fs::write(&file, "12345").unwrap();
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        assert_eq!(read(&file, 4).unwrap_err().to_string(), "is longer than 4 bytes");
        for other in [fifo.as_path(), dir.path(), Path::new("/dev/null")] {
            assert_eq!(open(other).unwrap_err().to_string(), "is not a regular file");
        }
        let missing = open(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
