//! The servers that are compared, each pinned to the first core.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server.
pub struct Server {
    pub name: String,
    pub address: SocketAddr,
    pub is_edge: bool,
    child: Child,
    _dir: tempfile::TempDir,
    /// Lives as long as the server that stands in front of it.
    _origin: Option<Box<Server>>,
}

impl Server {
    /// Its processes: itself, and nginx's worker.
    fn processes(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        std::iter::once(pid).chain(children).collect()
    }

    /// CPU seconds used so far, user and system.
    pub fn cpu(&self) -> f64 {
        let ticks: u64 = self.processes().iter().map(|pid| ticks(*pid)).sum();
        // The kernel's unit for user space is 100 a second on every Linux.
        ticks as f64 / 100.0
    }

    fn memory(&self, key: &str) -> f64 {
        let of = |pid: &u32| -> Option<f64> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        self.processes().iter().filter_map(of).sum()
    }

    /// Memory in use, in KiB.
    pub fn resident_kib(&self) -> f64 {
        self.memory("VmRSS:")
    }

    /// Most memory ever in use, in MiB.
    pub fn peak_mib(&self) -> f64 {
        self.memory("VmHWM:") / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx's master must end its worker itself.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything; the fields begin behind it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    field(11) + field(12)
}

fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "0", program]).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_until_open(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The release build of the edge. `spool` holds lines of `[spool]`.
pub fn edge(name: &str, spool: &str, origin: Option<Server>) -> Server {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = dir.path().display();
    let address = free_port();
    let origin_key = match &origin {
        Some(origin) => format!("origin = \"http://{}\"", origin.address),
        None => String::new(),
    };
    let config = format!(
        "[edge]\nlisten = [\"{address}\"]\nthreads = 1\nstate_dir = \"{at}\"\n{origin_key}\n\
         [portals]\nsource = \"{at}/portals.toml\"\n[spool]\ndir = \"{at}/spool\"\n{spool}\n\
         [admin]\nlisten = \"\"\n\
         [[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"{at}/events\"\n"
    );
    std::fs::write(dir.path().join("portals.toml"), "portals = [62515]\n").unwrap();
    let path = dir.path().join("edge.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = pinned(env!("CARGO_BIN_EXE_pixelgate"));
    let child = command.arg("--config").arg(&path).spawn().expect("taskset is installed");
    wait_until_open(address);
    let name = format!("pixelgate, {name}");
    let origin = origin.map(Box::new);
    Server { name, address, is_edge: true, child, _dir: dir, _origin: origin }
}

/// nginx with `empty_gif` and a buffered JSON access log.
pub fn nginx() -> Server {
    start_nginx("nginx empty_gif, JSON log", |dir, address| {
        let log = "log_format json escape=json '{\"t\":\"$msec\",\"u\":\"$request_uri\",\
                   \"a\":\"$remote_addr\",\"ua\":\"$http_user_agent\",\"r\":\"$http_referer\"}';";
        format!(
            "{log} access_log {dir}/access.log json buffer=64k;\n\
             server {{ listen {address} backlog=4096; location /v1/event/ {{ empty_gif; }} }}"
        )
    })
}

/// nginx in front of an origin that lives elsewhere.
pub fn nginx_proxy(origin: SocketAddr) -> Server {
    start_nginx("nginx proxy_pass, JSON log", |dir, address| {
        format!(
            "access_log {dir}/access.log combined buffer=64k;\n\
             upstream origin {{ server {origin}; keepalive 128; }}\n\
             server {{ listen {address}; location / {{ proxy_pass http://origin; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}"
        )
    })
}

/// An nginx that serves a small file and a larger one.
pub fn origin() -> Server {
    start_nginx("origin", |dir, address| {
        std::fs::write(format!("{dir}/1k"), vec![b'x'; 1000]).unwrap();
        std::fs::write(format!("{dir}/100k"), vec![b'x'; 100_000]).unwrap();
        format!("access_log off;\nserver {{ listen {address}; root {dir}; }}")
    })
}

fn start_nginx(name: &str, http: impl Fn(&str, SocketAddr) -> String) -> Server {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    open_to_all(dir.path());
    let at = dir.path().display().to_string();
    let address = free_port();
    let config = format!(
        "daemon off; worker_processes 1; worker_rlimit_nofile 20000; pid {at}/pid;\n\
         events {{ worker_connections 16384; }}\n\
         http {{ keepalive_requests 100000000; keepalive_timeout 3600;\n{}\n}}\n",
        http(&at, address)
    );
    let path = dir.path().join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = pinned("nginx");
    command.arg("-c").arg(&path).arg("-e").arg(dir.path().join("error.log"));
    let child = command.spawn().expect("taskset and nginx are installed");
    wait_until_open(address);
    Server { name: name.into(), address, is_edge: false, child, _dir: dir, _origin: None }
}

/// nginx's worker is another user when its master is root.
fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}
