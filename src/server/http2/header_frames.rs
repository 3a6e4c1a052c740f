//! Finds the header blocks in the frames of a client (RFC 9113, section 6.2 and 6.10), and writes
//! the frames of those that must change.

use super::frame::{Frame, PREFACE};
use super::header_block::HeaderBlocks;
use std::borrow::Cow;

/// What to do with the first bytes of those that were received.
enum Next {
    /// So many pass as they are.
    Pass(usize),
    Replace(Replaced),
    /// More of them are needed.
    Wait,
}

/// Bytes that do not pass as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Number of bytes that are replaced.
    pub count: usize,
    /// What takes their place.
    pub by: Vec<u8>,
}

/// The frames of one connection.
#[derive(Debug)]
pub struct HeaderFrames {
    /// Bytes until the next frame header.
    skip: usize,
    blocks: HeaderBlocks,
    /// Longest header block with its frame headers, in bytes. The fields of a longer one are too
    /// many to be taken.
    block_bytes_max: usize,
}

impl HeaderFrames {
    /// Expects a client's preface first. Lists of fields may have `list_bytes_max` bytes.
    pub fn new(list_bytes_max: usize) -> Self {
        Self {
            skip: PREFACE.len(),
            blocks: HeaderBlocks::new(list_bytes_max),
            block_bytes_max: list_bytes_max.saturating_add(Frame::PAYLOAD_BYTES_MAX),
        }
    }

    /// Reads the next bytes of the connection. Returns how many of `bytes` pass as they are, and
    /// what replaces the bytes after those. `None`: more bytes are needed to say so. The next call
    /// begins with the first byte that neither passed nor was replaced.
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
        if frame.length > Frame::PAYLOAD_BYTES_MAX || !self.blocks.are_read() {
            return self.pass_frame(bytes, frame);
        }
        match frame.kind {
            Frame::HEADERS => self.header_block(bytes, frame),
            // Neither has a place here.
            Frame::CONTINUATION | Frame::PUSH_PROMISE => self.replace_all(bytes, frame),
            _ => self.pass_frame(bytes, frame),
        }
    }

    /// Reads a header block whose first frame is `frame`.
    fn header_block(&mut self, bytes: &[u8], frame: Frame) -> Next {
        let is_long = |length: usize| length > self.block_bytes_max;
        let (end, written) = match Block::read(bytes, frame) {
            Gathered::Broken => return self.replace_all(bytes, frame),
            Gathered::Part if !is_long(bytes.len()) => return Next::Wait,
            Gathered::Whole(block) if !is_long(block.end) => {
                (block.end, self.blocks.read(&block.fields, block.depends_on_itself))
            }
            Gathered::Part | Gathered::Whole(_) => (bytes.len(), self.blocks.give_up()),
        };
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

    /// Replaces all that follows by what ends the connection. The `h2` crate would not always end
    /// it: where a stream depends on itself, it reads neither the fields nor the padding.
    fn replace_all(&mut self, bytes: &[u8], frame: Frame) -> Next {
        let by = frames(frame, &self.blocks.refuse());
        Next::Replace(Replaced { count: bytes.len(), by })
    }
}

/// The frame whose header begins at `at`, if the header is whole.
fn frame_at(bytes: &[u8], at: usize) -> Option<Frame> {
    Some(Frame::of(*bytes.get(at..)?.first_chunk()?))
}

/// The frames of a header block whose first one was `frame`. Neither padding nor a priority is
/// written.
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

/// A header block.
struct Block<'b> {
    fields: Cow<'b, [u8]>,
    /// Whether its stream depends on itself, which is an error of that stream. The `h2` crate does
    /// not even read its fields then, as it would have to.
    depends_on_itself: bool,
    /// Length of its frames in bytes.
    end: usize,
}

enum Gathered<'b> {
    Whole(Block<'b>),
    /// Its end is missing.
    Part,
    /// Its frames are an error of the connection.
    Broken,
}

/// The payload of the frame at `at`.
fn payload_at(bytes: &[u8], at: usize, frame: Frame) -> Result<&[u8], Gathered<'static>> {
    if frame.length > Frame::PAYLOAD_BYTES_MAX {
        return Err(Gathered::Broken);
    }
    let from = at + Frame::HEAD_BYTES;
    bytes.get(from..from + frame.length).ok_or(Gathered::Part)
}

impl<'b> Block<'b> {
    /// Reads the block at the beginning of `bytes`, whose first frame is `first`.
    fn read(bytes: &'b [u8], first: Frame) -> Gathered<'b> {
        let payload = match payload_at(bytes, 0, first) {
            Ok(payload) => payload,
            Err(gathered) => return gathered,
        };
        let Some(mut block) = Block::first(payload, first) else { return Gathered::Broken };
        let mut frame = first;
        while frame.flags & Frame::END_HEADERS == 0 {
            frame = match frame_at(bytes, block.end) {
                None => return Gathered::Part,
                Some(next) if (next.kind, next.stream) == (Frame::CONTINUATION, first.stream) => {
                    next
                }
                Some(_) => return Gathered::Broken,
            };
            match payload_at(bytes, block.end, frame) {
                Ok(payload) => block.fields.to_mut().extend_from_slice(payload),
                Err(gathered) => return gathered,
            }
            block.end += Frame::HEAD_BYTES + frame.length;
        }
        Gathered::Whole(block)
    }

    /// Reads the payload of a HEADERS frame. `None`: an error of the connection.
    fn first(payload: &'b [u8], frame: Frame) -> Option<Self> {
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
        let depends_on_itself = dependency == Some(frame.stream);
        let end = Frame::HEAD_BYTES + frame.length;
        let block = Self { fields: Cow::Borrowed(fields), depends_on_itself, end };
        (frame.stream != 0).then_some(block)
    }
}
