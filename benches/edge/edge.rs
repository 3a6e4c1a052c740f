//! pixelgate: the binary that was built with this benchmark, or `PIXELGATE_BENCH_BINARY`.

use crate::nginx;
use crate::process::Mode;
use crate::server::{Kind, Server, folder, free_address};
use crate::tls;
use std::process::Command;

/// An edge for events.
pub fn events(mode: Mode, durability: &str) -> Server {
    start(mode, durability, Listener::Plain, Log::Off)
}

/// An edge for events that writes an access log, too.
pub fn logged_events(mode: Mode, durability: &str) -> Server {
    start(mode, durability, Listener::Plain, Log::On)
}

/// An edge for events over TLS.
pub fn tls(mode: Mode, durability: &str) -> Server {
    start(mode, durability, Listener::Tls, Log::Off)
}

/// An edge in front of an origin of its own.
pub fn proxy(mode: Mode) -> Server {
    proxy_with(mode, Log::Off)
}

/// An edge in front of an origin of its own that writes an access log.
pub fn logged_proxy(mode: Mode) -> Server {
    proxy_with(mode, Log::On)
}

fn proxy_with(mode: Mode, log: Log) -> Server {
    let origin = nginx::origin();
    let mut server = start(mode, "power", Listener::Proxy(&origin), log);
    server.origin = Some(Box::new(origin));
    server
}

/// Whether the edge writes an access log.
enum Log {
    Off,
    On,
}

/// The listener that the clients load.
enum Listener<'a> {
    Plain,
    Tls,
    Proxy(&'a Server),
}

/// One worker thread, as nginx has one worker. A batch that is not full closes after 100 ms, so
/// that a round's last events are delivered soon; under load batches are full long before.
fn start(mode: Mode, durability: &str, listener: Listener<'_>, log: Log) -> Server {
    let dir = folder();
    let at = dir.path().display();
    let (plain, loaded, admin) = (free_address(), free_address(), free_address());
    let (kind, address, edge) = match listener {
        Listener::Plain => (Kind::Edge, plain, String::new()),
        Listener::Proxy(origin) => {
            (Kind::EdgeProxy, plain, format!("origin = \"http://{}\"", origin.address))
        }
        Listener::Tls => {
            let (cert, key) = tls::files(dir.path());
            let tls = format!("listen = \"{loaded}\", cert = \"{cert}\", key = \"{key}\"");
            (Kind::Edge, loaded, format!("tls = [{{ {tls} }}]"))
        }
    };
    let log = match log {
        Log::Off => String::new(),
        Log::On => format!("[access_log]\npath = \"{at}/access.log\"\n"),
    };
    let config = format!(
        "[edge]\nlisten = [\"{plain}\"]\nthreads = 1\nstate_dir = \"{at}\"\n{edge}\n\
         [portals]\nsource = \"{at}/portals.toml\"\n\
         [spool]\ndir = \"{at}/spool\"\ndurability = \"{durability}\"\n\
         [batch]\nlinger_ms = 100\n\
         [admin]\nlisten = \"{admin}\"\n{log}\
         [[upstream]]\nname = \"file\"\nkind = \"file\"\ndir = \"{at}/events\"\n"
    );
    std::fs::write(dir.path().join("portals.toml"), "portals = [62515]\n").unwrap();
    let path = dir.path().join("edge.toml");
    std::fs::write(&path, config).unwrap();
    let binary = std::env::var("PIXELGATE_BENCH_BINARY");
    let binary = binary.unwrap_or_else(|_| env!("CARGO_BIN_EXE_pixelgate").to_owned());
    let mut command = Command::new(binary);
    command.arg("--config").arg(path);
    let mut server = Server::start(kind, mode, dir, address, &command);
    server.admin = Some(admin);
    server
}
