//! `pixelgate probe`: requests `/readyz` or `/livez` from the running edge, for health checks
//! (SPEC 8).
//!
//! The command reads the address and the token from the configuration of the edge. So a health
//! check needs no other program in the image, and no token on its command line.

use super::exit::{NO, UNUSABLE, fail};
use clap::ValueEnum;
use pixelgate::config::{Admin, Secret};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

/// The longest wait for the connection, and for each part of the answer, in seconds.
const WAIT_SECONDS: u64 = 5;
/// The most bytes of an answer that are read. `/readyz` has a line for each fault.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// The most header lines of an answer.
const HEADERS_MAX: usize = 32;

/// The page to request.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Page {
    /// Whether the edge accepts events.
    Readyz,
    /// Whether the edge runs.
    Livez,
}

/// Requests `page` and prints the answer. The exit code is 0 for status 200 and 1 for others.
pub fn run(config: &Admin, page: Page) -> ExitCode {
    let address = match address(&config.listen) {
        Ok(address) => address,
        Err(why) => return fail(UNUSABLE, format!("admin.listen: {why}")),
    };
    let page = match page {
        Page::Readyz => "/readyz",
        Page::Livez => "/livez",
    };
    match ask(address, page, config.token.as_ref().map(Secret::expose)) {
        Ok((200, body)) => {
            // If standard output cannot be written, the exit code is the answer.
            let _ = io::stdout().write_all(&body);
            ExitCode::SUCCESS
        }
        Ok((status, body)) => {
            let body = String::from_utf8_lossy(&body);
            fail(NO, format!("{page} answered {status}: {}", body.trim_end().replace('\n', "; ")))
        }
        Err(e) => fail(NO, format!("{page} at {address}: {e}")),
    }
}

/// Returns the address of the admin listener, or the loopback address if it listens on all
/// addresses.
fn address(listen: &str) -> Result<SocketAddr, &'static str> {
    if listen.is_empty() {
        return Err("is empty, so there is no listener to ask");
    }
    let mut address: SocketAddr = listen.parse().map_err(|_| "is not an address with a port")?;
    match (address.port(), address.ip()) {
        (0, _) => return Err("leaves the port to the kernel, so the port is unknown"),
        (_, IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        (_, IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(address)
}

fn ask(address: SocketAddr, page: &str, token: Option<&str>) -> io::Result<(u16, Vec<u8>)> {
    let wait = Duration::from_secs(WAIT_SECONDS);
    let mut stream = TcpStream::connect_timeout(&address, wait)?;
    stream.set_read_timeout(Some(wait))?;
    stream.set_write_timeout(Some(wait))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    let request = format!("GET {page} HTTP/1.1\r\nHost: {address}\r\n{token}Connection: close\r\n");
    stream.write_all(format!("{request}\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    read(&answer).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

/// Returns the status and the body of an answer, or `None` if it is not HTTP.
fn read(answer: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(answer).ok()? else { return None };
    Some((head.code?, answer[length..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_where_the_edge_listens() {
        let check = |listen: &str, expect: &str| {
            assert_eq!(address(listen).unwrap().to_string(), expect);
        };
        check("127.0.0.1:9090", "127.0.0.1:9090");
        check("0.0.0.0:9090", "127.0.0.1:9090");
        check("[::]:9090", "[::1]:9090");
        for nowhere in ["", "127.0.0.1:0", "localhost:9090"] {
            assert!(address(nowhere).is_err(), "{nowhere}");
        }
    }

    #[test]
    fn only_http_is_an_answer() {
        assert_eq!(read(b"HTTP/1.1 503 x\r\nA: b\r\n\r\nno\n"), Some((503, b"no\n".to_vec())));
        for other in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-x\r\n"] {
            assert_eq!(read(other), None);
        }
    }
}
