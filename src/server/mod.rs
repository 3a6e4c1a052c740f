//! The HTTP server in front of Pingora's proxy: everything from `accept` to the end of a header.
//!
//! Pingora's own server has no deadline for a whole header, no limit on connections, and keeps an
//! idle connection open without end after its first request. This module adds those limits. A
//! connection passes these steps:
//!
//! 1. Accept, and take a permit from the connection limit. Without a permit the connection closes.
//! 2. Read a PROXY header if `edge.proxy_protocol` is on. Do the TLS handshake if TLS is on.
//! 3. HTTP/1: read each request's header under one deadline. The fast path answers an ordinary
//!    event request without Pingora. Every other header must pass a strict framing check before
//!    the connection, with the bytes already read, is handed to Pingora.
//! 4. HTTP/2 (by ALPN or prior knowledge): the `h2` crate reads and writes the frames. This module
//!    counts them, limits those that cause work without being a request, checks headers by the
//!    rules of HTTP/1, and ends idle connections. Pingora gets each stream as a session.
//!
//! The fast path changes the cost of a request only: the judge, the spool and the responses are
//! those of [`PixelGate::handle`](crate::PixelGate::handle).
//!
//! | file | what it does |
//! |---|---|
//! | `acceptor` | accepts connections and does TLS handshakes |
//! | `service` | `Server`: what all connections of one proxy share |
//! | `admission` | decides before the first byte of HTTP or TLS: permits, PROXY header |
//! | `connection_limit` | limits connections in total and per address |
//! | `limits` | the configured limits; counts and logs connections that exceed them |
//! | `proxy_header` | parses the PROXY header, versions 1 and 2 |
//! | `socket` | a TCP or Unix socket that holds no write buffer while idle |
//! | `pingora_traits` | what Pingora requires of a stream beside its bytes |
//! | `read_buffer` | one read buffer per thread, so that idle connections hold none |
//! | `alarm` | timers that outlive the waits that they limit |
//! | `connection` | the state of a connection between two requests; reads a header |
//! | `http1` | serves an HTTP/1 connection |
//! | `http1/header_check` | finds the end of a header and checks its framing (RFC 9112) |
//! | `http1/target` | checks target and host, and brings the target into origin form |
//! | `http1/grammar` | the bytes of names and values |
//! | `http1/body` | finds the end of a body, by the strict grammar |
//! | `http1/framing` | what a header says about the bytes behind it |
//! | `http1/trailers` | carries trailers past Pingora, which drops them |
//! | `http1/trailer_reader` | finds trailers, end and broken chunks of an origin's answers |
//! | `http1/date` | keeps the `Date` of an origin's answer, which Pingora replaces |
//! | `http1/reason` | keeps the reason phrase of an origin's answer, which Pingora may drop |
//! | `http1/request_stream` | the stream of one request: Pingora reads nothing after its body |
//! | `fast_path/request` | parses a plain `GET`, of which event requests are answered at once |
//! | `in_force` | the limits and settings of a request, and their replacement by a reload |
//! | `origin_timeouts` | the timeouts of connections to origins |
//! | `origin_connector`, `origin_stream` | connections to origins, of which little is read ahead |
//! | `exchange` | what the streams of client and origin share: bytes that wait, trailers, `Date` |
//! | `buffered_bytes` | counts the bytes of bodies that wait in memory |
//! | `http2` | serves an HTTP/2 connection |
//! | `http2/options` | settings for the `h2` crate |
//! | `http2/frame`, `http2/frame_counter` | frame headers, and a stream that counts them |
//! | `http2/rewriter`, `http2/header_frames` | a stream that writes header blocks anew |
//! | `http2/header_block`, `http2/dynamic_table` | which fields `h2` must not see as they are |
//! | `http2/hpack`, `http2/huffman` | integers and strings of header blocks |
//! | `http2/frame_budget` | how many frames a client may send per tick; the watchdog |
//! | `http2/streams` | accepts streams: answers event requests, passes others to the proxy |
//! | `http2/request` | checks a stream's header as HTTP/1 does |
//! | `http2/session` | a stream as a session of Pingora |
//! | `http2/uploads` | ends uploads that their client has reset |

mod acceptor;
mod admission;
mod alarm;
mod buffered_bytes;
mod connection;
mod connection_limit;
mod exchange;
mod fast_path;
mod http1;
mod http2;
mod in_force;
mod limits;
mod origin_connector;
mod origin_stream;
mod origin_timeouts;
mod pingora_traits;
mod proxy_header;
mod read_buffer;
mod service;
mod socket;

pub use acceptor::{Acceptor, Handshake, Listener};
pub use buffered_bytes::BufferedBytes;
pub use exchange::add_request_lines;
pub use in_force::LimitsHandle;
pub use limits::Limits;
pub use origin_connector::{OriginConnector, OriginTransport, Proxy, proxy, proxy_with};
pub use origin_timeouts::OriginTimeouts;
pub use service::Server;
pub use socket::Socket;
