//! Hands the listening sockets of a running process over to its successor, which
//! `pixelgate run --upgrade` starts (SPEC 8).
//!
//! The running process offers its sockets on a Unix socket in `edge.state_dir`. The successor
//! receives copies of them, opens a lane of the spool, starts to accept and reports this. From then
//! on both processes accept, until SIGQUIT stops the old one. No connection is refused: at every
//! moment a process holds each socket, and a connection that is not accepted yet waits in the queue
//! of the kernel for either process.
//!
//! The successor keeps its connection to the old process open until it ends. So the old process
//! sees the end of the successor as the end of the connection. A successor that fails to start
//! changes nothing.
//!
//! Pingora's own handover is not used. It sends the sockets on SIGQUIT whether or not the successor
//! starts, it lets every user of the machine connect to its Unix socket, and it panics if a name or
//! a message is not the expected one.
//!
//! The protocol: the running process sends [`VERSION`]. For each socket it sends [`SOCKET`] with
//! the descriptor attached (`SCM_RIGHTS`), the length of the socket's name as `u16` (big-endian)
//! and the name. Then it sends [`END`]. The successor sends [`ACCEPTING`] when it accepts
//! connections.

use super::upgrade_socket::{Listeners, Maker, Successor};
use pixelgate::custom::Faults;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The file name of the Unix socket in `edge.state_dir`.
pub const SOCKET_NAME: &str = "upgrade.sock";
/// The version of the protocol.
const VERSION: u8 = 1;
const SOCKET: u8 = b'S';
const END: u8 = b'E';
const ACCEPTING: u8 = b'A';
/// The longest time for one read or write of the handover, in seconds. Both ends are on one
/// machine.
const STEP_SECONDS_MAX: u64 = 10;
/// The pause after a failure to accept a connection, in seconds.
const RETRY_SECONDS: u64 = 1;
/// The most sockets in one handover: more than a configuration lists.
const SOCKETS_MAX: usize = 1024;

/// A listening socket with its name, which is its role and its configured address.
pub type Named = (String, OwnedFd);

/// Offers the listening sockets to a successor. The offer ends when this is dropped.
pub struct Offer {
    listeners: Arc<Listeners>,
    sockets: Arc<Vec<Named>>,
    successor: watch::Sender<Successor>,
}

impl Offer {
    /// Offers `sockets` at `path`. With `replaces`, this offer takes the place of that of the old
    /// process. While the Unix socket cannot be made, the attempt is repeated, and `faults` has the
    /// fault `state_dir`. A disk that does not answer delays the return by at most
    /// [`super::within::START_LIMIT`].
    pub fn open(path: PathBuf, sockets: Vec<Named>, replaces: bool, faults: Faults) -> Self {
        let successor = watch::channel(Successor::None).0;
        let maker = Maker { path, replaces, successor: successor.subscribe(), faults };
        Self { listeners: maker.start(), sockets: Arc::new(sockets), successor }
    }

    /// Returns the state of the successor and its changes.
    pub fn successor(&self) -> watch::Receiver<Successor> {
        self.successor.subscribe()
    }

    /// Hands the sockets over to each process of this user or of root that connects. Never returns.
    pub async fn serve(&self) {
        let mut changed = self.listeners.subscribe();
        loop {
            let listener = changed.borrow_and_update().as_ref().map(UnixListener::try_clone);
            tokio::select! {
                Ok(()) = changed.changed() => {}
                () = self.serve_on(listener) => {}
            }
        }
    }

    /// Hands the sockets over to each process that connects to `listener`. Never returns.
    async fn serve_on(&self, listener: Option<io::Result<UnixListener>>) {
        let Some(listener) = listener else { return std::future::pending().await };
        let listener = match listener.and_then(tokio::net::UnixListener::from_std) {
            Ok(listener) => listener,
            Err(e) => {
                log::error!("upgrade: the socket for an upgrade cannot be used: {e}");
                return std::future::pending().await;
            }
        };
        loop {
            match listener.accept().await.and_then(|(taker, _)| taker.into_std()) {
                Ok(taker) => {
                    let (sockets, successor) = (self.sockets.clone(), self.successor.clone());
                    // Another thread, because the connection lasts until the successor ends.
                    let serve = move || serve_successor(&taker, sockets, &successor);
                    let spawned =
                        std::thread::Builder::new().name("handover".to_owned()).spawn(serve);
                    if let Err(e) = spawned {
                        log::error!(
                            "upgrade: the thread for the new process cannot be started: {e}"
                        );
                    }
                }
                Err(e) => {
                    log::error!("upgrade: the new process cannot connect: {e}");
                    tokio::time::sleep(Duration::from_secs(RETRY_SECONDS)).await;
                }
            }
        }
    }
}

/// Hands the sockets over to one successor, and reports its state until it ends.
fn serve_successor(
    taker: &UnixStream,
    sockets: Arc<Vec<Named>>,
    successor: &watch::Sender<Successor>,
) {
    if let Err(e) = send_all(taker, &sockets) {
        log::error!("upgrade: the listening sockets were not handed over: {e}");
        return;
    }
    // After the stop of this process only the successor may hold the sockets open.
    drop(sockets);
    log::info!("upgrade: a new process has the listening sockets");
    successor.send_replace(Successor::Starting);
    if read_byte(taker).is_ok_and(|byte| byte == ACCEPTING) {
        log::info!("upgrade: the new process accepts; SIGQUIT ends this one");
        successor.send_replace(Successor::Accepting);
        // The successor sends no further byte: this read returns when it ends.
        let _ = read_byte(taker);
    }
    log::warn!("upgrade: the new process has ended");
    successor.send_replace(Successor::None);
}

