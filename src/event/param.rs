//! The limits of SPEC 3 in numbers, and the names of the reserved parameters.
//!
//! Each number stands here and nowhere else: the portal list, the upstreams and the pages import
//! it. The rules that apply the numbers are in the other files of this room.

/// The default of `events.query_bytes_max`: the longest query that is judged, in bytes.
pub const QUERY_BYTES_MAX_DEFAULT: usize = 8192;
/// The default of `events.params_max`: the most non-empty pieces of a query.
pub const PARAMS_MAX_DEFAULT: usize = 100;
/// The range of `events.query_bytes_max`, in bytes: an event needs about 64, and no header of a
/// request has room for more than 64 KiB.
pub const QUERY_BYTES_MAX_RANGE: std::ops::RangeInclusive<usize> = 64..=65_536;
/// The range of `events.params_max`: an event needs two parameters.
pub const PARAMS_MAX_RANGE: std::ops::RangeInclusive<usize> = 2..=1000;

/// The most digits of a portal's number, leading zeros aside.
pub const PORTAL_DIGITS_MAX: usize = 15;
/// The greatest portal's number.
pub const PORTAL_MAX: u64 = 10u64.pow(PORTAL_DIGITS_MAX as u32) - 1;
/// The longest event name, in characters.
pub const EVENT_CHARS_MAX: usize = 255;
/// The longest external id, in characters.
pub const EXTERNAL_ID_CHARS_MAX: usize = 255;
/// The longest local part of an address, in bytes of its canonical form (RFC 5321, 4.5.3.1.1).
pub const EMAIL_LOCAL_BYTES_MAX: usize = 64;
/// The longest address with its domain in ASCII form, in bytes (RFC 5321, 4.5.3.1.3; RFC 3696,
/// erratum 1690).
pub const EMAIL_BYTES_MAX: usize = 254;
/// The fewest labels of an address's domain.
pub const EMAIL_LABELS_MIN: usize = 2;
/// The most significant digits of a revenue: what a double carries without loss.
pub const REVENUE_DIGITS_MAX: u32 = 15;
/// The most decimals of a revenue.
pub const REVENUE_DECIMALS_MAX: u32 = 6;
/// A revenue's absolute value is below ten to the power of this.
pub const REVENUE_INTEGER_DIGITS_MAX: u32 = 12;
/// The most digits of a revenue's exponent.
pub const REVENUE_EXPONENT_DIGITS_MAX: usize = 2;
/// The longest name of a contact property, in bytes (all of them ASCII).
pub const PROPERTY_NAME_BYTES_MAX: usize = 100;

/// The longest `User-Agent` that is stored, in bytes; the rest is cut off.
pub const USER_AGENT_BYTES_MAX: usize = 1024;
/// The longest `Referer` that is stored, in bytes; the rest is cut off.
pub const REFERER_BYTES_MAX: usize = 2048;

/// The longest `Host` that is stored, in bytes: a name has at most 253 bytes, and a colon and a
/// port six more. A longer `Host` is not stored.
pub const HOST_BYTES_MAX: usize = 259;
/// The longest value of the cookie `events.utk_cookie`, in bytes; HubSpot's has 32. A longer value
/// is not stored at all, because a part of an id would be a different id.
pub const UTK_BYTES_MAX: usize = 255;
/// The most names in `events.context_headers`.
pub const CONTEXT_HEADERS_MAX: usize = 16;
/// The longest name in `events.context_headers`, in bytes.
pub const CONTEXT_HEADER_NAME_BYTES_MAX: usize = 64;
/// The longest value of a header of `events.context_headers` that is stored, in bytes; the rest is
/// cut off.
pub const CONTEXT_HEADER_BYTES_MAX: usize = 1024;
/// The most names that a host adds to the context of one event.
pub const ADDED_MEMBERS_MAX: usize = 16;
/// The longest name that a host adds, in bytes (all of them ASCII).
pub const ADDED_NAME_BYTES_MAX: usize = 64;
/// The longest value that a host adds, in bytes; the rest is cut off.
pub const ADDED_VALUE_BYTES_MAX: usize = 255;

/// The default of `events.withhold_params`: names under which callers send credentials.
pub const WITHHOLD_PARAMS_DEFAULT: [&str; 10] = [
    "hapikey",
    "access_token",
    "portalid",
    "api_key",
    "apikey",
    "token",
    "password",
    "secret",
    "auth",
    "authorization",
];
/// The default of `events.ignore_params`: the parameter with which callers avoid caches.
pub const IGNORE_PARAMS_DEFAULT: [&str; 1] = ["t"];

/// The five reserved parameters, in the order in which they are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserved {
    Portal,
    Event,
    Email,
    Revenue,
    ExternalId,
}

impl Reserved {
    pub(super) const COUNT: usize = 5;

    pub(super) const fn key(self) -> &'static str {
        match self {
            Reserved::Portal => "_a",
            Reserved::Event => "_n",
            Reserved::Email => "email",
            Reserved::Revenue => "_m",
            Reserved::ExternalId => "id",
        }
    }

    pub(super) fn of(key: &[u8]) -> Option<Reserved> {
        match key {
            b"_a" => Some(Reserved::Portal),
            b"_n" => Some(Reserved::Event),
            b"email" => Some(Reserved::Email),
            b"_m" => Some(Reserved::Revenue),
            b"id" => Some(Reserved::ExternalId),
            _ => None,
        }
    }
}
