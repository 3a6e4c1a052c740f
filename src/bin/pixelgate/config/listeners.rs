//! The addresses of all listeners, which must differ.

use crate::edge::listen::conflict;
use std::collections::BTreeSet;

/// Checks that no two listeners have the same address. Entries of `edge.tls` share theirs.
pub fn check(
    edge: &crate::edge::config::Config,
    admin: &pixelgate::config::Admin,
) -> Result<(), (String, String)> {
    let tls: BTreeSet<&str> = edge.tls.iter().map(|entry| entry.listen.as_str()).collect();
    let plain = edge.listen.iter().map(|text| ("edge.listen", text.as_str()));
    let all = plain.chain(tls.into_iter().map(|text| ("edge.tls", text)));
    let all: Vec<_> = all.chain([("admin.listen", admin.listen.as_str())]).collect();
    match conflict(&all) {
        None => Ok(()),
        Some([(first, _), (second, _)]) => {
            let reason = format!("listens on an address that {first} listens on");
            Err((second.to_owned(), reason))
        }
    }
}
