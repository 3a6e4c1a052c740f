//! Starts and stops the binary, each time in its own folder and on ports that the kernel chooses.

use crate::http::{Connection, Response};
use rustix::process::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Limit for every wait. It asserts no speed: it makes a test fail that would otherwise wait for
/// ever.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The portals of every test's list.
pub const PORTALS: &str = "portals = [62515, 56043]\n";

/// A running edge.
pub struct Edge {
    child: Child,
    /// The address of its first listener.
    pub address: SocketAddr,
    /// Its admin listener.
    pub admin: SocketAddr,
    log: Arc<Mutex<String>>,
    dir: Arc<tempfile::TempDir>,
}

/// Settings of an edge, in addition to the harness's own.
#[derive(Default, Clone)]
pub struct Setup {
    listen: String,
    edge: String,
    sections: String,
    upstreams: String,
    portals: Option<String>,
    spool: String,
}

impl Setup {
    /// Lines of `[edge]`.
    pub fn edge(mut self, lines: &str) -> Self {
        self.edge += lines;
        self.edge += "\n";
        self
    }

    /// One more listener.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen += &format!(", \"{address}\"");
        self
    }

    /// An origin.
    pub fn origin(self, origin: SocketAddr) -> Self {
        self.edge(&format!("origin = \"http://{origin}\""))
    }

    /// Whole sections, such as `[response]`.
    pub fn sections(mut self, text: &str) -> Self {
        self.sections += text;
        self.sections += "\n";
        self
    }

    /// Whole `[[upstream]]` tables, instead of the file upstream.
    pub fn upstreams(mut self, text: &str) -> Self {
        self.upstreams += text;
        self.upstreams += "\n";
        self
    }

    /// Lines of `[spool]`.
    pub fn spool(mut self, lines: &str) -> Self {
        self.spool += lines;
        self.spool += "\n";
        self
    }

    /// The portal list, instead of [`PORTALS`].
    pub fn portals(mut self, list: &str) -> Self {
        self.portals = Some(list.to_owned());
        self
    }

    /// Writes the configuration into a new folder, and starts the edge.
    pub fn start(self) -> Edge {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        self.write(dir.path());
        Edge::start_in(dir)
    }

    /// The same as `start`, behind these commands of a shell, such as `ulimit -n 300`.
    #[allow(dead_code, reason = "for tests/security")]
    pub fn start_under(self, commands: &str) -> Edge {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        self.write(dir.path());
        Edge::start_under(dir, commands)
    }

    /// Writes the configuration and the portal list into `dir`, and returns the path of the
    /// configuration.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let at = dir.display();
        let upstreams = match self.upstreams.as_str() {
            "" => {
                format!("[[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"{at}/events\"\n")
            }
            own => own.to_owned(),
        };
        // The disk of a machine that runs tests may be slow.
        let spool = match self.spool.contains("commit_seconds_max") {
            true => self.spool.clone(),
            false => format!("commit_seconds_max = 60\n{}", self.spool),
        };
        let portals = dir.join("portals.toml");
        std::fs::write(&portals, self.portals.as_deref().unwrap_or(PORTALS)).unwrap();
        let config = format!(
            "[edge]\nlisten = [\"127.0.0.1:0\"{}]\nstate_dir = \"{at}\"\n{}\n\
             [portals]\nsource = \"{at}/portals.toml\"\nrefresh_seconds = 1\n\
             [spool]\ndir = \"{at}/spool\"\n{}\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n{}\n{}",
            self.listen, self.edge, spool, self.sections, upstreams
        );
        let path = dir.join("edge.toml");
        std::fs::write(&path, config).unwrap();
        path
    }
}

impl Edge {
    /// Starts an edge with the harness's settings alone.
    pub fn start() -> Edge {
        Setup::default().start()
    }

    /// Starts an edge on a folder that holds its configuration.
    pub fn start_in(dir: Arc<tempfile::TempDir>) -> Edge {
        Self::start_with(dir, &[])
    }

