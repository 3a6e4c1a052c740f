//! Finds the header blocks in the frames of a client (RFC 9113, section 6.2 and 6.10), and writes
//! the frames of those that must change.

use super::frame::{Frame, PREFACE};
use super::header_block::{Block, HeaderBlocks};
use std::borrow::Cow;

/// The most frames of a header block that passes as it is. The `h2` crate takes at least this many,
/// and ends the connection at a block of more than it takes; so a longer block is joined.
const FRAMES_MAX: usize = 6;

/// What to do with the received bytes.
enum Next {
    /// This number of bytes at the beginning passes as it is.
    Pass(usize),
    Replace(Replaced),
    /// More bytes must arrive first.
    Wait,
}

/// Bytes that do not pass as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// The number of bytes that are replaced.
    pub count: usize,
    /// The bytes that take their place.
    pub by: Vec<u8>,
}

/// The frames of one connection.
#[derive(Debug)]
pub struct HeaderFrames {
    /// Bytes until the next frame header.
    skip: usize,
    blocks: HeaderBlocks,
    /// The number of the last stream that the client has opened. A header block of a stream up to
    /// this one holds trailers.
    last_stream: u32,
    /// The length of the longest header block that is read, with its frame headers, in bytes. A
    /// longer one has more fields than the `h2` crate takes.
    block_bytes_max: usize,
}

impl HeaderFrames {
    /// Expects a client's preface first. Lists of fields may have `list_bytes_max` bytes.
    pub fn new(list_bytes_max: usize) -> Self {
        Self {
            skip: PREFACE.len(),
            blocks: HeaderBlocks::new(list_bytes_max),
            last_stream: 0,
            block_bytes_max: list_bytes_max.saturating_add(Frame::PAYLOAD_BYTES_MAX),
        }
    }

    /// Reads the next bytes of the connection. Returns how many of `bytes` pass as they are, and
    /// the replacement of the bytes after those. `None`: nothing is replaced, and the bytes after
    /// those wait for more to arrive. The next call begins with the first byte that neither passed
    /// nor was replaced.
    pub fn pass(&mut self, bytes: &[u8]) -> (usize, Option<Replaced>) {
        let mut passed = 0;
        loop {
            match self.next(&bytes[passed..]) {
                Next::Pass(count) => passed += count,
                Next::Replace(replaced) => return (passed, Some(replaced)),
                Next::Wait => return (passed, None),
            }
        }
    }

    fn next(&mut self, bytes: &[u8]) -> Next {
        if bytes.is_empty() {
            return Next::Wait;
        }
        if self.skip > 0 {
            return self.pass_rest(bytes);
        }
        if self.blocks.are_refused() {
            return Next::Replace(Replaced { count: bytes.len(), by: Vec::new() });
        }
        let Some(frame) = frame_at(bytes, 0) else { return Next::Wait };
        // The `h2` crate ends the connection at a frame that is too long, whatever it is.
        if frame.length > Frame::PAYLOAD_BYTES_MAX {
            return self.pass_frame(bytes, frame);
        }
        match frame.kind {
            Frame::HEADERS if self.blocks.are_read() => self.header_block(bytes, frame),
            // Blocks are not read any more, and unread trailers might hold a pseudo-header.
            Frame::HEADERS if self.are_trailers(frame) => self.replace_all(bytes, frame),
            Frame::HEADERS => {
                self.last_stream = frame.stream;
                self.pass_frame(bytes, frame)
            }
            // A client may send no PUSH_PROMISE, and a CONTINUATION only behind its HEADERS, which
            // `header_block` reads.
            Frame::CONTINUATION | Frame::PUSH_PROMISE if self.blocks.are_read() => {
                self.replace_all(bytes, frame)
            }
            _ => self.pass_frame(bytes, frame),
        }
    }

    fn are_trailers(&self, frame: Frame) -> bool {
        frame.stream <= self.last_stream
    }

    /// Reads a header block whose first frame is `frame`.
    fn header_block(&mut self, bytes: &[u8], frame: Frame) -> Next {
        let is_long = |length: usize| length > self.block_bytes_max;
        let are_trailers = self.are_trailers(frame);
        let (end, written) = match read_block(bytes, frame, are_trailers) {
            BlockRead::Broken => return self.replace_all(bytes, frame),
            BlockRead::Part if !is_long(bytes.len()) => return Next::Wait,
            BlockRead::Whole(block, end) if !is_long(end) => {
                let written = self.blocks.read(&block);
                let is_joined = block.frames > FRAMES_MAX && self.blocks.are_read();
                (end, written.or_else(|| is_joined.then(|| block.fields.into_owned())))
            }
            // Otherwise trailers would pass that were not checked.
            _ if are_trailers => return self.replace_all(bytes, frame),
            BlockRead::Part | BlockRead::Whole(..) => (bytes.len(), self.blocks.give_up()),
        };
        self.last_stream = self.last_stream.max(frame.stream);
        match written {
            None if self.blocks.are_read() => Next::Pass(end),
            None => self.pass_frame(bytes, frame),
            Some(fields) => Next::Replace(Replaced { count: end, by: frames(frame, &fields) }),
        }
    }

