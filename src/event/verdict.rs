//! The reasons for which an event request is rejected, and those for which a parameter is ignored.
//!
//! They are small enums with fixed texts. No text repeats anything that a client sent, so each may
//! appear in an answer, a log line or the label of a metric.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::param::Reserved;

/// The ignored parameters as (decoded name, cause), in order of appearance. The values are dropped:
/// they may be secrets.
pub type IgnoredParams<'a> = SmallVec<[(Cow<'a, str>, Ignored); 4]>;

/// Why an event request was rejected (SPEC 3 for the order, SPEC 4 for the status).
///
/// ```
/// use pixelgate::Reason;
///
/// assert_eq!(Reason::InvalidEmail.as_str(), "invalid_email");
/// assert_eq!(Reason::InvalidEmail.status(), 400);
/// assert!(Reason::ALL.contains(&Reason::Overloaded));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Reason {
    /// The path is below the event path, or is the event path in some readings only (SPEC 2).
    UnknownPath,
    /// The method is neither `GET` nor another one of `events.methods`.
    MethodNotAllowed,
    /// The query has more bytes than `events.query_bytes_max`.
    QueryTooLong,
    /// The query has more parameters than `events.params_max`.
    TooManyParams,
    /// A reserved value is not UTF-8.
    InvalidEncoding,
    /// A reserved parameter was given twice with different values.
    ConflictingParam,
    /// `_a` is absent.
    MissingPortal,
    /// `_a` is not a portal's number.
    InvalidPortal,
    /// `_n` is absent.
    MissingEvent,
    /// `_n` is too long or has control characters.
    InvalidEvent,
    /// `email` is not one plain address.
    InvalidEmail,
    /// `_m` is not a number within the limits.
    InvalidRevenue,
    /// `id` is too long or has control characters.
    InvalidExternalId,
    /// The portal is not on the list.
    PortalNotAllowed,
    /// The portal does not take this event.
    EventNotAllowed,
    /// The browser sends `Sec-GPC: 1` and the operator rejects such events.
    PrivacyOptOut,
    /// The host that embeds the gate refuses the event (`Builder::inspect`).
    RefusedByHost,
    /// The portal exceeds its rate limit.
    RateLimited,
    /// The event could not be stored.
    Overloaded,
}

impl Reason {
    /// Every reason, in the order of the checks.
    pub const ALL: [Reason; 19] = [
        Reason::UnknownPath,
        Reason::MethodNotAllowed,
        Reason::QueryTooLong,
        Reason::TooManyParams,
        Reason::InvalidEncoding,
        Reason::ConflictingParam,
        Reason::MissingPortal,
        Reason::InvalidPortal,
        Reason::MissingEvent,
        Reason::InvalidEvent,
        Reason::InvalidEmail,
        Reason::InvalidRevenue,
        Reason::InvalidExternalId,
        Reason::PortalNotAllowed,
        Reason::EventNotAllowed,
        Reason::PrivacyOptOut,
        Reason::RefusedByHost,
        Reason::RateLimited,
        Reason::Overloaded,
    ];

