//! Settings for the `h2` crate, which Pingora uses.

use crate::server::limits::Limits;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};

/// Most response bytes that wait for one stream's window.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// The `h2` options that apply `limits`.
pub fn h2_options(limits: &Limits) -> H2Options {
    let mut options = default_h2_options();
    options.max_concurrent_streams(limits.h2_streams_max);
    options.max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX));
    options.max_send_buffer_size(SEND_BUFFER_BYTES);
    options
}
