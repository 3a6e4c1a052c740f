//! Lets the code of a host look at each event before it is stored (`Builder::inspect`).
//!
//! An [`Inspector`] sees the event and its context after the portal's rules and `[privacy]` have
//! removed the data that must not be stored. It may add to the context or refuse the event, and can
//! change nothing else.

use crate::event::{
    ADDED_MEMBERS_MAX, ADDED_NAME_BYTES_MAX, ADDED_VALUE_BYTES_MAX, Context, Event,
    is_property_name, without_hidden,
};
use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

/// The code of a host that looks at each event. It runs on the request path, so it must not block.
pub type Inspector =
    Arc<dyn Fn(&Event<'_>, &mut Addition<'_, '_>) -> Result<(), Refusal> + Send + Sync>;

/// Why a host refuses an event. The rejection is counted as `refused_by_host` and answered 403
/// (SPEC 4); the reason is in the verdict and in `explain`, and is not sent to the client.
///
/// ```
/// use pixelgate::custom::Refusal;
///
/// const NOT_FROM_OUTSIDE: Refusal = Refusal::new("internal events do not come from outside");
/// assert!(NOT_FROM_OUTSIDE.reason().starts_with("internal"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    reason: &'static str,
}

impl Refusal {
    /// A refusal with its reason, which must not repeat anything that a request brought.
    pub const fn new(reason: &'static str) -> Self {
        Self { reason }
    }

    /// The host's reason.
    pub const fn reason(self) -> &'static str {
        self.reason
    }
}

/// The context of an event, to which a host may add. It can be read as a [`Context`].
///
/// ```
/// use pixelgate::custom::Addition;
///
/// fn add_kind(context: &mut Addition<'_, '_>) {
///     let kind = if context.prefetch { "prefetch" } else { "visit" };
///     // Fails only if the name cannot be used, which this one can.
///     let _ = context.add("kind", kind);
/// }
/// ```
#[derive(Debug)]
pub struct Addition<'c, 'a> {
    context: &'c mut Context<'a>,
}

/// The reason why a name was not added to a context.
///
/// ```
/// use pixelgate::custom::{Addition, Refusal};
/// use pixelgate::errors::AddError;
///
/// fn add(context: &mut Addition<'_, '_>, value: &str) -> Result<(), Refusal> {
///     match context.add("customer", value) {
///         Err(AddError::Empty) => Err(Refusal::new("the customer is not known")),
///         _ => Ok(()),
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The name is not 1 to 64 characters of `a-z`, `0-9` and `_` with a letter first.
    #[error("a name is 1 to {ADDED_NAME_BYTES_MAX} of a-z, 0-9 and _, a letter first")]
    Name,
    /// The value is empty, or all its characters are hidden.
    #[error("the value is empty")]
    Empty,
    /// The context has 16 added names already.
    #[error("a context has at most {ADDED_MEMBERS_MAX} added names")]
    TooMany,
}

impl<'c, 'a> Addition<'c, 'a> {
    pub(super) fn to(context: &'c mut Context<'a>) -> Self {
        Self { context }
    }

    /// Adds `name` with `value` to `context.added` of the event that upstreams receive (SPEC 7).
    /// The value loses its hidden characters and is cut after 255 bytes. A name that was added
    /// before gets the new value. Has no effect on an event that `privacy.gpc = "anonymize"` makes
    /// anonymous.
    ///
    /// # Errors
    ///
    /// The name or the value cannot be used; the context stays as it is.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), AddError> {
        if name.len() > ADDED_NAME_BYTES_MAX || !is_property_name(name) {
            return Err(AddError::Name);
        }
        let value = without_hidden(Cow::Borrowed(value));
        let value = &value[..value.floor_char_boundary(ADDED_VALUE_BYTES_MAX)];
        if value.is_empty() {
            return Err(AddError::Empty);
        }
        let added = &mut self.context.further.get_or_insert_default().added;
        match added.binary_search_by(|(known, _)| (**known).cmp(name)) {
            Ok(at) => added[at].1 = Cow::Owned(value.to_owned()),
            Err(_) if added.len() == ADDED_MEMBERS_MAX => return Err(AddError::TooMany),
            Err(at) => added.insert(at, (Cow::Owned(name.to_owned()), value.to_owned().into())),
        }
        Ok(())
    }
}

impl<'a> Deref for Addition<'_, 'a> {
    type Target = Context<'a>;

    fn deref(&self) -> &Context<'a> {
        self.context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_checked_and_sorted() {
        let mut context = Context::default();
        let mut check = |name: &str, value: &str, expect: Result<(), AddError>| {
            assert_eq!(Addition::to(&mut context).add(name, value), expect, "{name:?} {value:?}");
        };
        check("plan", "pro", Ok(()));
        check("country", "F\u{200B}R", Ok(()));
        check("plan", &"\u{e9}".repeat(200), Ok(()));
        for name in ["", "1a", "_a", "A", "a-b", "\u{e9}", &"a".repeat(65)] {
            check(name, "x", Err(AddError::Name));
        }
        check("a", "", Err(AddError::Empty));
        check("a", "\u{200B}", Err(AddError::Empty));
        for n in 2..16 {
            check(&format!("n{n}"), "x", Ok(()));
        }
        check("one_more", "x", Err(AddError::TooMany));
        check("n2", "again", Ok(()));
        let added = &context.further().added;
        assert!(added.is_sorted() && added.len() == ADDED_MEMBERS_MAX);
        assert_eq!(added[0], ("country".into(), "FR".into()));
        assert_eq!(added[15].1, "\u{e9}".repeat(127));
    }
}
