//! Writes numbers of things in messages.

/// A number with its noun in the right form: `1 event`, `2 events`. `noun` is the singular, whose
/// plural ends in `s`.
pub fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}
