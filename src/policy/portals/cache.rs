//! The cache on disk, which holds the last good list of a URL for the next start (SPEC 5).
//!
//! It is one file that is replaced as a whole, so that a list and the facts about it always match:
//!
//! | bytes | content |
//! |---|---|
//! | 0..4096 | a JSON object ([`Header`]), then blanks, then a line end |
//! | 4096.. | the list as the server sent it, decompressed |
//!
//! The modification time of the file is the time at which the server last confirmed the list. A
//! cache that is damaged, or belongs to another URL or version, is not used.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::format::Format;

/// Where the list begins in the file.
const HEADER_BYTES: usize = 4096;

const VERSION: u32 = 1;

const NAME: &str = "portals.copy";
const NAME_WHILE_WRITTEN: &str = "portals.copy.new";

/// Size of one read, in bytes.
const READ_BYTES: usize = 64 << 10;

/// The facts about a cached list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    pub url: String,
    pub format: Format,
    #[serde(flatten)]
    pub validators: Validators,
}

/// The validators of a conditional request (RFC 9110, section 13).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    #[serde(flatten)]
    about: About,
    body_crc32c: u32,
}

/// A list that is being received. Dropping it removes its file unless [`Incoming::store`]
/// succeeded.
///
/// The list is written to disk, so that a large one takes no memory. If the disk refuses it, for
/// instance because it is full, the list is received in memory: this process can use it, and only
/// the next start will not find it.
#[derive(Debug)]
pub(super) struct Incoming {
    folder: PathBuf,
    file: File,
    is_in_memory: bool,
    crc32c: u32,
    is_stored: bool,
}

/// A list that the state folder did not take.
#[derive(Debug)]
pub(super) struct Unstored {
    /// The list, in memory. `None`: the memory did not take it either.
    incoming: Option<Incoming>,
    about: About,
    /// Why the folder did not take it.
    pub why: String,
}

impl Unstored {
    /// Stores the list if the folder takes it now, and returns it if not.
    pub(super) fn store_again(mut self) -> Option<Unstored> {
        match self.incoming.take() {
            Some(incoming) => incoming.store(self.about),
            None => Some(self),
        }
    }

    /// Whether [`Unstored::store_again`] has a list to store.
    pub(super) fn is_at_hand(&self) -> bool {
        self.incoming.is_some()
    }
}

impl Incoming {
    /// Creates the file in the state folder, and the folder if it is missing.
    pub(super) fn create(folder: &Path) -> io::Result<Incoming> {
        let on_disk = create_file(folder);
        let is_in_memory = on_disk.is_err();
        let mut file = on_disk.or_else(|_| file_in_memory())?;
        file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        let folder = folder.to_owned();
        Ok(Incoming { folder, file, is_in_memory, crc32c: 0, is_stored: false })
    }

    /// Moves the part that was received so far into memory, where the rest will follow.
    fn move_into_memory(&mut self) -> io::Result<()> {
        let bytes = self.file.stream_position()?;
        let mut memory = file_in_memory()?;
        self.file.rewind()?;
        io::copy(&mut Read::take(&mut self.file, bytes), &mut memory)?;
        // The header is a hole; if the file has nothing after it, there are no bytes to copy.
        memory.seek(SeekFrom::Start(bytes))?;
        self.file = memory;
        self.is_in_memory = true;
        self.remove_file();
        Ok(())
    }

    fn move_onto_disk(&mut self) -> io::Result<()> {
        let mut file = create_file(&self.folder)?;
        self.file.rewind()?;
        if let Err(error) = io::copy(&mut self.file, &mut file) {
            self.remove_file();
            return Err(error);
        }
        self.file = file;
        self.is_in_memory = false;
        Ok(())
    }

    /// Removes the file. An error is ignored, because the next list overwrites the file.
    fn remove_file(&self) {
        let _ = fs::remove_file(self.folder.join(NAME_WHILE_WRITTEN));
    }

