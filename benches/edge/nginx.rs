//! nginx: the yardstick, and the origin behind both proxies.

use crate::process::Mode;
use crate::server::{Kind, Server, folder, free_address};
use crate::tls;
use std::process::Command;

/// The sizes of the origin's files, in bytes.
pub const SMALL_BYTES: usize = 1000;
pub const LARGE_BYTES: usize = 100_000;

/// `empty_gif` and a buffered JSON log of what an event holds.
pub fn events(mode: Mode) -> Server {
    start(Kind::Nginx, mode, |dir, address| pixel(dir, &format!("{address} backlog=4096"), ""))
}

/// `empty_gif` with the same log over TLS 1.3, with HTTP/2.
pub fn events_tls(mode: Mode) -> Server {
    start(Kind::Nginx, mode, |dir, address| {
        let (cert, key) = tls::files(dir.as_ref());
        let tls =
            format!("ssl_protocols TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key};");
        pixel(dir, &format!("{address} ssl http2 backlog=4096"), &tls)
    })
}

fn pixel(dir: &str, listen: &str, more: &str) -> String {
    format!(
        "log_format json escape=json '{{\"t\":\"$msec\",\"u\":\"$request_uri\",\
         \"a\":\"$remote_addr\",\"ua\":\"$http_user_agent\",\"r\":\"$http_referer\"}}';\n\
         access_log {dir}/access.log json buffer=64k;\n\
         server {{ listen {listen}; {more} location /v1/event/ {{ empty_gif; }} }}"
    )
}

/// nginx in front of an origin of its own.
pub fn proxy(mode: Mode) -> Server {
    let origin = origin();
    let at = origin.address;
    let mut server = start(Kind::Nginx, mode, |dir, address| {
        format!(
            "access_log {dir}/access.log combined buffer=64k;\n\
             upstream origin {{ server {at}; keepalive 128; keepalive_requests 100000000; }}\n\
             server {{ listen {address}; location / {{ proxy_pass http://origin; \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}"
        )
    });
    server.origin = Some(Box::new(origin));
    server
}

/// The origin: serves a small file and a larger one, and is not measured.
pub fn origin() -> Server {
    start(Kind::Unrecorded, Mode::Aside, |dir, address| {
        std::fs::write(format!("{dir}/1k"), vec![b'x'; SMALL_BYTES]).unwrap();
        std::fs::write(format!("{dir}/100k"), vec![b'x'; LARGE_BYTES]).unwrap();
        format!("access_log off;\nserver {{ listen {address}; root {dir}; }}")
    })
}

fn start(kind: Kind, mode: Mode, http: impl Fn(&str, std::net::SocketAddr) -> String) -> Server {
    let dir = folder();
    let at = dir.path().display().to_string();
    let address = free_address();
    // One process without a worker: callgrind counts one process only.
    let processes = match mode {
        Mode::Counted => "master_process off;",
        _ => "worker_processes 1;",
    };
    let config = format!(
        "daemon off; {processes} worker_rlimit_nofile 20000; pid {at}/pid;\n\
         events {{ worker_connections 16384; }}\n\
         http {{ keepalive_requests 100000000; keepalive_timeout 3600;\n{}\n}}\n",
        http(&at, address)
    );
    let path = dir.path().join("nginx.conf");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&path).arg("-e").arg(dir.path().join("error.log"));
    Server::start(kind, mode, dir, address, &command)
}
