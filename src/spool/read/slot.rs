//! The frame that the slots of a lane's cursor file and of its ack files share.
//!
//! | at | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic, which names the kind of slot and whether it counts routed records |
//! | 8 | 4 | crc32c of bytes 12 to the end |
//! | 12 | 4 | length of the whole slot |
//! | 16 | 8 | generation, which rises with each write of the file |
//! | 24 | 8 + 8 | number and salt of the lane |

use crate::spool::format::{u32_at, u64_at};

/// The bytes of the frame. The content follows.
const FRAME_BYTES: usize = 40;

/// The number and the salt of a lane. They identify it even if a later lane has the same number.
pub type LaneKey = (u64, u64);

/// A kind of slot.
pub struct Kind {
    pub magic: [u8; 8],
    /// The magic of a slot that counts routed records.
    pub magic_routed: [u8; 8],
}

/// A sound slot.
pub struct Opened<'b> {
    /// The bytes of the slot, with its frame.
    pub whole: &'b [u8],
    pub routed: bool,
    pub generation: u64,
    pub key: LaneKey,
}

impl Kind {
    /// Begins a slot. The caller appends the content and calls [`seal`].
    pub fn begin(&self, routed: bool, generation: u64, (lane, salt): LaneKey) -> Vec<u8> {
        let mut out = vec![0; 16];
        out[0..8].copy_from_slice(if routed { &self.magic_routed } else { &self.magic });
        for word in [generation, lane, salt] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Opens the slot at the start of `bytes`. `None` if it is damaged or of another kind.
    pub fn open<'b>(&self, bytes: &'b [u8]) -> Option<Opened<'b>> {
        let frame = bytes.get(..FRAME_BYTES)?;
        let whole = bytes.get(..u32_at(frame, 12) as usize)?;
        let routed = frame[0..8] == self.magic_routed;
        let is_sound = (routed || frame[0..8] == self.magic)
            && whole.len() >= FRAME_BYTES
            && crc32c::crc32c(&whole[12..]) == u32_at(frame, 8);
        let key = (u64_at(frame, 24), u64_at(frame, 32));
        is_sound.then(|| Opened { whole, routed, generation: u64_at(frame, 16), key })
    }
}

/// Fills in the length and the checksum of a slot whose content is complete.
pub fn seal(slot: &mut [u8]) {
    let bytes = slot.len() as u32;
    slot[12..16].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c::crc32c(&slot[12..]);
    slot[8..12].copy_from_slice(&crc.to_le_bytes());
}