    /// The file, positioned at the start of the list.
    pub(super) fn list(&mut self) -> io::Result<&mut File> {
        self.file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        Ok(&mut self.file)
    }

    /// Replaces the cache with this list, and syncs it to disk. Returns the list, in memory, if the
    /// disk does not take it.
    pub(super) fn store(mut self, about: About) -> Option<Unstored> {
        let why = self.try_store(&about).err()?.to_string();
        let is_in_memory = self.is_in_memory
            || self.file.seek(SeekFrom::End(0)).and_then(|_| self.move_into_memory()).is_ok();
        Some(Unstored { incoming: is_in_memory.then_some(self), about, why })
    }

    fn try_store(&mut self, about: &About) -> io::Result<()> {
        let body_crc32c = self.crc32c;
        let header = Header { version: VERSION, about: about.clone(), body_crc32c };
        let mut header = serde_json::to_vec(&header)?;
        if header.len() >= HEADER_BYTES {
            return Err(io::Error::other("the URL and its ETag are too long to cache the list"));
        }
        header.resize(HEADER_BYTES - 1, b' ');
        header.push(b'\n');
        if self.is_in_memory {
            self.move_onto_disk()?;
        }
        self.file.write_all_at(&header, 0)?;
        self.file.sync_all()?;
        fs::rename(self.folder.join(NAME_WHILE_WRITTEN), self.folder.join(NAME))?;
        File::open(&self.folder)?.sync_all()?;
        self.is_stored = true;
        Ok(())
    }
}

impl Write for Incoming {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self.file.write(bytes) {
            Err(error) if !self.is_in_memory && error.kind() != io::ErrorKind::Interrupted => {
                self.move_into_memory()?;
                self.file.write(bytes)?
            }
            written => written?,
        };
        self.crc32c = crc32c::crc32c_append(self.crc32c, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_in_memory && !self.is_stored {
            self.remove_file();
        }
    }
}

/// A cached list found at start.
pub(super) struct CachedList {
    pub about: About,
    /// Positioned at the start of the list.
    pub list: File,
    /// How long ago the server confirmed the list.
    pub age: Duration,
}

