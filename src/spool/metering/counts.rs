//! Counts of events by column and by portal. A portal is named by its number in `table.rs`, so that
//! the counts of a column are one dense list.

use super::table::GROWTH;
use super::tally::Tally;

/// The number of columns whose memory [`Counts::empty`] keeps.
const COLUMNS_KEPT: usize = 2;

/// What is counted of a portal. An upstream is named by its place in the list of names of
/// `book.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// Accepted on this day. In the totals the day is 0 and means any day.
    Accepted(u32),
    /// Rejected.
    Rejected,
    /// Delivered to this upstream.
    Delivered(usize),
    /// Became a dead letter of this upstream.
    Dead(usize),
    /// Accepted on this day, and also counted in [`Column::Accepted`] without a day.
    Today(u32),
}

/// Counts of events by column and by the number of the portal.
#[derive(Debug, Default)]
pub struct Counts(Vec<(Column, Tally)>);

impl Counts {
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|(_, tally)| tally.is_empty())
    }

    pub fn tally(&mut self, column: Column) -> &mut Tally {
        let at = self.0.iter().position(|(known, _)| *known == column).unwrap_or_else(|| {
            self.0.push((column, Tally::default()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    pub fn append(&mut self, other: Counts) {
        for (column, tally) in other.0 {
            self.tally(column).append(tally);
        }
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Removes the counts and keeps the memory of some columns.
    pub fn empty(&mut self) {
        // Each day adds a column, so the number is limited.
        self.0.truncate(COLUMNS_KEPT);
        self.0.iter_mut().for_each(|(_, tally)| tally.clear());
    }

    pub fn iter(&self) -> impl Iterator<Item = &(Column, Tally)> {
        self.0.iter()
    }

    /// Adds up the counts of the same number, so that each is in a column once.
    pub fn merge(&mut self) {
        self.0.iter_mut().for_each(|(_, tally)| tally.merge());
    }

    /// Returns the sum of the wanted columns for a number.
    pub fn of(&self, number: u32, is_wanted: impl Fn(Column) -> bool) -> u64 {
        let wanted = self.0.iter().filter(|(column, _)| is_wanted(*column));
        wanted.map(|(_, tally)| tally.of(number)).sum()
    }
}

/// The totals that are written in the files of the lanes.
#[derive(Default)]
pub struct Totals {
    /// Each column with its counts, by number.
    columns: Vec<(Column, Vec<u64>)>,
    /// The newest day.
    day: u32,
    /// The events accepted on that day, by number.
    today: Vec<u32>,
}

impl Totals {
    /// Adds counts of one column.
    pub fn add(&mut self, column: Column, tally: impl Iterator<Item = (u32, u64)> + Clone) {
        if let Column::Accepted(day) | Column::Today(day) = column {
            self.add_today(day, tally.clone());
        }
        let column = match column {
            Column::Accepted(_) => Column::Accepted(0),
            Column::Today(_) => return,
            other => other,
        };
        let at = self.columns.iter().position(|(known, _)| *known == column);
        let at = at.unwrap_or_else(|| {
            self.columns.push((column, Vec::new()));
            self.columns.len() - 1
        });
        for (number, events) in tally {
            let total = place(&mut self.columns[at].1, number);
            *total = total.saturating_add(events);
        }
    }

    fn add_today(&mut self, day: u32, tally: impl Iterator<Item = (u32, u64)>) {
        if day > self.day {
            self.day = day;
            self.today.fill(0);
        }
        if day == self.day && day > 0 {
            for (number, events) in tally {
                let total = place(&mut self.today, number);
                *total = total.saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
            }
        }
    }

    /// Returns the number of events accepted on a day: 0 unless it is the newest one.
    pub fn on(&self, day: u32, number: u32) -> u64 {
        let today = self.today.get(number as usize).filter(|_| day == self.day);
        today.map_or(0, |events| u64::from(*events))
    }

    /// Returns the sum of the wanted columns for a number.
    pub fn of(&self, number: u32, is_wanted: impl Fn(Column) -> bool) -> u64 {
        let wanted = self.columns.iter().filter(|(column, _)| is_wanted(*column));
        wanted.map(|(_, totals)| totals.get(number as usize).copied().unwrap_or(0)).sum()
    }
}

/// Returns the place of a number in a column, which grows up to that place.
fn place<T: Default + Clone>(column: &mut Vec<T>, number: u32) -> &mut T {
    let number = number as usize;
    if number >= column.len() {
        if number >= column.capacity() {
            column.reserve_exact((number + 1).next_multiple_of(GROWTH) - column.len());
        }
        column.resize(number + 1, T::default());
    }
    &mut column[number]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::metering::table::PORTALS_MAX;

    #[test]
    fn a_million_portals_fit_into_64_mib_with_one_upstream() {
        let mut totals = Totals::default();
        let each = || (0..=PORTALS_MAX as u32).map(|number| (number, 1));
        let columns =
            [Column::Accepted(7), Column::Rejected, Column::Delivered(0), Column::Dead(0)];
        columns.into_iter().for_each(|column| totals.add(column, each()));
        let columns = totals.columns.iter().map(|(_, column)| column.capacity() * 8);
        let bytes = columns.sum::<usize>() + totals.today.capacity() * 4;
        // `table.rs` takes 17 MiB at most, and what is open until the next write the rest.
        assert!(bytes <= 38 << 20, "{bytes} bytes");
        assert_eq!((totals.on(7, 5), totals.on(8, 5), totals.of(5, |_| true)), (1, 0, 4));
        totals.add(Column::Today(8), [(5, 9)].into_iter());
        assert_eq!((totals.on(7, 5), totals.on(8, 5)), (0, 9));
        assert_eq!(totals.of(5, |column| column == Column::Accepted(0)), 1);
    }
}