    /// The label in headers, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Reason::UnknownPath => "unknown_path",
            Reason::MethodNotAllowed => "method_not_allowed",
            Reason::QueryTooLong => "query_too_long",
            Reason::TooManyParams => "too_many_params",
            Reason::InvalidEncoding => "invalid_encoding",
            Reason::ConflictingParam => "conflicting_param",
            Reason::MissingPortal => "missing_portal",
            Reason::InvalidPortal => "invalid_portal",
            Reason::MissingEvent => "missing_event",
            Reason::InvalidEvent => "invalid_event",
            Reason::InvalidEmail => "invalid_email",
            Reason::InvalidRevenue => "invalid_revenue",
            Reason::InvalidExternalId => "invalid_external_id",
            Reason::PortalNotAllowed => "portal_not_allowed",
            Reason::EventNotAllowed => "event_not_allowed",
            Reason::PrivacyOptOut => "privacy_opt_out",
            Reason::RefusedByHost => "refused_by_host",
            Reason::RateLimited => "rate_limited",
            Reason::Overloaded => "overloaded",
        }
    }

    /// The HTTP status (SPEC 4).
    pub const fn status(self) -> u16 {
        match self {
            Reason::TooManyParams
            | Reason::InvalidEncoding
            | Reason::ConflictingParam
            | Reason::MissingPortal
            | Reason::InvalidPortal
            | Reason::MissingEvent
            | Reason::InvalidEvent
            | Reason::InvalidEmail
            | Reason::InvalidRevenue
            | Reason::InvalidExternalId => 400,
            Reason::PortalNotAllowed
            | Reason::EventNotAllowed
            | Reason::PrivacyOptOut
            | Reason::RefusedByHost => 403,
            Reason::UnknownPath => 404,
            Reason::MethodNotAllowed => 405,
            Reason::QueryTooLong => 414,
            Reason::RateLimited => 429,
            Reason::Overloaded => 503,
        }
    }

    /// A few words for people: the `title` of RFC 9457.
    pub const fn title(self) -> &'static str {
        match self {
            Reason::UnknownPath => "Unknown path",
            Reason::MethodNotAllowed => "Method not allowed",
            Reason::QueryTooLong => "Query too long",
            Reason::TooManyParams => "Too many parameters",
            Reason::InvalidEncoding => "Invalid encoding",
            Reason::ConflictingParam => "Conflicting parameter",
            Reason::MissingPortal => "Portal missing",
            Reason::InvalidPortal => "Invalid portal",
            Reason::MissingEvent => "Event missing",
            Reason::InvalidEvent => "Invalid event",
            Reason::InvalidEmail => "Invalid email address",
            Reason::InvalidRevenue => "Invalid revenue",
            Reason::InvalidExternalId => "Invalid external id",
            Reason::PortalNotAllowed => "Portal not allowed",
            Reason::EventNotAllowed => "Event not allowed",
            Reason::PrivacyOptOut => "Privacy opt-out",
            Reason::RefusedByHost => "Refused",
            Reason::RateLimited => "Rate limited",
            Reason::Overloaded => "Overloaded",
        }
    }

    /// What to change: the `detail` of RFC 9457.
    pub const fn detail(self) -> &'static str {
        match self {
            Reason::UnknownPath => {
                "Nothing is served below the event path: send the event to the event path itself."
            }
            Reason::MethodNotAllowed => "Send the event with GET.",
            Reason::QueryTooLong => {
                "Shorten the query string: send fewer properties, or shorter values."
            }
            Reason::TooManyParams => "Send fewer parameters.",
            Reason::InvalidEncoding => {
                "Encode the value as UTF-8 before percent-encoding it: its bytes are not UTF-8."
            }
            Reason::ConflictingParam => {
                "Send this parameter once: it was given several times with different values."
            }
            Reason::MissingPortal => "Add _a, the number of the account (Hub ID), as in _a=62515.",
            Reason::InvalidPortal => {
                "Make _a the number of the account (Hub ID): 1 to 15 digits and nothing else."
            }
            Reason::MissingEvent => "Add _n, the id or the name of the event.",
            Reason::InvalidEvent => {
                "Make _n the id or the name of the event: at most 255 characters, no control \
                 characters."
            }
            Reason::InvalidEmail => {
                "Make email one plain address such as person@company.com, without a name, quotes \
                 or brackets, or leave it out."
            }
            Reason::InvalidRevenue => {
                "Make _m a plain number such as 20 or 20.5: a point for decimals, at most 6 of \
                 them, no currency sign, no thousands separators, below 1000000000000, or leave \
                 it out."
            }
            Reason::InvalidExternalId => {
                "Make id at most 255 characters without control characters, or leave it out."
            }
            Reason::PortalNotAllowed => {
                "Events of this account are not accepted here: check _a, or ask the operator to \
                 add the account."
            }
            Reason::EventNotAllowed => {
                "This account does not take this event: check _n, or ask the operator to allow it."
            }
            Reason::PrivacyOptOut => {
                "The browser sends Sec-GPC: 1, and events of such visitors are not taken."
            }
            Reason::RefusedByHost => {
                "This service does not take this event: ask its operator which events it takes."
            }
            Reason::RateLimited => {
                "The account sends too fast or has used up its quota of the day: try again after \
                 Retry-After."
            }
            Reason::Overloaded => "Try again after the time in Retry-After.",
        }
    }
}

/// Why an event was rejected, and when the same event would be accepted.
///
/// ```
/// use pixelgate::{Reason, Rejection};
///
/// let rejection = Rejection::of(Reason::InvalidEmail);
/// assert_eq!(rejection.param, Some("email"));
/// println!("{}", rejection.detail());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Rejection {
    /// The first check that failed, in the order of SPEC 3.
    pub reason: Reason,
    /// The parameter that the reason is about: `_a`, `_n`, `email`, `_m` or `id`. `None`: the
    /// request as a whole.
    pub param: Option<&'static str>,
    /// The seconds after which the portal's rate or quota accepts the same event. `None`: unknown.
    pub retry_after_seconds: Option<u32>,
    /// The reason that the host gave, with [`Reason::RefusedByHost`] only.
    pub host_reason: Option<&'static str>,
}

