//! Processes: on which core they run, and the CPU and memory that they have used.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How a server is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On the first core.
    Pinned,
    /// On the second core, beside the load: not measured.
    Aside,
    /// Under callgrind, which writes how many instructions it saw to [`COUNTS`].
    Counted,
}

/// callgrind's report, in the server's folder.
pub const COUNTS: &str = "callgrind.log";
/// Open files that the load needs beside its connections.
const FILES_OF_OUR_OWN: u64 = 100;

/// Puts this process on the second core, and lets it have as many open files as may be.
pub fn prepare() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    if two_cores() {
        let pin = ["-cp", "1", &std::process::id().to_string()];
        let done = Command::new("taskset").args(pin).output().expect("taskset is installed");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many connections of `wanted` the system allows.
pub fn connections(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let allowed = limit.map_or(u64::MAX, |files| files.saturating_sub(FILES_OF_OUR_OWN));
    wanted.min(usize::try_from(allowed).unwrap_or(usize::MAX))
}

fn two_cores() -> bool {
    // Asks for the machine's cores: this process may be pinned to one of them already.
    Path::new("/sys/devices/system/cpu/cpu1").exists()
}

/// The command that runs `what` in this mode.
pub fn command(mode: Mode, dir: &Path, what: &Command) -> Command {
    let mut command = Command::new("taskset");
    let core = match mode {
        _ if !two_cores() => "0",
        Mode::Pinned => "0",
        Mode::Aside => "1",
        Mode::Counted => "0,1",
    };
    command.args(["-c", core]);
    if mode == Mode::Counted {
        let log = format!("--log-file={}", dir.join(COUNTS).display());
        command.args(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        command.args(["--fair-sched=try", &log]);
    }
    command.arg(what.get_program()).args(what.get_args());
    command
}

/// A process and its children: nginx's master, and its worker.
pub fn family(pid: u32) -> Vec<u32> {
    let children = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(children).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// CPU that a process has used, its ended threads' too. Its clock says what `/proc/PID/stat`
/// says, to the nanosecond and not to the hundredth of a second.
pub fn cpu(pid: u32) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls write to the values that they are given, and to nothing else.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid as libc::pid_t, &mut clock) != 0
            || libc::clock_gettime(clock, &mut time) != 0
    };
    assert!(!failed, "process {pid} has ended");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A line of `/proc/PID/status` that is in KiB, of a process and its children.
pub fn memory_kib(pid: u32, key: &str) -> f64 {
    let of = |pid: u32| -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    family(pid).into_iter().filter_map(of).sum()
}
