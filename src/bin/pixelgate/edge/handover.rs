//! Listening sockets pass from a running process to its successor: `pixelgate run --upgrade`.
//!
//! The running process offers its sockets on a Unix socket in `edge.state_dir`. The successor
//! takes copies of them, opens a spool lane of its own, begins to accept, and says so. From then
//! on both accept, until the old one is told to stop (SIGQUIT). A connection is never refused,
//! because at every moment somebody holds each socket, and what nobody has accepted yet waits in
//! the kernel for whoever accepts next.
//!
//! The successor keeps the connection open as long as it lives. So the old process knows whether
//! there is one, and a successor that fails to start changes nothing.
//!
//! Pingora's own transfer is not used: it sends on the signal, whether or not the successor comes
//! to life, opens its socket to every user of the machine, and ends the process where a name or a
//! message is not what it expects.
//!
//! The protocol, each number big-endian: the offerer sends [`VERSION`]; for each socket
//! [`SOCKET`] with the descriptor attached, the length of its name as `u16`, and the name; then
//! [`END`]. The taker answers [`ACCEPTING`] when it accepts.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt::socket_peercred,
};
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The socket's name in `edge.state_dir`.
pub const SOCKET_NAME: &str = "upgrade.sock";
/// The version of the protocol.
const VERSION: u8 = 1;
const SOCKET: u8 = b'S';
const END: u8 = b'E';
const ACCEPTING: u8 = b'A';
/// How long one step of the transfer may take, in seconds. Both ends are on one machine.
const STEP_SECONDS_MAX: u64 = 10;
/// Most sockets that are handed over: more than anybody listens on.
const SOCKETS_MAX: usize = 1024;

/// A copy of a listening socket, under the name by which the configuration knows it.
pub type Named = (String, OwnedFd);

/// How far a successor has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Successor {
    /// There is none.
    None,
    /// It has the sockets, and does not accept yet.
    Starting,
    /// It accepts.
    Accepting,
}

/// Sockets on offer to a successor, for as long as this lives.
pub struct Offer {
    listener: tokio::net::UnixListener,
    sockets: Arc<Vec<Named>>,
    successor: watch::Sender<Successor>,
}

impl Offer {
    /// Offers `sockets` at `path`, and takes the place of whoever offered there before. Wants to
    /// be called on a runtime.
    pub fn open(path: &Path, sockets: Vec<Named>) -> io::Result<Self> {
        // Under another name until it is ours alone, then in one step: a successor finds the old
        // one or the new one, and nobody else's hand is ever on it.
        let making = path.with_extension(format!("{}", std::process::id()));
        remove_if_there(&making)?;
        let listener = UnixListener::bind(&making)?;
        let opened = std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&making, path))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| tokio::net::UnixListener::from_std(listener));
        if opened.is_err() {
            let _ = std::fs::remove_file(&making);
        }
        let (successor, _) = watch::channel(Successor::None);
        Ok(Self { listener: opened?, sockets: Arc::new(sockets), successor })
    }

    /// How far the successor has come, now and later.
    pub fn successor(&self) -> watch::Receiver<Successor> {
        self.successor.subscribe()
    }

    /// Hands the sockets to everybody who asks and may. Never returns.
    pub async fn serve(&self) {
        loop {
            match self.listener.accept().await.and_then(|(taker, _)| taker.into_std()) {
                Ok(taker) => {
                    let (sockets, successor) = (self.sockets.clone(), self.successor.clone());
                    // A thread, because a successor stays for as long as it lives.
                    let serve = move || attend(&taker, sockets, &successor);
                    let spawned =
                        std::thread::Builder::new().name("handover".to_owned()).spawn(serve);
                    if let Err(e) = spawned {
                        log::error!("an upgrade cannot be served: {e}");
                    }
                }
                Err(e) => {
                    log::error!("an upgrade cannot be served: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Serves one successor until it is gone.
fn attend(taker: &UnixStream, sockets: Arc<Vec<Named>>, successor: &watch::Sender<Successor>) {
    if let Err(e) = give(taker, &sockets) {
        log::error!("an upgrade could not take the listening sockets: {e}");
        return;
    }
    // Only the successor's copies may hold the sockets open when this process stops.
    drop(sockets);
    log::info!("upgrade: a new process has the listening sockets");
    successor.send_replace(Successor::Starting);
    if read_byte(taker).is_ok_and(|byte| byte == ACCEPTING) {
        log::info!("upgrade: the new process accepts; SIGQUIT ends this one");
        successor.send_replace(Successor::Accepting);
        // Nothing more is said: this waits for its end.
        let _ = read_byte(taker);
    }
    log::warn!("upgrade: the new process has ended");
    successor.send_replace(Successor::None);
}

fn give(taker: &UnixStream, sockets: &[Named]) -> io::Result<()> {
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

/// What a successor took, and its word that it accepts.
#[derive(Debug)]
pub struct InheritedSockets {
    offerer: UnixStream,
    sockets: Vec<Named>,
}

impl InheritedSockets {
    /// Takes copies of the sockets that are on offer at `path`; `None` if nobody offers any.
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
            // It stopped in this moment: its listener closes unheard connections.
            Err(e) if is_end(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        if version != VERSION {
            return Err(io::Error::other(format!("it speaks version {version} of the transfer")));
        }
        let mut sockets = Vec::new();
        while let Some(socket) = take_one(&offerer)? {
            if sockets.len() == SOCKETS_MAX {
                return Err(io::Error::other(format!("more than {SOCKETS_MAX} sockets")));
            }
            sockets.push(socket);
        }
        Ok(Some(Self { offerer, sockets }))
    }

    /// The socket of this name, given once.
    pub fn claim(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.sockets.iter().position(|(named, _)| named == name)?;
        Some(self.sockets.remove(at).1)
    }

    /// Tells the old process that this one accepts. Sockets that nobody claimed are closed. The
    /// result has to live as long as the process: its end is how the old one learns of ours.
    pub fn accepting(self) -> io::Result<UnixStream> {
        (&self.offerer).write_all(&[ACCEPTING])?;
        Ok(self.offerer)
    }
}

fn take_one(offerer: &UnixStream) -> io::Result<Option<Named>> {
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
        _ => Err(io::Error::other("it does not speak this protocol")),
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

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Whether a living process offers sockets at `path`.
pub fn is_offered(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn a_successor_gets_what_it_claims_and_says_when_it_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        assert!(InheritedSockets::take(&path).unwrap().is_none(), "nobody offers");
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        let named = ["edge a", "edge b"].map(str::to_owned);
        let sockets = named.into_iter().zip(listeners.map(OwnedFd::from)).collect();
        let offer = Arc::new(Offer::open(&path, sockets).unwrap());
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
        assert!(TcpStream::connect(addresses[0]).is_err(), "nobody claimed it");
        assert!(InheritedSockets::take(&path).unwrap().is_none(), "the offer is over");
        drop(alive);
        successor.wait_for(|s| *s == Successor::None).await.unwrap();
    }

    #[test]
    fn a_stranger_at_the_socket_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        let listener = UnixListener::bind(&path).unwrap();
        for (sent, expect) in [(&b"HTTP/1.1 400"[..], "version 72"), (&[VERSION, b'x'], "protocol")]
        {
            let (listener, sent) = (listener.try_clone().unwrap(), sent.to_vec());
            let stranger =
                std::thread::spawn(move || listener.accept().unwrap().0.write_all(&sent).unwrap());
            let error = InheritedSockets::take(&path).unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
            stranger.join().unwrap();
        }
    }
}
