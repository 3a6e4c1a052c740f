//! A listening socket, which is opened before Pingora starts.
//!
//! Pingora opens sockets inside its services, where a failure is a panic in a background task. A
//! socket that is opened earlier gives a clear message and an exit code if its address is in use,
//! and tells the port that the kernel chose for port 0. The acceptor uses the sockets of the edge
//! directly. Those of the admin pages go into a table of descriptors, in which Pingora looks before
//! it opens a socket.

use crate::writable;
use pixelgate::http_server::Listener;
use std::fmt;
use std::fs::{Permissions, set_permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// The most connections that wait to be accepted. The system may allow fewer
/// (`net.core.somaxconn`).
const BACKLOG: i32 = 65_535;

/// The mode of a Unix socket. A proxy in front of the edge runs as another user, so the permissions
/// of the folder decide which users may connect.
const SOCKET_MODE: u32 = 0o666;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `address:port`.
    Tcp(SocketAddr),
    /// `unix:/path`.
    Unix(PathBuf),
}

impl Address {
    /// Reads `address:port` or `unix:/path`. A name instead of an IP address is an error, because a
    /// start must not wait for a name server.
    ///
    /// # Errors
    ///
    /// What is wrong with the text, as the end of a sentence about its key.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("names no path after `unix:`".to_owned()),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                let why = "is neither address:port, the address an IP address, nor unix:/path";
                why.to_owned()
            }),
        }
    }
}

impl Address {
    /// Checks that a Unix socket can be made at this address. A socket on which a running edge
    /// listens is no error. `made` is a folder that a start makes before.
    ///
    /// # Errors
    ///
    /// The folder cannot be written, the path is too long, or another file has this path.
    pub fn check_path(&self, made: &Path) -> Result<(), BindError> {
        let Self::Unix(path) = self else { return Ok(()) };
        unix::net::SocketAddr::from_pathname(path)
            .and_then(|_| find_socket(path))
            .and_then(|_| writable::parent(path, made).map_err(|e| io::Error::other(e.why)))
            .map_err(|source| BindError { address: self.to_string(), source })
    }

    /// Whether the system refuses to listen on both addresses at once.
    pub fn conflicts(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unix(a), Self::Unix(b)) => a == b,
            (Self::Tcp(a), Self::Tcp(b)) => {
                // For port 0 the kernel chooses a free port. `[::]` takes IPv4 connections, too.
                let covers = |all: &SocketAddr, one: &SocketAddr| {
                    all.ip().is_unspecified() && (all.is_ipv6() || one.is_ipv4())
                };
                a.port() != 0
                    && a.port() == b.port()
                    && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
            }
            _ => false,
        }
    }
}

/// Returns the first two of the addresses in `all` on which the system refuses to listen at once,
/// each with its key. Addresses that cannot be read are left out.
pub fn conflict<'a>(all: &[(&'a str, &'a str)]) -> Option<[(&'a str, &'a str); 2]> {
    let parsed: Vec<_> = all
        .iter()
        .filter_map(|(key, text)| Some((*key, *text, Address::parse(text).ok()?)))
        .collect();
    for (n, (key, text, address)) in parsed.iter().enumerate() {
        let other = parsed[n + 1..].iter().find(|(.., other)| address.conflicts(other));
        if let Some((other_key, other_text, _)) = other {
            return Some([(*key, *text), (*other_key, *other_text)]);
        }
    }
    None
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A listening socket that no service uses yet.
#[derive(Debug)]
pub struct Bound {
    /// The address in the form that Pingora's table of descriptors uses: with the port that the
    /// kernel chose, or the path of a Unix socket.
    pub key: String,
    /// Whether this is a Unix socket.
    pub unix: bool,
    socket: OwnedFd,
}

/// Why a socket cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct BindError {
    address: String,
    source: io::Error,
}