/// The cached list of this URL. `None`: there is no cache, or it is of another URL or version.
pub(super) fn find(folder: &Path, url: &str) -> io::Result<Option<CachedList>> {
    let mut file = match File::open(folder.join(NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let header: Header = serde_json::from_slice(&header)?;
    if header.version != VERSION || header.about.url != url {
        return Ok(None);
    }
    if crc32c_of(&mut file)? != header.body_crc32c {
        return Err(io::Error::other("the cached list is damaged"));
    }
    file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
    let confirmed = file.metadata()?.modified()?;
    let age = SystemTime::now().duration_since(confirmed).unwrap_or_default();
    Ok(Some(CachedList { about: header.about, list: file, age }))
}

/// Records that the server has just confirmed the cached list. An error is ignored: the list then
/// looks older after a restart than it is, which errs towards refusing events.
pub(super) fn confirm(folder: &Path) {
    let cache = File::options().write(true).open(folder.join(NAME));
    let _ = cache.and_then(|cache| cache.set_modified(SystemTime::now()));
}

/// The file of a list that is being received.
fn create_file(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let mut options = File::options();
    // Readable by the owner only: a URL may hold a token.
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options.open(folder.join(NAME_WHILE_WRITTEN))
}

/// A file in memory, without a name.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn file_in_memory() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};
    Ok(File::from(memfd_create("portals", MemfdFlags::CLOEXEC)?))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn file_in_memory() -> io::Result<File> {
    Err(io::ErrorKind::Unsupported.into())
}

fn crc32c_of(file: &mut File) -> io::Result<u32> {
    let mut buffer = vec![0; READ_BYTES];
    let mut crc32c = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc32c),
            read => crc32c = crc32c::crc32c_append(crc32c, &buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://lists.example/portals.txt";

    fn about(url: &str) -> About {
        let validators = Validators { etag: Some("\"v1\"".to_owned()), last_modified: None };
        About { url: url.to_owned(), format: Format::Text, validators }
    }

    fn store(folder: &Path, body: &[u8]) {
        let mut incoming = Incoming::create(folder).unwrap();
        incoming.write_all(body).unwrap();
        assert!(incoming.store(about(URL)).is_none());
    }

    #[test]
    fn a_kept_list_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/state");
        assert!(find(&folder, URL).unwrap().is_none());
        store(&folder, b"11\n");
        store(&folder, b"22\n33\n");
        let mut found = find(&folder, URL).unwrap().unwrap();
        assert_eq!((text(&mut found.list).as_str(), found.about), ("22\n33\n", about(URL)));
        assert!(find(&folder, "https://lists.example/other.txt").unwrap().is_none());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn a_list_that_is_not_kept_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), b"11\n");
        Incoming::create(dir.path()).unwrap().write_all(b"2").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let mut incoming = Incoming::create(dir.path()).unwrap();
        incoming.write_all(b"22\n").unwrap();
        assert!(incoming.store(about(&"x".repeat(HEADER_BYTES))).is_some());
        assert_eq!(text(&mut find(dir.path(), URL).unwrap().unwrap().list), "11\n");
    }

    /// From now on the disk is full: what is in the file can be read, and nothing can be added.
    fn fill_disk(incoming: &mut Incoming, folder: &Path) {
        let position = incoming.file.stream_position().unwrap();
        incoming.file = File::open(folder.join(NAME_WHILE_WRITTEN)).unwrap();
        incoming.file.seek(SeekFrom::Start(position)).unwrap();
    }

    #[test]
    fn a_list_that_the_disk_does_not_take_is_read_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for full_at in [0, 1] {
            let mut incoming = Incoming::create(dir.path()).unwrap();
            for (at, piece) in [b"11\n", b"22\n"].into_iter().enumerate() {
                if at == full_at {
                    fill_disk(&mut incoming, dir.path());
                }
                incoming.write_all(piece).unwrap();
            }
            assert!(incoming.is_in_memory);
            assert_eq!(text(incoming.list().unwrap()), "11\n22\n");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_list_that_the_disk_does_not_take_is_stored_once_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state");
        // First there is no folder, then the cache has no place in it.
        fs::write(&folder, "").unwrap();
        let mut incoming = Incoming::create(&folder).unwrap();
        incoming.write_all(b"11\n22\n").unwrap();
        let unstored = incoming.store(about(URL)).unwrap();
        assert!(unstored.is_at_hand(), "{}", unstored.why);
        fs::remove_file(&folder).unwrap();
        fs::create_dir_all(folder.join(NAME)).unwrap();
        let unstored = unstored.store_again().unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "nothing but what is in the way");
        // Another list that is being received meanwhile stays.
        let mut other = Incoming::create(&folder).unwrap();
        other.write_all(b"33\n").unwrap();
        fs::remove_dir(folder.join(NAME)).unwrap();
        assert!(other.store(about(URL)).is_none());
        assert_eq!(text(&mut find(&folder, URL).unwrap().unwrap().list), "33\n");
        assert!(unstored.store_again().is_none());
        assert_eq!(text(&mut find(&folder, URL).unwrap().unwrap().list), "11\n22\n");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }

    fn text(list: &mut File) -> String {
        let mut text = String::new();
        list.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), b"11\n22\n");
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        for at in (0..200).chain(HEADER_BYTES..whole.len()) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            // A damaged header may still be one, of another URL or with another ETag.
            let found = find(dir.path(), URL);
            assert!(at < HEADER_BYTES || found.is_err(), "byte {at}");
        }
        for length in [0, 100, HEADER_BYTES, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(find(dir.path(), URL).is_err(), "{length} bytes");
        }
    }
}
