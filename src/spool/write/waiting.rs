//! The groups that wait for their answer, and the deadline for it (`spool.commit_seconds_max`).
//!
//! A disk that is frozen keeps the committer inside a system call without an end. So the watch, a
//! thread of its own, refuses the groups when the committer has been at work for too long. Each
//! group is either claimed by the committer or refused by the watch, never both: the committer
//! takes what the watch has refused out of the segment as soon as the disk answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::group::{Group, Overloaded};

/// The groups of the commit that is under way.
#[derive(Default)]
pub struct Waiting {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the first record of each group was staged, and the group.
    groups: Vec<(Duration, Arc<Group>)>,
    /// Since when the committer has been at work.
    commit_began: Option<Duration>,
    /// Since when the syncer has been at work.
    sync_began: Option<Duration>,
    /// The watch has refused groups of this commit.
    expired: bool,
}

impl Waiting {
    /// The committer begins to write.
    pub fn begin_commit(&self, now: Duration) {
        self.state.lock().commit_began = Some(now);
    }

    /// The committer has a result.
    pub fn end_commit(&self) {
        let mut state = self.state.lock();
        state.commit_began = None;
        state.expired = false;
    }

    /// The syncer begins (`Some`) or ends a sync.
    pub fn set_sync(&self, began: Option<Duration>) {
        self.state.lock().sync_began = began;
    }

    /// A group waits for the commit that is under way.
    pub fn push(&self, first_at: Duration, group: Arc<Group>) {
        self.state.lock().groups.push((first_at, group));
    }

    /// Moves the groups into `claimed`, which is empty, to be answered. An error if the deadline
    /// has passed: then they were refused.
    pub fn claim(&self, claimed: &mut Vec<(Duration, Arc<Group>)>) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.expired {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the disk took too long"));
        }
        std::mem::swap(&mut state.groups, claimed);
        Ok(())
    }

    /// Whether the watch has refused groups of this commit.
    pub fn has_expired(&self) -> bool {
        self.state.lock().expired
    }

    /// Refuses all groups.
    pub fn refuse(&self) {
        let groups = std::mem::take(&mut self.state.lock().groups);
        groups.into_iter().for_each(|(_, group)| group.settle(Err(Overloaded)));
    }

    /// Since when the disk has been at work on one commit or one sync.
    pub fn busy_since(&self) -> Option<Duration> {
        let state = self.state.lock();
        [state.commit_began, state.sync_began].into_iter().flatten().min()
    }

    /// Refuses the groups of a commit that began at `latest` or before.
    pub fn expire(&self, latest: Duration) {
        let mut state = self.state.lock();
        if state.commit_began.is_some_and(|began| began <= latest) {
            state.expired = true;
            drop(state);
            self.refuse();
        }
    }
}
