//! Keeps the `Date` of an origin's answer, which Pingora replaces by its own and has no switch for.
//!
//! Caches compute the freshness of an answer from `Date` and `Age`, and an intermediary adds `Date`
//! only to an answer without one (RFC 9110, section 6.6.1). So the stream of the origin stores the
//! line in the exchange, and the stream of the client writes it in place of Pingora's.

use super::framing::{is_informational, lines};
use crate::server::exchange;
use bytes::Bytes;

const DATE: &str = "date";

/// Stores the `Date` lines of an origin's final answer, or that it has none.
pub fn store(head: &[u8]) {
    let mut dates = Vec::new();
    for line in lines(head, DATE) {
        // A value that goes on in the next line is no date.
        if matches!(head.get(line.end), Some(b' ' | b'\t')) {
            dates.clear();
            break;
        }
        dates.extend_from_slice(head[line].trim_ascii_end());
        dates.extend_from_slice(b"\r\n");
    }
    exchange::store_date(dates.into());
}

/// The header of an answer with the origin's `Date` in place of Pingora's. Empty: the header stays
/// as Pingora has written it.
pub fn restored(head: &[u8]) -> Bytes {
    // Pingora passes informational answers on as they are.
    if is_informational(head) {
        return Bytes::new();
    }
    let date = exchange::take_date();
    let own = lines(head, DATE).next().filter(|own| !date.is_empty() && head[own.clone()] != date);
    own.map_or_else(Bytes::new, |own| [&head[..own.start], &date, &head[own.end..]].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::buffered_bytes::BufferedBytes;

    /// What the client gets of the header `written` after the origin has sent `read`.
    async fn check(read: &str, written: &str, expect: &str) {
        exchange::scope(BufferedBytes::new(0), 0, false, async {
            store(read.as_bytes());
            let restored = restored(written.as_bytes());
            assert_eq!(restored, expect.as_bytes(), "{read:?} {written:?}");
        })
        .await;
    }

    #[tokio::test]
    async fn the_date_of_an_origin_stands_where_pingora_wrote_its_own() {
        let head = |lines: &str| format!("HTTP/1.1 200 OK\r\nA: date: 1\r\n{lines}B: 2\r\n\r\n");
        let own = head("Date: now\r\n");
        for (line, expect) in [
            ("Date: then\r\n", "Date: then\r\n"),
            ("date:then \r\n", "date:then\r\n"),
            ("Date: then\n", "Date: then\r\n"),
            ("Date: then\r\nDate: later\r\n", "Date: then\r\nDate: later\r\n"),
        ] {
            check(&head(line), &own, &head(expect)).await;
        }
        // Nothing is to be changed.
        for line in ["", "Date: now\r\n", "Dates: then\r\n", "Date: the\r\n n\r\n"] {
            check(&head(line), &own, "").await;
        }
        let tunnel = own.replace("200 OK", "101 Switching Protocols");
        check(&head("Date: then\r\n"), &tunnel, "").await;
        check(&head("Date: then\r\n"), &head(""), "").await;
    }
}