    /// As [`Edge::start_in`], behind these commands of a shell.
    pub fn start_under(dir: Arc<tempfile::TempDir>, commands: &str) -> Edge {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{commands}; exec \"$0\" run --config \"$1\""));
        shell.arg(binary()).arg(dir.path().join("edge.toml"));
        shell.env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
        Edge::spawn(shell, dir)
    }

    /// As [`Edge::start_in`], with these variables in its environment.
    pub fn start_with(dir: Arc<tempfile::TempDir>, environment: &[(&str, &str)]) -> Edge {
        Self::start_as(dir, &["run"], environment)
    }

    /// Starts the edge that takes over the sockets of this one.
    pub fn upgrade(&self) -> Edge {
        Self::start_successor(Arc::clone(&self.dir))
    }

    /// Starts an edge that takes over from the edge that runs on its folder.
    pub fn start_successor(dir: Arc<tempfile::TempDir>) -> Edge {
        Self::start_as(dir, &["run", "--upgrade"], &[])
    }

    fn start_as(dir: Arc<tempfile::TempDir>, arguments: &[&str], set: &[(&str, &str)]) -> Edge {
        let mut command = command(&dir.path().join("edge.toml"), arguments);
        command.envs(set.iter().copied());
        Self::spawn(command, dir)
    }

    fn spawn(mut command: Command, dir: Arc<tempfile::TempDir>) -> Edge {
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let keep = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = keep.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut edge = Edge { child, address: nowhere, admin: nowhere, log, dir };
        edge.address = edge.announced("(events and pass-through)");
        edge.admin = edge.announced("(admin)");
        edge
    }

    fn announced(&mut self, what: &str) -> SocketAddr {
        let mut found = None;
        wait_for(&format!("the edge to announce {what}"), || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the edge ended with {status}:\n{}", self.log());
            }
            let log = self.log();
            let line = log.lines().find(|line| line.contains(what));
            let url = line.and_then(|line| line.split("://").nth(1));
            found = url.and_then(|url| url.split(' ').next()?.parse().ok());
            found.is_some()
        });
        found.unwrap()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Its folder, for an edge that follows it.
    #[allow(dead_code, reason = "for tests/edge")]
    pub fn folder(&self) -> Arc<tempfile::TempDir> {
        Arc::clone(&self.dir)
    }

    /// Waits until its log holds this text.
    pub fn wait_log(&self, what: &str) {
        wait_for(&format!("the log to say {what:?}"), || self.log().contains(what));
    }

    /// Its resident memory, in KiB.
    #[allow(dead_code, reason = "for tests/security")]
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Its standard error so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A new connection to it.
    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    /// One `GET` on a connection of its own.
    pub fn get(&self, target: &str) -> Response {
        self.connect().get(target, "")
    }

    /// One event by its query.
    pub fn event(&self, query: &str) -> Response {
        self.get(&format!("/v1/event/?{query}"))
    }

    /// A page of the admin listener.
    pub fn admin(&self, page: &str) -> Response {
        self.admin_with(page, "")
    }

    /// As [`Edge::admin`], with further header lines, each ended by CRLF.
    pub fn admin_with(&self, page: &str, lines: &str) -> Response {
        let host = format!("Host: {}\r\n{lines}", self.admin);
        Connection::open(self.admin).get(page, &host)
    }

    /// `/status`.
    pub fn status(&self) -> Value {
        let page = self.admin("/status");
        assert_eq!(page.status, 200);
        serde_json::from_slice(&page.body).unwrap()
    }

    /// One upstream's row of `/status`.
    pub fn upstream(&self, name: &str) -> Value {
        let status = self.status();
        let rows = status["upstreams"].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).unwrap().clone()
    }

    /// Waits until an upstream has nothing pending.
    pub fn wait_delivered(&self, name: &str) -> Value {
        let mut row = Value::Null;
        wait_for("everything to be delivered", || {
            row = self.upstream(name);
            row["pending"] == 0
        });
        let sum = row["delivered"].as_u64().unwrap() + row["dead"].as_u64().unwrap();
        assert_eq!(row["accepted"].as_u64(), Some(sum), "{row}");
        row
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(&self.child, signal);
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the edge to end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Stops it gracefully and returns its folder.
    pub fn stop(mut self) -> Arc<tempfile::TempDir> {
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        Arc::clone(&self.dir)
    }

    /// Kills it as a crash would and returns its folder.
    pub fn kill(mut self) -> Arc<tempfile::TempDir> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Arc::clone(&self.dir)
    }

    /// Every event in the files of the file upstream, as JSON. Files that are still open count.
    pub fn events_in_files(dir: &Path) -> Vec<Value> {
        let mut events = Vec::new();
        let Ok(entries) = std::fs::read_dir(dir.join("events")) else { return events };
        for entry in entries.map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.contains(".ndjson") {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                events.extend(text.lines().map(|line| serde_json::from_str(line).unwrap()));
            }
        }
        events
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the edge's log:\n{}", self.log());
        }
    }
}

/// Sends a signal to a process that was started here.
pub fn kill(child: &Child, signal: Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// The binary that was built with these tests, or the build that `PIXELGATE_TEST_BINARY` names.
fn binary() -> PathBuf {
    let other = std::env::var_os("PIXELGATE_TEST_BINARY");
    other.map_or_else(|| env!("CARGO_BIN_EXE_pixelgate").into(), PathBuf::from)
}

/// The binary with this configuration and these arguments.
pub fn command(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).arg("--config").arg(config);
    command.env_remove("RUST_LOG").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// An example of the project, where `cargo test` puts it beside this test.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(|deps| deps.parent()).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "cargo build --example {name}");
    path
}

/// Polls until `done` returns true; fails after [`PATIENCE`].
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
