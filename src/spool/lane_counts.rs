//! The part of [`Lane`] that counts records by portal, see `metering/`.

use std::io;

use parking_lot::MutexGuard;

use super::lane::{Lane, LaneState};
use super::metering::book::Book;
use super::metering::counts::Column;
use super::metering::format::Marks;
use super::metering::journal::Journal;
use super::read::counts::Ack;
use super::read::cursor::LaneKey;
use super::record_id::RecordId;

/// The state of a lane after acknowledgements, and what they have changed.
pub struct Settled<'a> {
    /// The state of the lane, which is still locked.
    pub state: MutexGuard<'a, LaneState>,
    /// Whether reading had to wait and can now go on.
    pub is_readable: bool,
    /// Whether the watermark has moved.
    pub has_moved: bool,
}

impl Lane {
    /// Writes the counts by portal since the last call, and makes them durable. Without new counts,
    /// the file is written only if a following process would not find it.
    pub fn save_counts(&self, book: &Book) -> io::Result<()> {
        let mut journal = self.journal.lock();
        // Asked before the state is locked, because requests wait for the state.
        let is_lost = !journal.is_at_its_path(&**self.fs())? && self.check_place().is_ok();
        let state = self.state();
        if !is_lost && !book.has_open(self.id) && journal.is_at(state.end(), &state.positions) {
            return Ok(());
        }
        let (marks, absorbed) = self.take_out(state, &mut journal, book);
        self.check_place()?;
        journal.save(&**self.fs(), book, &marks, &absorbed)?;
        self.state().counted = marks.low();
        Ok(())
    }

    /// Adds the counts of a delivered lane to this lane's file, durably. They count here only when
    /// the cursor names the delivered lane: see [`Lane::confirm_fold`].
    pub fn fold_counts(&self, folded: &Lane, book: &Book) -> io::Result<()> {
        folded.save_counts(book)?;
        let folded = folded.journal.lock();
        let mut journal = self.journal.lock();
        let (marks, absorbed) = self.take_out(self.state(), &mut journal, book);
        journal.fold(&**self.fs(), book, &folded, &marks, &absorbed)?;
        self.state().counted = marks.low();
        Ok(())
    }

    /// Confirms a fold, when the state names the folded lane as absorbed.
    pub fn confirm_fold(&self, folded: LaneKey) {
        self.journal.lock().confirm_fold(folded);
    }

    /// Whether the file holds counts of another lane that must first be removed from it.
    pub fn has_stale_fold(&self) -> bool {
        self.journal.lock().has_stale_fold()
    }

    /// Adds the counts of the lane to the totals.
    pub fn take_in(&self, book: &Book) {
        self.journal.lock().take_in(book);
    }

    /// Moves the counts from `book` into the journal, and returns the marks up to which they count.
    fn take_out(
        &self,
        state: MutexGuard<'_, LaneState>,
        journal: &mut Journal,
        book: &Book,
    ) -> (Marks, Vec<LaneKey>) {
        journal.add(book.take_out(self.id));
        let marks = Marks { counted_to: state.end(), positions: state.positions.clone() };
        (marks, state.absorbed.clone())
    }

    /// Records the acknowledgement `ack` of these records, and counts them by portal.
    pub fn settle(&self, upstream: usize, ids: &[RecordId], ack: Ack, book: &Book) -> Settled<'_> {
        let runs = || ids.chunk_by(|id, next| id.seq + 1 == next.seq);
        let seqs = |run: &[RecordId]| run[0].seq..run[run.len() - 1].seq + 1;
        let dead = (ack == Ack::Dead).then(|| {
            let ranges: Vec<_> = runs().map(seqs).collect();
            let mut journal = self.journal.lock();
            let name = self.state().positions[upstream].name.clone();
            // The journal stays locked until the records have ended: a summary that is written
            // before would not name them.
            (journal.save_dead(&name, &ranges), journal)
        });
        if let Some((Err(error), _)) = &dead {
            ::log::warn!(
                "spool: a kill within the next second would count dead letters of lane {} as \
                 delivered: {error}",
                self.id
            );
        }
        let column = match ack {
            Ack::Delivered => Column::Delivered(upstream),
            Ack::Dead => Column::Dead(upstream),
        };
        let mut state = self.state();
        let position = &mut state.positions[upstream];
        let was_full = !position.has_room();
        for run in runs() {
            let all = position.are_out(&seqs(run));
            let settled = run.iter().filter(|id| all || position.is_out(id.seq));
            book.add_each(self.id, column, settled.map(|id| id.portal));
            position.settle(seqs(run), ack);
        }
        let is_readable = was_full && position.has_room();
        let has_moved = position.advance();
        state.dirty = true;
        Settled { state, is_readable, has_moved }
    }
}
