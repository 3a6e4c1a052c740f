//! The groups that wait for their answer, and the deadline for it (`spool.commit_seconds_max`).
//!
//! A frozen disk can hold the committer in a system call without an end. So the watch, a thread of
//! its own, refuses the groups when a commit takes too long. Each group is either claimed by the
//! committer or refused by the watch, never both. When the disk answers, the committer removes the
//! refused records from the segment.

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
    /// When the commit under way began.
    commit_began: Option<Duration>,
    /// When the sync under way began.
    sync_began: Option<Duration>,
    /// Whether the watch has refused groups of this commit.
    expired: bool,
}

impl Waiting {
    /// Notes that a commit begins.
    pub fn begin_commit(&self, now: Duration) {
        self.state.lock().commit_began = Some(now);
    }

    /// Notes that the commit has ended.
    pub fn end_commit(&self) {
        let mut state = self.state.lock();
        state.commit_began = None;
        state.expired = false;
    }

    /// Notes that a sync begins (`Some`) or has ended.
    pub fn set_sync(&self, began: Option<Duration>) {
        self.state.lock().sync_began = began;
    }

    /// Adds a group to the commit that is under way.
    pub fn push(&self, first_at: Duration, group: Arc<Group>) {
        self.state.lock().groups.push((first_at, group));
    }

    /// Moves the groups into `claimed`, which must be empty, so that the caller answers them. Fails
    /// if the deadline has passed and they were refused.
    pub fn claim(&self, claimed: &mut Vec<(Duration, Arc<Group>)>) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.expired {
            let what = "the commit took longer than spool.commit_seconds_max";
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
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

    /// When the commit or sync under way began, whichever is earlier.
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
