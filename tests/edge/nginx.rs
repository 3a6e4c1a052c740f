//! nginx as the origin: its log shows the requests, its files the uploaded bodies.

use crate::harness::wait_for;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running nginx.
pub struct Nginx {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts one with a folder of files (`/files/…`, `PUT` allowed), a page that says what it was
    /// asked (`/echo`), and 204 for everything else.
    pub fn start() -> Nginx {
        // The port is free when the kernel names it; if another process takes it before nginx
        // does, nginx ends, and another port is tried.
        (0..10).find_map(|_| Self::try_start()).expect("nginx runs (is it installed?)")
    }

    fn try_start() -> Option<Nginx> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::start_at(port)
    }

    /// Starts nginx on this address. `None`: the port is taken.
    pub fn start_at(address: SocketAddr) -> Option<Nginx> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        // Workers run as another user when the master is root.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(dir.path().join("files"), open).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let config = dir.path().join("nginx.conf");
        std::fs::write(&config, configuration(dir.path(), address)).unwrap();
        let child = Command::new("nginx")
            .arg("-c")
            .arg(&config)
            .arg("-e")
            .arg(dir.path().join("error.log"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        let mut nginx = Nginx { child, address, dir };
        let mut ended = false;
        wait_for("nginx to listen", || {
            ended = nginx.child.try_wait().unwrap().is_some();
            ended || TcpStream::connect(address).is_ok()
        });
        (!ended).then_some(nginx)
    }

    /// The folder behind `/files/`.
    pub fn files(&self) -> std::path::PathBuf {
        self.dir.path().join("files")
    }

    /// The request targets it was asked for, as they came.
    pub fn targets(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("targets.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGQUIT and SIGKILL leave workers or files; SIGTERM ends all at once.
        crate::harness::kill(&self.child, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, address: SocketAddr) -> String {
    let at = dir.display();
    format!(
        r#"
daemon off;
worker_processes 1;
pid {at}/pid;
events {{ worker_connections 4096; }}
http {{
    log_format target '$request_uri';
    access_log {at}/targets.log target;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
    client_max_body_size 0;
    merge_slashes off;
    server {{
        listen {address};
        location /files/ {{
            root {at};
            dav_methods PUT DELETE;
        }}
        location /echo {{
            default_type text/plain;
            set $who "$http_host|$http_x_forwarded_for|$http_x_forwarded_proto";
            return 200 "$request_method $request_uri|$who|$http_x_forwarded_host|$http_x_custom\n";
        }}
        location / {{ return 204; }}
    }}
}}
"#
    )
}
