//! Counts by column and by the portal's number.

use super::table::GROWTH;
use super::tally::Tally;

/// Columns whose memory is kept.
const COLUMNS_KEPT: usize = 2;

/// What is counted of a portal. An upstream is named by its place in the names of `book.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Column {
    /// Accepted on this day. In the totals: on any day, and the day is 0.
    Accepted(u32),
    Rejected,
    Delivered(usize),
    Dead(usize),
    /// Accepted on this day, and counted as accepted already.
    Today(u32),
}

/// Counts by column and by the portal's number.
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

    /// Forgets the counts and keeps their memory.
    pub fn empty(&mut self) {
        // There is a column for each day.
        self.0.truncate(COLUMNS_KEPT);
        self.0.iter_mut().for_each(|(_, tally)| tally.clear());
    }

    pub fn iter(&self) -> impl Iterator<Item = &(Column, Tally)> {
        self.0.iter()
    }

    /// Each number once in each column.
    pub fn merge(&mut self) {
        self.0.iter_mut().for_each(|(_, tally)| tally.merge());
    }

    /// The sum of some columns under this number.
    pub fn of(&self, number: u32, is_wanted: impl Fn(Column) -> bool) -> u64 {
        let wanted = self.0.iter().filter(|(column, _)| is_wanted(*column));
        wanted.map(|(_, tally)| tally.of(number)).sum()
    }
}

/// The totals that are in the lanes' files.
#[derive(Default)]
pub struct Totals {
    columns: Vec<(Column, Vec<u64>)>,
    /// The newest day, and what was accepted on it.
    day: u32,
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

    /// What was accepted on this day.
    pub fn on(&self, day: u32, number: u32) -> u64 {
        let today = self.today.get(number as usize).filter(|_| day == self.day);
        today.map_or(0, |events| u64::from(*events))
    }

    /// The sum of some columns under this number.
    pub fn of(&self, number: u32, is_wanted: impl Fn(Column) -> bool) -> u64 {
        let wanted = self.columns.iter().filter(|(column, _)| is_wanted(*column));
        wanted.map(|(_, totals)| totals.get(number as usize).copied().unwrap_or(0)).sum()
    }
}

/// A number's place in a column, which grows up to it.
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
