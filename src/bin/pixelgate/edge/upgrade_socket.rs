//! The Unix socket in `edge.state_dir` at which a process offers its listening sockets (SPEC 8).
//!
//! A thread makes the socket and looks at it each second, because without it no upgrade is
//! possible: a disk may refuse it at first, a cleaner of temporary files may remove it, and a
//! successor that has ended leaves a socket of its own at the path, on which no process listens.
//! While the path has no socket of this process, `/status` shows the fault `state_dir`.

use super::within::{START_LIMIT, within};
use pixelgate::admin_pages::FaultKind;
use pixelgate::custom::Faults;
use rustix::io::Errno;
use std::fs::{Permissions, create_dir_all, remove_file, rename, set_permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The pause between two looks at the path, in seconds.
const LOOK_SECONDS: u64 = 1;

/// The state of the successor, as the old process knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Successor {
    /// There is no successor.
    None,
    /// The successor has the sockets and does not accept yet.
    Starting,
    /// The successor accepts.
    Accepting,
}

/// The listener on the Unix socket, and its replacements. `None` until the socket could be made.
pub type Listeners = watch::Sender<Option<UnixListener>>;

/// What the thread needs to make the socket and to look at it.
pub struct Maker {
    /// The path of the socket.
    pub path: PathBuf,
    /// Whether the first socket takes the place of one on which the old process still listens.
    pub replaces: bool,
    /// The state of the successor. While there is one, the socket at the path is the successor's.
    pub successor: watch::Receiver<Successor>,
    /// The faults of this process.
    pub faults: Faults,
}

/// What is at the path of the socket.
enum PathState {
    Ours,
    /// A socket on which another process listens.
    Another,
    /// No socket, or that of a process that has ended.
    Free,
}

impl Maker {
    /// Starts the thread, which ends when the returned value is dropped. Returns after the first
    /// attempt to make the socket. A disk that does not answer delays the return by
    /// [`START_LIMIT`].
    pub fn start(self) -> Arc<Listeners> {
        let listeners = Arc::new(watch::channel(None).0);
        let (path, faults) = (self.path.clone(), self.faults.clone());
        let slot = Arc::downgrade(&listeners);
        if within(START_LIMIT, move |tried| self.run(&slot, &tried)).is_none() {
            note_failure(&faults, &path, true, &"the disk does not answer");
        }
        listeners
    }

    /// Makes the socket, and makes it again when it is not at the path any more, until `slot` has
    /// no owner. Sends to `tried` after each attempt.
    fn run(mut self, slot: &Weak<Listeners>, tried: &SyncSender<()>) {
        let mut made = None;
        let mut was_well = true;
        loop {
            let began = Instant::now();
            let looked = self.look(&mut made);
            // A start that took longer has gone on without the socket, and has logged that.
            was_well &= began.elapsed() < START_LIMIT;
            let Some(listeners) = slot.upgrade() else { return };
            match looked {
                Ok(new) => {
                    if let Some(listener) = new {
                        listeners.send_replace(Some(listener));
                    }
                    if !was_well {
                        log::info!("{}: an upgrade is possible from now on", self.path.display());
                    }
                    was_well = true;
                    self.faults.clear(FaultKind::StateDir, &subject(&self.path));
                }
                Err(why) => {
                    note_failure(&self.faults, &self.path, was_well, &why);
                    was_well = false;
                }
            }
            drop(listeners);
            // Only the first attempt is waited for. After it, the channel is full or has no
            // receiver.
            let _ = tried.try_send(());
            std::thread::sleep(Duration::from_secs(LOOK_SECONDS));
        }
    }

    /// Makes the socket if there is no successor and no socket of this process at the path. `made`
    /// identifies the socket that was made last. Returns a new listener if one was made.
    fn look(&mut self, made: &mut Option<Identity>) -> io::Result<Option<UnixListener>> {
        if *self.successor.borrow() != Successor::None {
            return Ok(None);
        }
        match self.find(*made) {
            PathState::Ours => return Ok(None),
            PathState::Another if !self.replaces => {
                return Err(io::Error::other("another edge offers its sockets here"));
            }
            PathState::Another | PathState::Free => {}
        }
        let listener = listen(&self.path)?;
        *made = identity(&self.path);
        self.replaces = false;
        Ok(Some(listener))
    }

    fn find(&self, made: Option<Identity>) -> PathState {
        match identity(&self.path) {
            Some(found) if made == Some(found) => PathState::Ours,
            Some(_) if is_used(&self.path) => PathState::Another,
            _ => PathState::Free,
        }
    }
}

/// Raises the fault, and logs the first of several failures.
fn note_failure(faults: &Faults, path: &Path, is_first: bool, why: &dyn std::fmt::Display) {
    let text = format!("{}: no upgrade is possible: {why}", path.display());
    if is_first {
        log::warn!("{text}");
    }
    let advice = "Look at edge.state_dir: it must be a folder of this edge alone, in which files \
                  can be made. It is tried again each second. Events are not affected.";
    faults.raise(FaultKind::StateDir, &subject(path), text, advice);
}

fn subject(path: &Path) -> String {
    path.display().to_string()
}

/// Identifies a file: its device and its inode. An inode is not used again while a socket has it.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Makes a Unix socket for this user at `path`, in place of an earlier one.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(state_dir) = path.parent() {
        create_dir_all(state_dir)?;
    }
    // The socket has a temporary name until its permissions are set. So other users can never
    // connect, and a successor finds either the old socket or the new one.
    let making = path.with_extension(format!("{}", std::process::id()));
    remove_if_there(&making)?;
    let listener = UnixListener::bind(&making)?;
    let opened = set_permissions(&making, Permissions::from_mode(0o600))
        .and_then(|()| rename(&making, path))
        .and_then(|()| listener.set_nonblocking(true));
    if opened.is_err() {
        let _ = remove_file(&making);
    }
    opened.map(|()| listener)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether a process listens on the socket at `path`.
fn is_used(path: &Path) -> bool {
    probe(path) == Some(Errno::PROTOTYPE)
}

/// Whether there is a socket at `path` and its process has ended.
pub fn is_left_behind(path: &Path) -> bool {
    probe(path) == Some(Errno::CONNREFUSED)
}

/// Connects to the socket at `path` and returns why that failed. Its process does not notice: a
/// datagram socket cannot connect to a stream socket, and the kernel says so (`EPROTOTYPE`) only
/// where a process has the stream socket open.
fn probe(path: &Path) -> Option<Errno> {
    let connected = UnixDatagram::unbound().and_then(|probe| probe.connect(path));
    connected.err().and_then(|e| Errno::from_io_error(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_used_while_a_process_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        assert!(!is_used(&path) && !is_left_behind(&path), "nothing is there");
        let listener = listen(&path).unwrap();
        assert!(is_used(&path) && !is_left_behind(&path));
        let error = listener.accept().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "the probe is not seen");
        drop(listener);
        assert!(!is_used(&path) && is_left_behind(&path), "its process has ended");
    }
}
