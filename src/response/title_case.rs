//! Writes header names in their conventional spelling.

use http::header::HeaderName;

/// Turns `x-event-verdict` into `X-Event-Verdict`, which people read more easily. Clients ignore
/// the case.
pub(crate) fn title_case(name: &HeaderName) -> String {
    let mut begins = true;
    let title = |c: char| {
        let cased = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        cased
    };
    name.as_str().chars().map(title).collect()
}
