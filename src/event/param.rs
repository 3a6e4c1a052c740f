//! The one table of limits, and the names that mean something.
//!
//! Everything SPEC 3 says in numbers stands here, once. The rules that use them are elsewhere.

/// The longest query judged, in bytes, unless configured otherwise.
pub const QUERY_BYTES_MAX_DEFAULT: usize = 8192;
/// The most non-empty pieces of a query, unless configured otherwise.
pub const PARAMS_MAX_DEFAULT: usize = 100;
/// What may be configured as `query_bytes_max`: below, hardly an event fits; above, no header does.
pub const QUERY_BYTES_MAX_RANGE: std::ops::RangeInclusive<usize> = 64..=65_536;
/// What may be configured as `params_max`: an event needs two.
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

/// How much of a `User-Agent` is kept, in bytes.
pub const USER_AGENT_BYTES_MAX: usize = 1024;
/// How much of a `Referer` is kept, in bytes.
pub const REFERER_BYTES_MAX: usize = 2048;

/// Parameters that may be credentials of the caller: never forwarded, logged or shown.
pub const WITHHELD: [&str; 3] = ["access_token", "hapikey", "portalid"];

/// The five parameters with a meaning of their own, in the order in which they are judged.
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