impl BindError {
    /// Whether another socket listens on the address.
    pub fn is_in_use(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

impl Bound {
    /// Opens a listening socket.
    pub fn open(address: &Address) -> Result<Self, BindError> {
        match address {
            Address::Tcp(address) => {
                let failed = |source| BindError { address: address.to_string(), source };
                let listener = TcpListener::bind(address).map_err(failed)?;
                listen(&listener).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let key = listener.local_addr().map_err(failed)?.to_string();
                Ok(Self { key, unix: false, socket: listener.into() })
            }
            Address::Unix(path) => {
                let key = path.display().to_string();
                let failed = |source| BindError { address: format!("unix:{key}"), source };
                remove_stale(path).map_err(failed)?;
                let listener = UnixListener::bind(path).map_err(failed)?;
                set_permissions(path, Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
                listen(&listener).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self { key, unix: true, socket: listener.into() })
            }
        }
    }

    /// Opens a TCP socket at `address` and closes it, to see whether it can be opened. A Unix
    /// socket is not opened, because that would make a file.
    pub fn check(address: &Address) -> Result<(), BindError> {
        match address {
            Address::Tcp(_) => Self::open(address).map(drop),
            Address::Unix(_) => Ok(()),
        }
    }

    /// Takes a socket that the previous process opened for `address` and still holds.
    pub fn inherited(address: &Address, socket: OwnedFd) -> Result<Self, BindError> {
        match address {
            Address::Tcp(address) => {
                let failed = |source| BindError { address: address.to_string(), source };
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(failed)?;
                let key = listener.local_addr().map_err(failed)?.to_string();
                Ok(Self { key, unix: false, socket: listener.into() })
            }
            Address::Unix(path) => Ok(Self { key: path.display().to_string(), unix: true, socket }),
        }
    }

    /// Returns another descriptor of the same socket.
    pub fn copy(&self) -> io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Returns the socket in the form that the acceptor takes.
    pub fn into_listener(self) -> Listener {
        match self.unix {
            true => Listener::unix(self.socket.into()),
            false => Listener::tcp(self.socket.into()),
        }
    }

    /// Returns `key` and the descriptor, which the caller must close.
    pub fn into_raw(self) -> (String, RawFd) {
        (self.key, self.socket.into_raw_fd())
    }
}

/// Lengthens the queue of a listening socket. The standard library makes a short one, and a client
/// that finds it full connects a second later.
fn listen(socket: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::listen(socket, BACKLOG)?)
}

/// Removes the socket that an ended process left at `path`. It is an error if a process listens on
/// the socket, or if the file is not a socket; then the file stays.
fn remove_stale(path: &Path) -> io::Result<()> {
    match find_socket(path)? {
        false => Ok(()),
        true if UnixStream::connect(path).is_ok() => Err(ErrorKind::AddrInUse.into()),
        true => std::fs::remove_file(path),
    }
}

/// Returns whether there is a socket at `path`. A file that is not a socket is an error.
fn find_socket(path: &Path) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
        Ok(meta) if meta.file_type().is_socket() => Ok(true),
        Ok(_) => Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "a file that is not a socket has this path",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_conflict_where_the_system_refuses_the_second() {
        let check = |a: &str, b: &str, expect: bool| {
            let all = [("edge.listen", a), ("admin.listen", b)];
            assert_eq!(conflict(&all).is_some(), expect, "{a} {b}");
            let open = |text: &str| Bound::open(&Address::parse(text).unwrap());
            let _first = open(a).unwrap();
            assert_eq!(open(b).is_err(), expect, "{a} {b}");
        };
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        check(&format!("127.0.0.1:{free}"), &format!("127.0.0.1:{free}"), true);
        check(&format!("0.0.0.0:{free}"), &format!("127.0.0.1:{free}"), true);
        check(&format!("127.0.0.2:{free}"), &format!("127.0.0.1:{free}"), false);
        check("127.0.0.1:0", "127.0.0.1:0", false);
    }

    #[test]
    fn an_address_is_a_socket_or_a_path() {
        let parse = |text| Address::parse(text);
        assert_eq!(parse("127.0.0.1:80"), Ok(Address::Tcp("127.0.0.1:80".parse().unwrap())));
        assert_eq!(parse("[::1]:80"), Ok(Address::Tcp("[::1]:80".parse().unwrap())));
        assert_eq!(parse("unix:/run/x.sock"), Ok(Address::Unix("/run/x.sock".into())));
        assert!(parse("127.0.0.1").unwrap_err().contains("address:port"));
        assert!(parse("unix:").unwrap_err().contains("path"));
        assert!(parse("").is_err());
        assert!(parse("localhost:80").unwrap_err().contains("IP address"));
    }

    #[test]
    fn an_address_in_use_is_named_in_the_error() {
        let first = Bound::open(&Address::parse("127.0.0.1:0").unwrap()).unwrap();
        let error = Bound::open(&Address::parse(&first.key).unwrap()).unwrap_err();
        assert!(error.to_string().contains(&first.key), "{error}");
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("edge.sock"));
        let first = Bound::open(&address).unwrap();
        let mode = std::fs::metadata(&first.key).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
        assert!(Bound::open(&address).is_err());
        drop(first);
        Bound::open(&address).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(Bound::open(&Address::Unix(file.clone())).is_err());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    }
}
