//! Counts of events by column and by portal. A portal is named by its number in `table.rs`, so that
//! the counts of a column are one dense list.

use super::table::GROWTH;
use super::tally::Tally;

/// The number of columns whose memory [`Tallies::empty`] keeps.
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

impl Column {
    /// The place of the column's sum among those of [`Tallies::sums`], if it is a part of one.
    pub fn sum(self) -> Option<usize> {
        match self {
            Column::Accepted(_) => Some(0),
            Column::Rejected => Some(1),
            Column::Delivered(_) => Some(2),
            Column::Dead(_) | Column::Today(_) => None,
        }
    }
}

/// Counts of events by column and by the number of the portal.
#[derive(Debug, Default)]
pub struct Tallies(Vec<(Column, Tally)>);

impl Tallies {
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

    pub fn append(&mut self, other: Tallies) {
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

    /// Returns the sums over all portals: accepted, rejected, delivered.
    pub fn sums(&self) -> [u64; 3] {
        let mut sums = [0; 3];
        for (column, tally) in self.iter() {
            if let Some(sum) = column.sum() {
                sums[sum] += tally.iter().map(|(_, events)| events).sum::<u64>();
            }
        }
        sums
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
    /// The newest day that has come.
    today: Day,
    /// Another day: one that has not come, because the clock was ahead then or is behind now.
    other: Day,
}

/// The events that were accepted on a day.
#[derive(Default)]
struct Day {
    /// Days since 1970-01-01; 0 if there is none.
    number: u32,
    /// The events of each portal, by its number.
    events: Vec<u32>,
}

impl Totals {
    /// Adds counts of one column on the day `now`.
    pub fn add(
        &mut self,
        column: Column,
        tally: impl Iterator<Item = (u32, u64)> + Clone,
        now: u32,
    ) {
        if let Column::Accepted(day) | Column::Today(day) = column {
            self.follow_clock(now);
            let counted = if day <= now { &mut self.today } else { &mut self.other };
            counted.add(day, tally.clone());
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

    /// Swaps the two days when the other day has come, or when the clock was set back.
    fn follow_clock(&mut self, now: u32) {
        let has_come = self.other.number > self.today.number && self.other.number <= now;
        if has_come || self.today.number > now {
            std::mem::swap(&mut self.today, &mut self.other);
        }
        if self.today.number > now {
            self.today.begin(0);
        }
    }

    /// Returns the number of events accepted on a day: 0 unless it is one of the two that are
    /// counted.
    pub fn on(&self, day: u32, number: u32) -> u64 {
        let known = [&self.today, &self.other].into_iter().find(|known| known.number == day);
        let events = known.and_then(|known| known.events.get(number as usize));
        events.map_or(0, |events| u64::from(*events))
    }

    /// Returns the sum of the wanted columns for a number.
    pub fn of(&self, number: u32, is_wanted: impl Fn(Column) -> bool) -> u64 {
        let wanted = self.columns.iter().filter(|(column, _)| is_wanted(*column));
        wanted.map(|(_, totals)| totals.get(number as usize).copied().unwrap_or(0)).sum()
    }
}

impl Day {
    fn begin(&mut self, day: u32) {
        self.number = day;
        self.events.fill(0);
    }

    fn add(&mut self, day: u32, tally: impl Iterator<Item = (u32, u64)>) {
        if day > self.number {
            self.begin(day);
        }
        if day == self.number && day > 0 {
            for (number, events) in tally {
                let total = place(&mut self.events, number);
                *total = total.saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
            }
        }
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
        columns.into_iter().for_each(|column| totals.add(column, each(), 7));
        let columns = totals.columns.iter().map(|(_, column)| column.capacity() * 8);
        let bytes = columns.sum::<usize>() + totals.today.events.capacity() * 4;
        // `table.rs` takes 17 MiB at most, and what is open until the next write the rest.
        assert!(bytes <= 38 << 20, "{bytes} bytes");
        assert_eq!((totals.on(7, 5), totals.on(8, 5), totals.of(5, |_| true)), (1, 0, 4));
        totals.add(Column::Today(8), [(5, 9)].into_iter(), 8);
        assert_eq!((totals.on(7, 5), totals.on(8, 5)), (0, 9));
        assert_eq!(totals.of(5, |column| column == Column::Accepted(0)), 1);
    }

    #[test]
    fn a_clock_that_is_wrong_for_a_while_costs_no_day_its_counts() {
        let mut totals = Totals::default();
        let add = |totals: &mut Totals, day, events, now| {
            totals.add(Column::Accepted(day), [(1, events)].into_iter(), now);
        };
        // Read by a clock that is behind.
        add(&mut totals, 20, 3, 0);
        assert_eq!(totals.on(20, 1), 3);
        add(&mut totals, 20, 1, 20);
        assert_eq!(totals.on(20, 1), 4);
        // Read with counts of a day that has not come.
        add(&mut totals, 22, 5, 20);
        add(&mut totals, 20, 1, 20);
        assert_eq!((totals.on(20, 1), totals.on(22, 1)), (5, 5));
        add(&mut totals, 21, 1, 21);
        assert_eq!((totals.on(20, 1), totals.on(21, 1)), (0, 1));
        add(&mut totals, 22, 1, 22);
        assert_eq!((totals.on(21, 1), totals.on(22, 1)), (1, 6));
        // Set back while it runs.
        add(&mut totals, 21, 2, 21);
        assert_eq!((totals.on(21, 1), totals.on(22, 1)), (3, 6));
    }
}
