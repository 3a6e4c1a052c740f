//! Header names in their conventional spelling.

use http::header::HeaderName;

/// `x-event-verdict` as `X-Event-Verdict`. Clients ignore the case; people read this form more
/// easily.
pub(crate) fn title_case(name: &HeaderName) -> String {
    let mut begins = true;
    let title = |c: char| {
        let cased = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        cased
    };
    name.as_str().chars().map(title).collect()
}
