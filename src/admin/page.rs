//! The live page: one self-contained document, made once from its three sources.
//!
//! No build step and no outside resource. The policy that is sent with it lets the browser run
//! exactly this script and use exactly this style, by their hashes, and talk to this listener
//! alone. The document holds no data: the script asks for it, with the token where one is needed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const HTML: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The document and the `Content-Security-Policy` that belongs to it.
#[derive(Debug)]
pub struct Document {
    /// HTML.
    pub body: String,
    /// The policy.
    pub policy: String,
}

impl Document {
    /// Puts the document together.
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