    fn pass_rest(&mut self, bytes: &[u8]) -> Next {
        let passed = self.skip.min(bytes.len());
        self.skip -= passed;
        Next::Pass(passed)
    }

    fn pass_frame(&mut self, bytes: &[u8], frame: Frame) -> Next {
        self.skip = Frame::HEAD_BYTES + frame.length;
        self.pass_rest(bytes)
    }

    /// Replaces all further bytes by a block that ends the connection. The `h2` crate alone would
    /// not always end it: of a stream that depends on itself, it reads neither fields nor padding.
    fn replace_all(&mut self, bytes: &[u8], frame: Frame) -> Next {
        let by = frames(frame, &self.blocks.refuse());
        Next::Replace(Replaced { count: bytes.len(), by })
    }
}

/// The frame whose header begins at `at`, if the header is whole.
fn frame_at(bytes: &[u8], at: usize) -> Option<Frame> {
    Some(Frame::of(*bytes.get(at..)?.first_chunk()?))
}

/// Writes `block` as frames, on the stream of `frame`, the first frame that was received of it.
/// Writes neither padding nor a priority.
fn frames(frame: Frame, block: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(block.len() + 2 * Frame::HEAD_BYTES);
    let (mut kind, mut flags) = (Frame::HEADERS, frame.flags & Frame::END_STREAM);
    let mut rest = block;
    loop {
        let (payload, more) = rest.split_at(rest.len().min(Frame::PAYLOAD_BYTES_MAX));
        if more.is_empty() {
            flags |= Frame::END_HEADERS;
        }
        let frame = Frame { kind, flags, stream: frame.stream, length: payload.len() };
        frames.extend_from_slice(&frame.head());
        frames.extend_from_slice(payload);
        if more.is_empty() {
            return frames;
        }
        (kind, flags, rest) = (Frame::CONTINUATION, 0, more);
    }
}

/// The result of reading the frames of a block.
enum BlockRead<'b> {
    /// The block, and the length of its frames in bytes.
    Whole(Block<'b>, usize),
    /// The end of the block has not arrived.
    Part,
    /// The frames are an error of the connection.
    Broken,
}

/// The payload of the frame at `at`.
fn payload_at(bytes: &[u8], at: usize, frame: Frame) -> Result<&[u8], BlockRead<'static>> {
    if frame.length > Frame::PAYLOAD_BYTES_MAX {
        return Err(BlockRead::Broken);
    }
    let from = at + Frame::HEAD_BYTES;
    bytes.get(from..from + frame.length).ok_or(BlockRead::Part)
}

/// Reads the block at the beginning of `bytes`, whose first frame is `first`.
fn read_block(bytes: &[u8], first: Frame, are_trailers: bool) -> BlockRead<'_> {
    let payload = match payload_at(bytes, 0, first) {
        Ok(payload) => payload,
        Err(unread) => return unread,
    };
    let Some((fields, depends_on_itself)) = first_fields(payload, first) else {
        return BlockRead::Broken;
    };
    let (mut fields, mut end) = (Cow::Borrowed(fields), Frame::HEAD_BYTES + first.length);
    let (mut frame, mut frames) = (first, 1);
    while frame.flags & Frame::END_HEADERS == 0 {
        frame = match frame_at(bytes, end) {
            None => return BlockRead::Part,
            Some(next) if (next.kind, next.stream) == (Frame::CONTINUATION, first.stream) => next,
            Some(_) => return BlockRead::Broken,
        };
        match payload_at(bytes, end, frame) {
            Ok(payload) => fields.to_mut().extend_from_slice(payload),
            Err(unread) => return unread,
        }
        end += Frame::HEAD_BYTES + frame.length;
        frames += 1;
    }
    // A stream that depends on itself is malformed (RFC 7540, section 5.3.1). Its fields must be
    // decoded all the same, which the `h2` crate does not do.
    let block = Block { fields, are_trailers, frames, is_malformed: depends_on_itself };
    BlockRead::Whole(block, end)
}

/// The fields in the payload of a HEADERS frame, and whether its stream depends on itself. `None`:
/// the frame is an error of the connection.
fn first_fields(payload: &[u8], frame: Frame) -> Option<(&[u8], bool)> {
    let (mut rest, mut padding, mut dependency) = (payload, 0, None);
    if frame.flags & Frame::PADDED != 0 {
        let (length, fields) = rest.split_first()?;
        (rest, padding) = (fields, usize::from(*length));
    }
    if frame.flags & Frame::PRIORITY != 0 {
        let ([a, b, c, d, _], fields) = rest.split_first_chunk()?;
        rest = fields;
        // The first bit says whether the dependency is exclusive.
        dependency = Some(u32::from_be_bytes([*a, *b, *c, *d]) & (u32::MAX >> 1));
    }
    let fields = &rest[..rest.len().checked_sub(padding)?];
    (frame.stream != 0).then_some((fields, dependency == Some(frame.stream)))
}
