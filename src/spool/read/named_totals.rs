//! Totals of upstreams, by their names.
//!
//! A lane keeps those of upstreams that are not configured, for when they are configured again:
//! `/status` shows totals over the spool's life (SPEC 8).

use super::counts::Counts;

/// The totals of each upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamedTotals(pub Vec<(String, Counts)>);

impl NamedTotals {
    /// Adds the totals of another lane. Drops those of a further upstream if `names_max` upstreams
    /// have totals here.
    pub fn add(&mut self, name: &str, totals: Counts, names_max: usize) {
        if let Some((_, known)) = self.0.iter_mut().find(|(known, _)| known == name) {
            known.add(totals);
        } else if self.0.len() < names_max {
            self.0.push((name.to_owned(), totals));
        }
    }

    /// Takes out the totals of an upstream. `None` if there are none.
    pub fn take(&mut self, name: &str) -> Option<Counts> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }
}
