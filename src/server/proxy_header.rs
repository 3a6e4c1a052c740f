//! Parses the PROXY header (HAProxy's PROXY protocol, versions 1 and 2), which a proxy in front
//! sends before everything else, TLS included.
//!
//! With `edge.proxy_protocol` on, every TCP connection must begin with a PROXY header, and only a
//! peer in `edge.trusted_proxies` may send it, because the header sets the client's address. That
//! address replaces the peer's. It may in turn be a trusted proxy's, whose `X-Forwarded-For` is
//! then believed. Health checks (`LOCAL`, `UNKNOWN`) keep the peer's address. Unix sockets carry no
//! PROXY header: file permissions decide which processes may connect to them.

use super::limits::Limits;
use bytes::{Buf, BytesMut};
use pingora::protocols::l4::socket::SocketAddr as PeerAddress;
use pingora::protocols::{IO, SocketDigest};
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// The longest version 1 header, in bytes, its line end included (PROXY protocol, section 2.1).
const V1_BYTES_MAX: usize = 107;
/// The longest accepted version 2 header, in bytes: addresses and a client certificate's names fit.
const V2_BYTES_MAX: usize = 4096;
/// The length of a version 2 header before its addresses, in bytes.
const V2_BYTES_MIN: usize = 16;

/// A parsed PROXY header.
#[derive(Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client's address; `None` if the header names none (health check, Unix socket).
    pub client: Option<SocketAddr>,
    /// The length of the header, in bytes.
    pub length: usize,
}

/// Result of parsing the first bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// They begin with a whole header.
    Whole(ProxyHeader),
    /// They may become a header.
    Partial,
    /// They are not a header.
    Malformed,
}

/// Parses the PROXY header at the beginning of `bytes`.
pub fn read(bytes: &[u8]) -> Reading {
    match bytes.first() {
        None => Reading::Partial,
        Some(b'P') => read_text(bytes),
        Some(_) => read_binary(bytes),
    }
}

fn read_text(bytes: &[u8]) -> Reading {
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        let may_become = line.iter().zip(b"PROXY ").all(|(have, want)| have == want);
        return match may_become && line.len() < V1_BYTES_MAX {
            true => Reading::Partial,
            false => Reading::Malformed,
        };
    };
    let length = end + 1;
    let Ok(header) = ppp::v1::Header::try_from(&bytes[..length]) else { return Reading::Malformed };
    let client = match header.addresses {
        ppp::v1::Addresses::Tcp4(a) => Some((a.source_address, a.source_port).into()),
        ppp::v1::Addresses::Tcp6(a) => Some((a.source_address, a.source_port).into()),
        ppp::v1::Addresses::Unknown => None,
    };
    Reading::Whole(ProxyHeader { client, length })
}

fn read_binary(bytes: &[u8]) -> Reading {
    use ppp::PartialResult;
    use ppp::v2::{Addresses, Command, Header};
    if let [_, .., high, low] = bytes.get(..V2_BYTES_MIN).unwrap_or_default()
        && V2_BYTES_MIN + usize::from(u16::from_be_bytes([*high, *low])) > V2_BYTES_MAX
    {
        return Reading::Malformed;
    }
    let header = Header::try_from(bytes);
    if header.is_incomplete() {
        return Reading::Partial;
    }
    let Ok(header) = header else { return Reading::Malformed };
    let client = match (header.command, header.addresses) {
        (Command::Local, _) => None,
        (Command::Proxy, Addresses::IPv4(a)) => Some((a.source_address, a.source_port).into()),
        (Command::Proxy, Addresses::IPv6(a)) => Some((a.source_address, a.source_port).into()),
        // These carry no IP address of a client.
        (Command::Proxy, Addresses::Unix(_) | Addresses::Unspecified) => None,
    };
    Reading::Whole(ProxyHeader { client, length: header.len() })
}

