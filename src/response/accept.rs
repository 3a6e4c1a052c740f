//! Reads from `Accept` whether the client of a rejected event wants a document or an image.

/// The media types of `Accept` that ask for a document.
const DOCUMENT_TYPES: [&[u8]; 3] =
    [b"application/json", b"application/problem+json", b"text/plain"];

/// Whether a rejection is answered with a pixel and not with a problem document. It is, unless the
/// request's `Accept`, on one line or on several, names the media type of a document and none of
/// images (SPEC 4). A type with a weight of 0 is not acceptable (RFC 9110, section 12.5.1), and
/// does not count as named.
pub fn wants_image<'a>(accept: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let mut names_document = false;
    for line in accept {
        for range in line.split(separator(b',')) {
            let mut parts = range.split(separator(b';')).map(<[u8]>::trim_ascii);
            let kind = parts.next().unwrap_or_default();
            let is_image = kind.get(..6).is_some_and(|start| start.eq_ignore_ascii_case(b"image/"));
            let is_document = || DOCUMENT_TYPES.iter().any(|name| kind.eq_ignore_ascii_case(name));
            if !(is_image || is_document()) || parts.any(is_weight_of_zero) {
                continue;
            }
            if is_image {
                return true;
            }
            names_document = true;
        }
    }
    !names_document
}

/// Whether a byte is this separator, and in no quoted string. To be called with each byte in turn.
fn separator(separator: u8) -> impl FnMut(&u8) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    move |byte| {
        match (byte, std::mem::take(&mut is_escaped)) {
            (b'"', false) => is_quoted = !is_quoted,
            (b'\\', false) => is_escaped = is_quoted,
            _ => {}
        }
        *byte == separator && !is_quoted
    }
}

/// Whether a parameter is `q=0`, in any form: `Q=0`, `q=0.`, `q=0.000`.
fn is_weight_of_zero(parameter: &[u8]) -> bool {
    let [b'q' | b'Q', value @ ..] = parameter else { return false };
    let Some(value) = value.trim_ascii_start().strip_prefix(b"=") else { return false };
    let Some(decimals) = value.trim_ascii_start().strip_prefix(b"0") else { return false };
    matches!(decimals, [] | [b'.', ..]) && decimals.iter().skip(1).all(|byte| *byte == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(lines: &[&str], expect: bool) {
        assert_eq!(wants_image(lines.iter().map(|l| l.as_bytes())), expect, "{lines:?}");
    }

    fn check(accept: &str, expect: bool) {
        check_lines(&[accept], expect);
    }

    #[test]
    fn a_rejection_is_an_image_unless_a_document_is_asked_for() {
        check_lines(&[], true);
        check("image/avif,image/webp,*/*;q=0.8", true);
        check("text/html, IMAGE/png", true);
        check("*/*", true);
        check("", true);
        check("text/html,application/xhtml+xml,*/*;q=0.8", true);
        check("application/json, IMAGE/*", true);
        check("application/json", false);
        check("application/json, text/plain, */*", false);
        check("text/html;q=0.9 ,\tApplication/Problem+JSON; q=0.5", false);
        check("text/plain;charset=utf-8", false);
        check("application/jsonp, text/plainer, x-image/png", true);
        check_lines(&["text/html", "application/json"], false);
        check_lines(&["application/json", "image/png"], true);
    }

    #[test]
    fn a_type_with_a_weight_of_zero_is_not_named() {
        for zero in ["q=0", "Q=0", "q=0.", "q=0.0", "q=0.000", "q = 0", "a=b;q=0", "q=0;a=b"] {
            for blank in ["", " ", "\t"] {
                check(&format!("application/json{blank};{blank}{zero}"), true);
                check(&format!("application/json, image/*{blank};{blank}{zero}"), false);
                check(&format!("text/plain;{zero}{blank},text/plain"), false);
            }
        }
        for more in ["q=0.001", "q=0.5", "q=1", "q=1.0", "q=01", "qq=0", "x=q=0", "q=", "q", "0"] {
            check(&format!("application/json;{more}"), false);
        }
        check_lines(&["application/json;q=0", "text/plain"], false);
    }

    #[test]
    fn separators_within_a_string_separate_nothing() {
        check("text/html;x=\"a,application/json\"", true);
        check("application/json;x=\"a;q=0\"", false);
        check("application/json;x=\"a\\\";q=0\";y=\"\\\\\"", false);
        check("application/json;x=\"a\\\\\";q=0", true);
        check("text/html;x=\"a, application/json", true);
        check("text/html\\;x=\"\\\",\", text/plain", false);
    }
}
