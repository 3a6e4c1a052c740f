//! Recognizes user agents of known bots. This is done at delivery, because the match costs more
//! than all work of the request path on an event.
//!
//! The patterns are those of the crate `isbot`. A few thousand user agents make up nearly all
//! traffic, so results are cached.

use std::collections::HashMap;
use std::sync::LazyLock;

use foldhash::quality::RandomState;
use isbot::Bots;
use parking_lot::Mutex;

/// Maximum number of cached results. A full cache is cleared. This is simpler than an order of
/// eviction, and the common user agents are in the cache again after a batch or two.
const REMEMBERED_MAX: usize = 8192;
/// The longest part of a user agent that is matched, in bytes. Browsers send shorter user agents.
const USER_AGENT_BYTES_MAX: usize = 512;

static BOTS: LazyLock<Bots> = LazyLock::new(Bots::default);
// The cache is searched for each event, and the standard library's hasher would be most of the
// cost. This hasher has a random seed, too. It is easier to attack, but the cache is small and is
// cleared when it is full.
type Verdicts = HashMap<Box<[u8]>, bool, RandomState>;
static REMEMBERED: LazyLock<Mutex<Verdicts>> = LazyLock::new(Mutex::default);

/// Whether a user agent is that of a known bot: `context.bot` in the wire form (SPEC 7). `false` if
/// it is absent. Looks at its first 512 bytes.
///
/// ```
/// use pixelgate::Batch;
/// use pixelgate::custom::is_bot;
///
/// /// The number of events in a batch that no known bot has sent.
/// fn of_people(batch: &Batch) -> usize {
///     let events = batch.events().filter_map(Result::ok);
///     events.filter(|event| !is_bot(event.context.user_agent.as_deref())).count()
/// }
/// # assert_eq!(of_people(&Batch::new(Vec::new())), 0);
/// ```
pub fn is_bot(user_agent: Option<&str>) -> bool {
    is_bot_bytes(user_agent.map(str::as_bytes))
}

/// Does what [`is_bot`] does, for the bytes of a stored user agent.
pub(super) fn is_bot_bytes(user_agent: Option<&[u8]>) -> bool {
    let Some(agent) = user_agent else { return false };
    let agent = agent.get(..USER_AGENT_BYTES_MAX).unwrap_or(agent);
    if let Some(&known) = REMEMBERED.lock().get(agent) {
        return known;
    }
    let bot = BOTS.is_bot(text(agent));
    let mut remembered = REMEMBERED.lock();
    if remembered.len() >= REMEMBERED_MAX {
        remembered.clear();
    }
    remembered.insert(agent.into(), bot);
    bot
}

/// The valid UTF-8 at the start of `agent`: all of it, unless it was cut within a character.
fn text(agent: &[u8]) -> &str {
    agent.utf8_chunks().next().map_or("", |chunk| chunk.valid())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHROME: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 \
                          (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36";
    const GOOGLEBOT: &str =
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";

    #[test]
    fn bots_are_told_from_browsers_and_stay_told() {
        for _ in 0..2 {
            assert!(is_bot(Some(GOOGLEBOT)));
            assert!(!is_bot(Some(CHROME)));
            assert!(!is_bot(None));
        }
    }

    #[test]
    fn the_memory_is_bounded() {
        for n in 0..REMEMBERED_MAX + 10 {
            is_bot(Some(&format!("agent {n}")));
        }
        let len = REMEMBERED.lock().len();
        assert!(len <= REMEMBERED_MAX);
        assert!(is_bot(Some(GOOGLEBOT)));
    }

    #[test]
    fn a_long_agent_is_cut_between_characters() {
        for lead in ["", "x"] {
            let long = lead.to_owned() + &"é".repeat(USER_AGENT_BYTES_MAX);
            assert!(!is_bot(Some(&long)));
            assert!(!is_bot(Some(&(long + GOOGLEBOT))));
        }
    }
}
