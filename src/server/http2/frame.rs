//! HTTP/2 frame headers and the connection preface (RFC 9113).

/// The client connection preface (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length in bytes of the part of the preface that an HTTP/1.1 reader takes for a header.
pub const PREFACE_HEAD_BYTES: usize = 18;

/// The fields of a frame header (RFC 9113, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    /// Length of the payload, in bytes.
    pub length: usize,
}

impl Frame {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const CONTINUATION: u8 = 9;
    pub const END_HEADERS: u8 = 4;
}
