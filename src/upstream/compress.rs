//! Compresses the body of a batch (SPEC 7).

use std::cell::RefCell;
use std::io::Write;

use flate2::write::GzEncoder;
use serde::Deserialize;

/// The gzip level (0 to 9). Higher levels hardly reduce the size of batches of similar events.
const GZIP_LEVEL: u32 = 3;
/// The zstd level (1 to 22). For batches of similar events, level 3 (the library's default) takes
/// 50 % more time, and the result is not smaller.
const ZSTD_LEVEL: i32 = 1;

/// The compression of a body.
///
/// ```
/// use pixelgate::config::Compression;
///
/// assert_eq!(Compression::default().content_encoding(), Some("gzip"));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip (RFC 1952), which every backend can read.
    #[default]
    Gzip,
    /// zstd (RFC 8878), whose result is smaller and takes a fraction of gzip's time.
    Zstd,
    /// No compression.
    None,
}

impl Compression {
    /// The `Content-Encoding` of a body. `None` if it is not compressed.
    pub fn content_encoding(self) -> Option<&'static str> {
        match self {
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
            Compression::None => None,
        }
    }
}

/// The body as it is sent. `None` if the compressor fails.
pub fn compress(plain: Vec<u8>, compression: Compression) -> Option<Vec<u8>> {
    match compression {
        Compression::None => Some(plain),
        Compression::Gzip => gzip(&plain),
        Compression::Zstd => zstd(&plain),
    }
}

// Writing to a `Vec` cannot fail. If a compressor fails nevertheless, the batch is rejected like
// an unreadable one, and its events stay recoverable as dead letters.

fn gzip(plain: &[u8]) -> Option<Vec<u8>> {
    let out = Vec::with_capacity(plain.len() / 4);
    let mut encoder = GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL));
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

thread_local! {
    // Reused, because creating a compressor takes longer than compressing a small batch.
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

fn zstd(plain: &[u8]) -> Option<Vec<u8>> {
    ZSTD.with_borrow_mut(|slot| {
        let mut compressor = match slot.take() {
            Some(compressor) => compressor,
            None => zstd::bulk::Compressor::new(ZSTD_LEVEL).ok()?,
        };
        let out = compressor.compress(plain).ok()?;
        *slot = Some(compressor);
        Some(out)
    })
}
