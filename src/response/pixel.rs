//! The pixel: a GIF89a image of one transparent pixel, 43 bytes.
//!
//! It is built once for the process (SPEC 4). An answer clones a [`Bytes`], which copies nothing.

use bytes::Bytes;
use once_cell::sync::Lazy;

/// The pixel's media type.
pub const CONTENT_TYPE: &str = "image/gif";
/// The pixel's length, in bytes.
pub const BYTES: usize = 43;

/// The pixel. Cloning copies no bytes.
pub static PIXEL: Lazy<Bytes> = Lazy::new(|| Bytes::from_static(&GIF));

#[rustfmt::skip]
static GIF: [u8; BYTES] = [
    b'G', b'I', b'F', b'8', b'9', b'a', // signature, version
    1, 0, 1, 0,                         // screen: 1 by 1
    0x80, 0, 0,                         // a table of two colours follows; background 0; square
    0, 0, 0, 0xFF, 0xFF, 0xFF,          // colour 0 black, colour 1 white
    0x21, 0xF9, 4, 1, 0, 0, 0, 0,       // graphic control: no delay, colour 0 is transparent
    0x2C, 0, 0, 0, 0, 1, 0, 1, 0, 0,    // image at 0, 0: 1 by 1, no table of its own
    2, 2, 0x44, 0x01, 0,                // LZW from 2 bits, one block of 2 bytes: clear, 0, end
    0x3B,                               // trailer
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The LZW codes of an image that is too small for the code's width to grow.
    fn codes(bytes: &[u8], width: u32) -> Vec<u32> {
        let bit = |at: u32| u32::from(bytes[at as usize / 8] >> (at % 8) & 1);
        let code = |number: u32| (0..width).map(|i| bit(number * width + i) << i).sum();
        (0..bytes.len() as u32 * 8 / width).map(code).collect()
    }

    #[test]
    fn the_pixel_is_a_gif_of_one_transparent_pixel() {
        let gif: &[u8] = &PIXEL;
        let u16_at = |at: usize| u16::from_le_bytes([gif[at], gif[at + 1]]);
        assert_eq!(gif.len(), 43);
        assert_eq!(&gif[..6], b"GIF89a");

        // Logical screen descriptor.
        assert_eq!((u16_at(6), u16_at(8)), (1, 1));
        let packed = gif[10];
        assert_eq!(packed >> 7, 1, "there is a global colour table");
        let colours = 2usize << (packed & 7);
        assert_eq!(colours, 2);
        assert!(usize::from(gif[11]) < colours, "the background is a colour of the table");
        let after_table = 13 + 3 * colours;

        // Graphic control extension.
        let control = &gif[after_table..after_table + 8];
        assert_eq!(control[..3], [0x21, 0xF9, 4]);
        assert_eq!(control[3] & 1, 1, "there is a transparent colour");
        let transparent = u32::from(control[6]);
        assert_eq!(control[7], 0);

        // Image descriptor: the whole screen, no local table, not interlaced.
        let image = after_table + 8;
        assert_eq!(gif[image], 0x2C);
        assert_eq!((u16_at(image + 1), u16_at(image + 3)), (0, 0));
        assert_eq!((u16_at(image + 5), u16_at(image + 7)), (1, 1));
        assert_eq!(gif[image + 9], 0);

        // Image data: one pixel of the transparent colour between "clear" and "end".
        let data = image + 10;
        let bits = u32::from(gif[data]);
        let block_bytes = usize::from(gif[data + 1]);
        let block = &gif[data + 2..data + 2 + block_bytes];
        let (clear, end) = (1 << bits, (1 << bits) + 1);
        assert_eq!(codes(block, bits + 1)[..3], [clear, transparent, end]);
        assert_eq!(gif[data + 2 + block_bytes..], [0, 0x3B], "terminator and trailer, no more");
    }

    #[test]
    fn cloning_the_pixel_copies_nothing() {
        assert_eq!(PIXEL.clone().as_ptr(), PIXEL.as_ptr());
    }
}