fn send_all(taker: &UnixStream, sockets: &[Named]) -> io::Result<()> {
    let peer = socket_peercred(taker)?;
    let ours = rustix::process::geteuid();
    if peer.uid != ours && !peer.uid.is_root() {
        return Err(ErrorKind::PermissionDenied.into());
    }
    taker.set_nonblocking(false)?;
    taker.set_write_timeout(Some(Duration::from_secs(STEP_SECONDS_MAX)))?;
    let mut writer = taker;
    writer.write_all(&[VERSION])?;
    for (name, socket) in sockets {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut attached = SendAncillaryBuffer::new(&mut space);
        let descriptors = [socket.as_fd()];
        attached.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(taker, &[IoSlice::new(&[SOCKET])], &mut attached, SendFlags::NOSIGNAL)?;
        let length = u16::try_from(name.len()).map_err(|_| ErrorKind::InvalidInput)?;
        writer.write_all(&length.to_be_bytes())?;
        writer.write_all(name.as_bytes())?;
    }
    writer.write_all(&[END])
}

/// The sockets that this process has received from the running one, and the connection to it.
#[derive(Debug)]
pub struct InheritedSockets {
    offerer: UnixStream,
    sockets: Vec<Named>,
}

impl InheritedSockets {
    /// Receives copies of the sockets that are offered at `path`. Returns `None` if no process
    /// offers any.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let offerer = match UnixStream::connect(path) {
            Ok(offerer) => offerer,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        offerer.set_read_timeout(Some(Duration::from_secs(STEP_SECONDS_MAX)))?;
        let version = match read_byte(&offerer) {
            Ok(version) => version,
            // The process has just stopped, and its queue of connections is closed.
            Err(e) if is_end(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        if version != VERSION {
            return Err(io::Error::other(format!(
                "version {version} of the handover protocol is unknown"
            )));
        }
        let mut sockets = Vec::new();
        while let Some(socket) = receive_one(&offerer)? {
            if sockets.len() == SOCKETS_MAX {
                return Err(io::Error::other(format!("it offers more than {SOCKETS_MAX} sockets")));
            }
            sockets.push(socket);
        }
        Ok(Some(Self { offerer, sockets }))
    }

    /// Takes the socket of this name. Returns `None` if there is none, or if it was taken before.
    pub fn claim(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(named, _)| named == name)?;
        Some(self.sockets.remove(at).1)
    }

    /// Reports to the old process that this one accepts, and closes the sockets that were not
    /// claimed. The returned stream must stay open until this process ends: the old process takes
    /// its end for the end of this process.
    pub fn accepting(self) -> io::Result<UnixStream> {
        (&self.offerer).write_all(&[ACCEPTING])?;
        Ok(self.offerer)
    }
}

fn receive_one(offerer: &UnixStream) -> io::Result<Option<Named>> {
    let mut kind = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        offerer,
        &mut [IoSliceMut::new(&mut kind)],
        &mut attached,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = attached.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let socket = descriptors.next();
    match (received.bytes, kind, socket) {
        (0, _, _) => Err(ErrorKind::UnexpectedEof.into()),
        (_, [END], None) => Ok(None),
        (_, [SOCKET], Some(socket)) => {
            let mut reader = offerer;
            let mut length = [0; 2];
            reader.read_exact(&mut length)?;
            let mut name = vec![0; usize::from(u16::from_be_bytes(length))];
            reader.read_exact(&mut name)?;
            let name = String::from_utf8(name).map_err(io::Error::other)?;
            Ok(Some((name, socket)))
        }
        _ => Err(io::Error::other("the message is not of the handover protocol")),
    }
}

fn read_byte(mut stream: &UnixStream) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

fn is_end(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_successor_gets_what_it_claims_and_says_when_it_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        assert!(InheritedSockets::take(&path).unwrap().is_none(), "no offer");
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let named = ["edge a", "edge b"].map(str::to_owned);
        let sockets = named.into_iter().zip(listeners.map(OwnedFd::from)).collect();
        let offer = Offer::open(path.clone(), sockets, false, Faults::unregistered());
        let offer = Arc::new(offer);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut successor = offer.successor();
        let serving = tokio::spawn({
            let offer = offer.clone();
            async move { offer.serve().await }
        });

        let taking = path.clone();
        let take = move || InheritedSockets::take(&taking).unwrap().unwrap();
        let mut taken = tokio::task::spawn_blocking(take).await.unwrap();
        let claimed = taken.claim("edge b").unwrap();
        assert!(taken.claim("edge b").is_none() && taken.claim("edge c").is_none());
        successor.wait_for(|s| *s == Successor::Starting).await.unwrap();
        let alive = taken.accepting().unwrap();
        successor.wait_for(|s| *s == Successor::Accepting).await.unwrap();

        serving.abort();
        let _ = serving.await;
        drop(offer);
        let claimed = TcpListener::from(claimed);
        TcpStream::connect(addresses[1]).unwrap();
        claimed.accept().unwrap();
        assert!(TcpStream::connect(addresses[0]).is_err(), "it was not claimed");
        assert!(InheritedSockets::take(&path).unwrap().is_none(), "the offer is over");
        drop(alive);
        successor.wait_for(|s| *s == Successor::None).await.unwrap();
    }

    #[test]
    fn an_unknown_protocol_at_the_socket_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let listener = UnixListener::bind(&path).unwrap();
        for (sent, expect) in [(&b"HTTP/1.1 400"[..], "version 72"), (&[VERSION, b'x'], "protocol")]
        {
            let (listener, sent) = (listener.try_clone().unwrap(), sent.to_vec());
            let other_server =
                std::thread::spawn(move || listener.accept().unwrap().0.write_all(&sent).unwrap());
            let error = InheritedSockets::take(&path).unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
            other_server.join().unwrap();
        }
    }
}
