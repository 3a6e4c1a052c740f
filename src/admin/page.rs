//! The live page: one self-contained document, assembled once from its three sources.
//!
//! There is no build step and no outside resource. The `Content-Security-Policy` allows the browser
//! to run this one script, to use this one style (both named by their hashes), and to connect to
//! this listener only. The document holds no data. The script fetches the data, with the token if
//! `admin.token` is set.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The document and the `Content-Security-Policy` that belongs to it.
#[derive(Debug)]
pub struct Document {
    /// The HTML, with style and script inside.
    pub body: String,
    /// The value of `Content-Security-Policy`.
    pub policy: String,
}

impl Document {
    /// Assembles the document and computes the hashes.
    pub fn new() -> Self {
        let hash = |text: &str| STANDARD.encode(digest(&SHA256, text.as_bytes()));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; \
             connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        Self { body: HTML.replace("{style}", STYLE).replace("{script}", SCRIPT), policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_whole_and_asks_for_nothing_from_outside() {
        let Document { body, .. } = Document::new();
        assert!(body.contains(&format!("<style>{STYLE}</style>")));
        assert!(body.contains(&format!("<script>{SCRIPT}</script>")));
        for outside in [" src=", "href=\"http", "href=\"/", "@import", "url(", "import("] {
            assert!(!body.contains(outside), "{outside}");
        }
        assert!(!SCRIPT.contains("innerHTML"), "what is shown is text, never markup");
    }
}