impl Rejection {
    /// A rejection for `reason`. Names the parameter if the reason is always about the same one.
    pub const fn of(reason: Reason) -> Rejection {
        let param = match reason {
            Reason::MissingPortal | Reason::InvalidPortal | Reason::PortalNotAllowed => {
                Some(Reserved::Portal.key())
            }
            Reason::MissingEvent | Reason::InvalidEvent | Reason::EventNotAllowed => {
                Some(Reserved::Event.key())
            }
            Reason::InvalidEmail => Some(Reserved::Email.key()),
            Reason::InvalidRevenue => Some(Reserved::Revenue.key()),
            Reason::InvalidExternalId => Some(Reserved::ExternalId.key()),
            _ => None,
        };
        Rejection { reason, param, retry_after_seconds: None, host_reason: None }
    }

    pub(super) const fn at(reason: Reason, param: Reserved) -> Rejection {
        Rejection { param: Some(param.key()), ..Rejection::of(reason) }
    }

    /// A sentence that says what to change. It never repeats anything that was sent.
    pub const fn detail(&self) -> &'static str {
        self.reason.detail()
    }
}

/// Why a parameter was ignored (SPEC 3). An ignored parameter does not reject the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Ignored {
    /// `events.withhold_params` names it: it may be a credential.
    Withheld,
    /// `events.ignore_params` names it.
    Configured,
    /// Its name begins with `_`.
    Underscore,
    /// Its name begins with `amp;`: the link has `&amp;` where it needs `&`.
    EscapedSeparator,
    /// Its name is not `[a-z][a-z0-9_]{0,99}`.
    InvalidName,
    /// Its name or value is not UTF-8.
    InvalidEncoding,
    /// Its value has control characters other than tab, LF and CR.
    ControlCharacter,
}

impl Ignored {
    /// Every cause, in the order of the checks.
    pub const ALL: [Ignored; 7] = [
        Ignored::Withheld,
        Ignored::Configured,
        Ignored::Underscore,
        Ignored::EscapedSeparator,
        Ignored::InvalidName,
        Ignored::InvalidEncoding,
        Ignored::ControlCharacter,
    ];

    /// The label in metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Ignored::Withheld => "withheld",
            Ignored::Configured => "configured",
            Ignored::Underscore => "underscore",
            Ignored::EscapedSeparator => "escaped_separator",
            Ignored::InvalidName => "invalid_name",
            Ignored::InvalidEncoding => "invalid_encoding",
            Ignored::ControlCharacter => "control_character",
        }
    }

    /// A sentence that says why, for `explain`.
    pub const fn detail(self) -> &'static str {
        match self {
            Ignored::Withheld => "It may be a credential, and is never passed on.",
            Ignored::Configured => "The operator's configuration leaves it out.",
            Ignored::Underscore => "Names that begin with _ are not contact properties.",
            Ignored::EscapedSeparator => {
                "Its name begins with amp; because the link's & was written as &amp;."
            }
            Ignored::InvalidName => {
                "A property's name is 1 to 100 of a-z, 0-9 and _, a letter first: use the \
                 property's internal name, not its label."
            }
            Ignored::InvalidEncoding => "Its bytes are not UTF-8.",
            Ignored::ControlCharacter => "Its value has control characters.",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn labels_are_distinct_and_fit_for_metrics() {
        let reasons: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(reasons.len(), Reason::ALL.len());
        let causes: HashSet<_> = Ignored::ALL.iter().map(|i| i.as_str()).collect();
        assert_eq!(causes.len(), Ignored::ALL.len());
        for label in reasons.iter().chain(&causes) {
            assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{label}");
        }
    }

    #[test]
    fn all_lists_every_variant_in_declared_order() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        assert_eq!(Reason::Overloaded as usize + 1, Reason::ALL.len());
        for (place, cause) in Ignored::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, place);
        }
        assert_eq!(Ignored::ControlCharacter as usize + 1, Ignored::ALL.len());
    }

    #[test]
    fn details_are_sentences() {
        let details = Reason::ALL.iter().map(|r| r.detail());
        for detail in details.chain(Ignored::ALL.iter().map(|i| i.detail())) {
            assert!(detail.ends_with('.') && !detail.contains("  "), "{detail}");
        }
    }
}
