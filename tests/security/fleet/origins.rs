//! Real origins, each with a handler of its own for `/v1/event`. An origin whose program is not
//! installed is left out, and a line says so.

use crate::harness::{PATIENCE, kill, wait_for};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What the handler answers, in the body or in a header.
const REACHED: &str = "the event handler was reached";
/// The folder with the sources of the origins that this repository has itself.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security/fleet/origins");

/// One way in which an origin may be set up, on a port of its own.
pub struct Origin {
    pub name: String,
    pub address: SocketAddr,
}

impl Origin {
    /// Whether a request for this target reaches the handler. A target may be too odd for an
    /// origin, which then closes without an answer.
    pub fn is_reached_by(&self, target: &[u8]) -> bool {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let rest = b" HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n";
        // An origin that refuses the request may close before it has read all of it.
        let _ = stream.write_all(&[b"GET ", target, rest].concat());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).contains(REACHED)
    }
}

/// All origins that are installed here. They end when this is dropped.
pub struct Fleet {
    pub origins: Vec<Origin>,
    processes: Vec<Child>,
    dir: tempfile::TempDir,
}

impl Fleet {
    pub fn start() -> Fleet {
        Fleet::of(|fleet, at| {
            write_files(at);
            // These origins choose ports and print them. They are started all at once.
            let go = fleet.build_go(&format!("{SOURCES}/main.go"));
            let programs = [tomcat(at), Some(node()), Some(python(at)), go];
            let outputs = programs.map(|program| fleet.spawn(program?)?.stdout.take());
            // These origins are given ports.
            let names = ["nginx", "nginx, merge_slashes off", "nginx, $uri passed on to nginx"];
            fleet.serve(&names, |ports| nginx(at, ports));
            let apache_names = [
                "Apache",
                "Apache, MergeSlashes Off",
                "Apache, AllowEncodedSlashes On",
                "Apache, AllowEncodedSlashes NoDecode",
            ];
            fleet.serve(&apache_names, |ports| apache(at, ports));
            fleet.serve(&["lighttpd"], |ports| lighttpd(at, ports));
            fleet.serve(&["PHP, files"], |ports| php(ports, &["-t", &text(&at.join("php"))]));
            let front_controller = format!("{SOURCES}/router.php");
            fleet.serve(&["PHP, a front controller"], |ports| php(ports, &[&front_controller]));
            for output in outputs.into_iter().flatten() {
                fleet.read_ports(BufReader::new(output));
            }
        })
    }

    /// The origins that `start` starts, in a folder that others can read.
    pub fn of(start: impl FnOnce(&mut Fleet, &Path)) -> Fleet {
        let dir = tempfile::tempdir().unwrap();
        // Workers run as another user when the server is started by root.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let mut fleet = Fleet { origins: Vec::new(), processes: Vec::new(), dir };
        let at = fleet.dir.path().to_owned();
        start(&mut fleet, &at);
        fleet
    }

    /// Starts a program that says on which ports it listens.
    pub fn start_program(&mut self, command: Command) {
        if let Some(output) = self.spawn(command).and_then(|child| child.stdout.take()) {
            self.read_ports(BufReader::new(output));
        }
    }

    /// Compiles a program. `None`: Go is not installed.
    pub fn build_go(&self, source: &str) -> Option<Command> {
        let program = self.dir.path().join("go-origin");
        let mut build = Command::new("go");
        build.env("GO111MODULE", "off").arg("build").arg("-o").arg(&program).arg(source);
        match build.status() {
            Ok(status) => assert!(status.success(), "go build failed"),
            Err(_) => {
                println!("go is not installed: left out");
                return None;
            }
        }
        Some(Command::new(program))
    }

