//! HTTP/2 frame headers and the connection preface (RFC 9113).

/// What a client sends first (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Where the preface ends for a reader of HTTP/1.1.
pub const PREFACE_HEAD_BYTES: usize = 18;

/// A frame's header, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub length: usize,
}

impl Frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const CONTINUATION: u8 = 9;
    pub const END_HEADERS: u8 = 4;
}