/// Reads the PROXY header from a connection within the header deadline, and returns the client's
/// address if the header names one; that address is also set in the stream's socket digest. Bytes
/// after the header stay in `buffer`. `None`: no header in time, or a malformed one.
pub async fn take(
    stream: &mut dyn IO,
    buffer: &mut BytesMut,
    limits: &Limits,
) -> Option<Option<SocketAddr>> {
    let reading = async {
        loop {
            match read(buffer) {
                Reading::Whole(header) => return Some(header),
                Reading::Malformed => return None,
                Reading::Partial => {}
            }
            buffer.reserve(V1_BYTES_MAX);
            if stream.read_buf(buffer).await.ok()? == 0 {
                return None;
            }
        }
    };
    let header = timeout(limits.header_timeout, reading).await.ok()??;
    buffer.advance(header.length);
    if let Some(client) = header.client {
        let digest = SocketDigest::from_raw_fd(stream.id());
        // `set` cannot fail: the digest was just created without an address.
        let _ = digest.peer_addr.set(Some(PeerAddress::Inet(client)));
        stream.set_socket_digest(digest);
    }
    Some(header.client)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

    fn v2(command_family: [u8; 2], payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [SIGNATURE, &command_family, &length, payload].concat()
    }

    fn header(client: Option<&str>, length: usize) -> Reading {
        Reading::Whole(ProxyHeader { client: client.map(|c| c.parse().unwrap()), length })
    }

    #[test]
    fn a_text_header_names_the_client() {
        let check = |line: &str, client: Option<&str>| {
            let bytes = format!("{line}\r\nGET / HTTP/1.1\r\n");
            assert_eq!(read(bytes.as_bytes()), header(client, line.len() + 2), "{line}");
        };
        check("PROXY TCP4 203.0.113.7 10.0.0.1 4711 443", Some("203.0.113.7:4711"));
        check("PROXY TCP6 2001:db8::7 2001:db8::1 4711 443", Some("[2001:db8::7]:4711"));
        check("PROXY UNKNOWN", None);
        check("PROXY UNKNOWN ffff::1 ffff::2 1 2", None);
    }

    #[test]
    fn a_binary_header_names_the_client() {
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 187];
        let with_tlv = [&v4[..], &[4, 0, 1, 0]].concat();
        assert_eq!(read(&v2([0x21, 0x11], &v4)), header(Some("203.0.113.7:4711"), 28));
        assert_eq!(read(&v2([0x21, 0x11], &with_tlv)), header(Some("203.0.113.7:4711"), 32));
        assert_eq!(read(&v2([0x20, 0x00], &[])), header(None, 16), "LOCAL");
        assert_eq!(read(&v2([0x20, 0x11], &v4)), header(None, 28), "LOCAL with addresses");
        assert_eq!(read(&v2([0x21, 0x31], &[0; 216])), header(None, 232), "Unix");
    }

    #[test]
    fn a_header_is_read_however_it_is_cut_and_nothing_else_is() {
        let v4 = [203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x67, 1, 187];
        let text = b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n".to_vec();
        for whole in [text, v2([0x21, 0x11], &v4)] {
            for cut in 0..whole.len() {
                assert_eq!(read(&whole[..cut]), Reading::Partial, "{cut} of {whole:?}");
            }
        }
        let longest = format!("PROXY {}", "x".repeat(V1_BYTES_MAX));
        for wrong in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PUT / HTTP/1.1\r\n",
            b"PROXY TCP4 203.0.113.7\r\n",
            b"PROXY TCP4 203.0.113.256 10.0.0.1 4711 443\r\n",
            b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\n",
            b"PROXY TCP5 203.0.113.7 10.0.0.1 4711 443\r\n",
            b"\x16\x03\x01",
            longest.as_bytes(),
            &v2([0x31, 0x11], &v4),
            &v2([0x21, 0x11], &v4[..4]),
            &v2([0x21, 0x11], &[0; V2_BYTES_MAX]),
        ] {
            assert_eq!(read(wrong), Reading::Malformed, "{}", wrong.escape_ascii());
        }
    }
}