    /// Starts a program. `None`: it is not installed.
    fn spawn(&mut self, mut command: Command) -> Option<&mut Child> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => self.processes.push(child),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("{} is not installed: left out", command.get_program().display());
                return None;
            }
            Err(error) => panic!("{}: {error}", command.get_program().display()),
        }
        self.processes.last_mut()
    }

    /// Starts a program with a port for each of these names.
    pub fn serve(&mut self, names: &[&str], command: impl Fn(&[u16]) -> Command) {
        // The ports are free when the kernel names them; if another process takes one before the
        // program does, the program ends, and other ports are tried.
        for _ in 0..10 {
            let ports = free_ports(names.len());
            let addresses: Vec<_> = ports.iter().map(|port| local(*port)).collect();
            let Some(child) = self.spawn(command(&ports)) else { return };
            let mut ended = false;
            wait_for(&format!("{} to listen", names[0]), || {
                ended = child.try_wait().unwrap().is_some();
                ended || addresses.iter().all(|address| TcpStream::connect(address).is_ok())
            });
            if !ended {
                let origins = names.iter().zip(addresses);
                self.origins.extend(
                    origins.map(|(name, address)| Origin { name: (*name).to_owned(), address }),
                );
                return;
            }
        }
        panic!("{} does not start", names[0]);
    }

    /// Reads which set-up listens on which port, and which are left out.
    fn read_ports(&mut self, output: impl BufRead) {
        for line in output.lines().map(Result::unwrap) {
            match line.rsplit_once(": ").map(|(name, port)| (name, port.parse())) {
                Some((name, Ok(port))) => {
                    self.origins.push(Origin { name: name.to_owned(), address: local(port) });
                }
                _ if line == "ready" => return,
                _ => println!("{line}: left out"),
            }
        }
        panic!("an origin ended before it was ready");
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in &mut self.processes {
            if child.try_wait().is_ok_and(|ended| ended.is_none()) {
                kill(child, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind(local(0)).unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The folders that the servers of files show: in one the event path is a folder, in one a file.
fn write_files(at: &Path) {
    for (file, content) in [
        ("folder/v1/event/index.html", REACHED.to_owned()),
        ("file/v1/event", REACHED.to_owned()),
        ("php/v1/event/index.php", format!("<?php echo '{REACHED}';")),
    ] {
        let file = at.join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, content).unwrap();
    }
}

pub fn write(at: &Path, name: &str, content: String) -> PathBuf {
    let path = at.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn nginx(at: &Path, ports: &[u16]) -> Command {
    let dir = at.display();
    let server = |merge: &str, port: u16| {
        format!(
            "server {{ listen 127.0.0.1:{port}; merge_slashes {merge};
             location = /v1/event {{ return 200 '{REACHED}'; }}
             location /v1/event/ {{ return 200 '{REACHED}'; }}
             location / {{ return 204; }} }}\n"
        )
    };
    let [on, off, passing] = ports else { unreachable!("nginx has three ports") };
    let servers = server("on", *on) + &server("off", *off);
    // A path that one server has decoded and resolved is decoded once more by the next.
    let chain = format!(
        "server {{ listen 127.0.0.1:{passing}; merge_slashes off;
         location / {{ proxy_pass http://127.0.0.1:{on}$uri; }} }}\n"
    );
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/nginx-{name};\n"))
        .concat();
    let content = format!(
        "daemon off; worker_processes 1; pid {dir}/nginx.pid;
         events {{ worker_connections 1024; }}
         http {{ access_log off; {paths} {servers} {chain} }}\n"
    );
    let mut command = Command::new("nginx");
    command.arg("-c").arg(write(at, "nginx.conf", content));
    command.arg("-e").arg(at.join("nginx.log"));
    command
}

/// A configuration with both: a file, which is reached by the path in the file system, and a
/// header, which is set by the path of the URL.
fn apache(at: &Path, ports: &[u16]) -> Command {
    let dir = at.display();
    let ways = ["", "MergeSlashes Off", "AllowEncodedSlashes On", "AllowEncodedSlashes NoDecode"];
    let hosts: String = ways
        .iter()
        .zip(ports)
        .map(|(way, port)| {
            format!(
                "Listen 127.0.0.1:{port}
                 <VirtualHost 127.0.0.1:{port}>
                 {way}
                 DocumentRoot {dir}/file
                 <Location /v1/event>
                 Header always set X-Handler '{REACHED}'
                 </Location>
                 </VirtualHost>\n"
            )
        })
        .collect();
    let modules: String = ["mpm_event", "authz_core", "headers"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let content = format!(
        "ServerName origin
         PidFile {dir}/apache.pid
         ErrorLog {dir}/apache.log
         {modules}
         User www-data
         Group www-data
         <Directory {dir}/file>
         Require all granted
         AcceptPathInfo On
         </Directory>
         {hosts}"
    );
    let mut command = Command::new("apache2");
    command.arg("-DFOREGROUND").arg("-f").arg(write(at, "apache.conf", content));
    command
}

fn lighttpd(at: &Path, ports: &[u16]) -> Command {
    let dir = at.display();
    let content = format!(
        "server.modules = (\"mod_setenv\")
         server.bind = \"127.0.0.1\"
         server.port = {}
         server.document-root = \"{dir}/folder\"
         index-file.names = (\"index.html\")
         $HTTP[\"url\"] =~ \"^/v1/event(/|$)\" {{
             setenv.add-response-header = (\"X-Handler\" => \"{REACHED}\")
         }}\n",
        ports[0]
    );
    let mut command = Command::new("lighttpd");
    command.arg("-D").arg("-f").arg(write(at, "lighttpd.conf", content));
    command
}

fn php(ports: &[u16], arguments: &[&str]) -> Command {
    let mut command = Command::new("php");
    command.arg("-S").arg(local(ports[0]).to_string()).args(arguments);
    command
}

fn node() -> Command {
    let mut command = Command::new("node");
    // Debian's packages, and those that `.ci/need-fleet` installs.
    let packages = concat!(env!("CARGO_MANIFEST_DIR"), "/target/fleet/node_modules");
    command.env("NODE_PATH", format!("/usr/share/nodejs:{packages}"));
    command.arg(format!("{SOURCES}/node.cjs"));
    command
}

fn python(at: &Path) -> Command {
    // Debian's packages are installed for this interpreter.
    let mut command = Command::new("/usr/bin/python3");
    command.arg(format!("{SOURCES}/python.py")).arg(at.join("folder"));
    command
}

/// `None`: Tomcat's library is not installed.
fn tomcat(at: &Path) -> Option<Command> {
    let jars = [
        "annotations-api",
        "api",
        "catalina",
        "coyote",
        "el-api",
        "jaspic-api",
        "jni",
        "juli",
        "servlet-api",
        "util",
        "util-scan",
    ];
    let jars = jars.map(|name| format!("/usr/share/java/tomcat10-{name}.jar"));
    if let Some(missing) = jars.iter().find(|jar| !Path::new(jar).exists()) {
        println!("{missing} is not installed: Tomcat is left out");
        return None;
    }
    let mut command = Command::new("java");
    command.arg("-cp").arg(jars.join(":")).arg(format!("{SOURCES}/Origin.java")).arg(at);
    Some(command)
}
