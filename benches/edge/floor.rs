//! The lower bound of any server's cost: an epoll loop that answers everything that ends in an
//! empty line with one pixel.
//!
//! The benchmark starts its own binary for it: see [`FLAG`]. Its cost is nearly all the kernel's.

use crate::process::Mode;
use crate::server::{Kind, Server, folder, free_address};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::Command;

/// The argument that makes this program that server; an address follows.
pub const FLAG: &str = "--floor";
const LISTENER: Token = Token(usize::MAX);
/// An answer about as long as pixelgate's.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: image/gif\r\nContent-Length: 43\r\n\
    Cache-Control: no-cache, no-store, must-revalidate\r\nX-Event-Verdict: accepted\r\n\
    Access-Control-Allow-Origin: *\r\nCross-Origin-Resource-Policy: cross-origin\r\n\
    Date: Wed, 25 Nov 2026 00:00:00 GMT\r\nConnection: keep-alive\r\n\r\n";

/// Starts the server.
pub fn start(mode: Mode) -> Server {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args([FLAG, &address.to_string()]);
    Server::start(Kind::Unrecorded, mode, folder(), address, &command)
}

/// Serves until the process is killed.
pub fn serve(address: SocketAddr) {
    let answer = [HEAD, &[0; 43]].concat();
    let mut poll = Poll::new().unwrap();
    let mut events = Events::with_capacity(1024);
    let mut listener = TcpListener::bind(address).unwrap();
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    let mut free = Vec::new();
    loop {
        if let Err(error) = poll.poll(&mut events, None) {
            assert_eq!(error.kind(), ErrorKind::Interrupted);
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let place = free.pop().unwrap_or(connections.len());
                    let token = Token(place);
                    poll.registry().register(&mut stream, token, Interest::READABLE).unwrap();
                    if place == connections.len() {
                        connections.push(None);
                    }
                    connections[place] = Some(stream);
                }
                continue;
            }
            let place = event.token().0;
            let connection = &mut connections[place];
            if connection.as_mut().is_some_and(|stream| !respond(stream, &answer)) {
                *connection = None;
                free.push(place);
            }
        }
    }
}

/// Answers what has come. Returns whether the connection stays open. Requests of the load and their
/// answers pass in one piece each: they are far smaller than a socket's buffer.
fn respond(stream: &mut TcpStream, answer: &[u8]) -> bool {
    let mut request = [0; 4096];
    match stream.read(&mut request) {
        Ok(0) => false,
        Ok(length) if request[..length].ends_with(b"\r\n\r\n") => stream.write_all(answer).is_ok(),
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
