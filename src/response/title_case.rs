//! Header names as people write them.

use http::header::HeaderName;

/// `x-event-verdict` as `X-Event-Verdict`: the same to every client, but not to every reader.
pub(crate) fn title_case(name: &HeaderName) -> String {
    let mut begins = true;
    let title = |c: char| {
        let cased = if begins { c.to_ascii_uppercase() } else { c };
        begins = c == '-';
        cased
    };
    name.as_str().chars().map(title).collect()
}
