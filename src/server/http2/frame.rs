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
    /// The length of the payload, in bytes.
    pub length: usize,
}

impl Frame {
    /// The length of a frame header, in bytes.
    pub const HEAD_BYTES: usize = 9;
    /// The longest payload in bytes. The edge announces no other (RFC 9113, section 6.5.2).
    pub const PAYLOAD_BYTES_MAX: usize = 16 << 10;

    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const PUSH_PROMISE: u8 = 5;
    pub const CONTINUATION: u8 = 9;

    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;

    /// The frame with this header.
    pub fn of([a, b, c, kind, flags, stream @ ..]: [u8; Self::HEAD_BYTES]) -> Self {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        // The first bit is reserved and ignored.
        let stream = u32::from_be_bytes(stream) & (u32::MAX >> 1);
        Self { kind, flags, stream, length }
    }

    /// The header of this frame. A payload has less than 2^24 bytes.
    pub fn head(self) -> [u8; Self::HEAD_BYTES] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }
}
