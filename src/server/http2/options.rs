//! Settings for the `h2` crate.

use crate::server::limits::Limits;
use h2::server::Builder;

/// The most response bytes that wait for one stream's window.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// Window of a stream, in bytes: the most of one request's body that may wait for its origin.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Window of a connection that uploads, in bytes: four times that of a stream, so that an upload
/// that its origin does not take leaves three quarters to the other streams. A connection that
/// uploads nothing has the window of RFC 9113, 65,535 bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// The most bytes that the `h2` crate may count for frames with little data, beside that data. It
/// counts 256 bytes less the data for each, so about 2,000 frames of one byte may wait for their
/// origins.
const SMALL_FRAMES_BYTES: usize = 512 << 10;

/// The `h2` options that apply `limits`.
pub fn h2_options(limits: &Limits) -> Builder {
    let mut options = Builder::new();
    options.max_concurrent_streams(limits.h2_streams_max);
    // `h2` refuses a list of exactly this size, too, so the setting that it announces is one byte
    // more than the limit.
    let list_bytes = limits.header_bytes_max.saturating_add(1);
    options.max_header_list_size(u32::try_from(list_bytes).unwrap_or(u32::MAX));
    options.max_send_buffer_size(SEND_BUFFER_BYTES);
    options.initial_window_size(STREAM_WINDOW_BYTES);
    options.data_frame_budget(SMALL_FRAMES_BYTES);
    options
}
