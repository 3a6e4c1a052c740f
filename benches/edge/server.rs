//! A server that is measured: its start, the wait until it has no work left, and the check at its
//! end that it has recorded every answer.

use crate::process::{self, Mode};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Anything that takes longer has gone wrong.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks at something that is waited for, long enough to cost the server nothing.
const LOOK: Duration = Duration::from_millis(20);

/// The kind of a server, which says what it must have recorded in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An event delivered, or a refusal counted, for each answer.
    Edge,
    /// An edge in front of an origin: no event at all.
    EdgeProxy,
    /// A line in the log for each answer.
    Nginx,
    /// Nothing.
    Unrecorded,
}

/// A running server.
pub struct Server {
    pub kind: Kind,
    pub address: SocketAddr,
    /// The number of requests that it has answered correctly.
    pub answered: u64,
    /// An edge's admin listener.
    pub admin: Option<SocketAddr>,
    /// The origin behind the server, which lives as long as the server.
    pub origin: Option<Box<Server>>,
    child: Child,
    dir: TempDir,
}

impl Server {
    /// Starts a program that listens on `address` and keeps its files in `dir`.
    pub fn start(
        kind: Kind,
        mode: Mode,
        dir: TempDir,
        address: SocketAddr,
        what: &Command,
    ) -> Server {
        let mut command = process::command(mode, dir.path(), what);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("taskset, nginx and valgrind are installed");
        let (answered, admin, origin) = (0, None, None);
        let mut server = Server { kind, address, answered, admin, origin, child, dir };
        server.wait_for("listening", |server| TcpStream::connect(server.address).is_ok());
        server
    }

    fn wait_for(&mut self, what: &str, holds: impl Fn(&Server) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            let ended = self.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "a server ended before {what}: {ended:?}");
            assert!(Instant::now() < deadline, "a server is not {what} after {PATIENCE:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// CPU used so far by its processes, user and system.
    pub fn cpu(&self) -> Duration {
        process::family(self.child.id()).into_iter().map(process::cpu).sum()
    }

    /// Memory in use, in KiB.
    pub fn resident_kib(&self) -> f64 {
        process::memory_kib(self.child.id(), "VmRSS:")
    }

    /// Most memory ever in use, in MiB.
    pub fn peak_mib(&self) -> f64 {
        process::memory_kib(self.child.id(), "VmHWM:") / 1024.0
    }

    /// Waits until it has delivered what it accepted.
    pub fn settle(&mut self) {
        if self.kind == Kind::Edge {
            self.wait_for("settled", |server| {
                let status = server.status();
                status["upstreams"][0]["delivered"] == status["verdicts"]["accepted"]
                    && counted(&status["verdicts"]) == server.answered
            });
        }
    }

    fn status(&self) -> Value {
        let admin = self.admin.expect("an edge has an admin listener");
        let mut stream = TcpStream::connect(admin).unwrap();
        stream
            .write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (_, body) = response.split_once("\r\n\r\n").expect("a whole response");
        serde_json::from_str(body).expect("/status is JSON")
    }

    /// Asks it to end. nginx's master must end its worker itself.
    fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }

    /// Waits for its end.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.child.try_wait().expect("it is our child") {
                return ended;
            }
            assert!(Instant::now() < deadline, "a server has not ended after {PATIENCE:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// Ends it, and makes sure that what it has recorded is what it has answered. Gives the
    /// folder with all that it left behind.
    pub fn stop(mut self) -> TempDir {
        self.settle();
        let accepted = match self.kind {
            Kind::Edge => self.status()["verdicts"]["accepted"].as_u64(),
            _ => None,
        };
        self.terminate();
        let ended = self.end();
        let recorded = |name: &str| lines_in(self.dir.path(), name);
        match self.kind {
            Kind::Edge => assert_eq!(Some(recorded(".ndjson")), accepted, "events and files"),
            Kind::Nginx => assert_eq!(recorded("access.log"), self.answered, "answers and log"),
            Kind::EdgeProxy | Kind::Unrecorded => {}
        }
        assert!(ended.success() || self.kind == Kind::Unrecorded, "it ended with {ended}");
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Servers that were not stopped are still there: an origin, or one whose assertion failed.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

fn counted(verdicts: &Value) -> u64 {
    let counts = verdicts.as_object().expect("verdicts are counted").values();
    counts.filter_map(Value::as_u64).sum()
}

/// Lines of the files below `dir` whose names contain `name`.
fn lines_in(dir: &Path, name: &str) -> u64 {
    let mut lines = 0;
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            lines += lines_in(&entry.path(), name);
        } else if entry.file_name().to_string_lossy().contains(name) {
            let mut file = std::fs::File::open(entry.path()).unwrap();
            let mut piece = vec![0; 1 << 20];
            while let Some(length) = file.read(&mut piece).ok().filter(|length| *length > 0) {
                lines += memchr::memchr_iter(b'\n', &piece[..length]).count() as u64;
            }
        }
    }
    lines
}

/// A folder for a server's files, on the disk that builds are on.
pub fn folder() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // nginx's worker is another user when its master is root.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// An address that has no listener now.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
