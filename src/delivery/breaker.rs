//! The circuit breaker of one upstream.
//!
//! Closed: every attempt is admitted. Open, after the first failures of [`FAILURES_MAX`] batches in
//! a row: no attempt is admitted until the wait is over. Half-open: one attempt is admitted as a
//! probe, and its result closes the breaker or opens it for longer. A backend that recovers thus
//! receives one request first, and not all the batches that have piled up.
//!
//! A batch that is the probe at its first attempt may fail because of its own events and not
//! because of the upstream. Such a failure doubles the next pause only once in [`FIRST_PROBES`]
//! times. So a probe soon finds that an upstream works, and an upstream that does not work still
//! gets fewer and fewer probes. If 64 batches that the upstream never takes are at the front of the
//! spool when a process starts, it reaches the others after 2 minutes on average; with 192 such
//! batches, after 15 minutes. A batch that fails as the probe is halved, so that probes become
//! small: see `conclude.rs`.
//!
//! A batch that fails again and again says nothing about the upstream: it has a wait of its own,
//! and only its first failure counts here. A pause that the upstream asks for ends only with its
//! time: the success of an attempt that began before the pause does not end it.
//!
//! An upstream that has another destination or other credentials has asked for nothing yet: what
//! was known is forgotten, and where the breaker was open, the next attempt is the probe.

use std::time::Duration;

use tokio::time::Instant;

use super::retries::Backoff;

/// The breaker opens after so many batches in a row whose first attempt failed.
pub const FAILURES_MAX: u32 = 5;
/// After this many probes that failed at their first attempt, the pause doubles.
const FIRST_PROBES: u32 = 64;

/// The circuit breaker of one upstream. The module describes its three states.
#[derive(Debug, Default)]
pub struct Breaker {
    state: State,
    failures: u32,
    /// Failed attempts in a row that asked for no pause.
    attempts_failed: u32,
    /// Probes in a row that failed at their first attempt.
    first_probes: u32,
    /// The end of the longest pause that the upstream asked for.
    paused_until: Option<Instant>,
    /// The settings that all this is about: see `Upstream::settings_version`.
    settings: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen,
}

/// When an attempt may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Now.
    Now,
    /// Now, as the probe: its result shows whether the upstream works again.
    Probe,
    /// Not before this moment.
    At(Instant),
    /// After the probe under way has ended.
    AfterProbe,
}

/// How often the events of an attempt were tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// For the first time.
    First,
    /// For the first time as this batch, which is a part of a batch that failed.
    FirstAsPart,
    /// Another time, as the same batch.
    Again,
}

/// One attempt under way. The caller returns it with the result, to [`Breaker::succeed`],
/// [`Breaker::fail`] or [`Breaker::abandon`].
#[derive(Debug)]
#[must_use]
pub struct Pass {
    probe: bool,
    settings: u64,
}

impl Pass {
    /// Whether the attempt is the probe.
    pub fn is_probe(&self) -> bool {
        self.probe
    }
}

impl Breaker {
    /// When the next attempt may begin.
    pub fn admission(&self, now: Instant) -> Admission {
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            return Admission::At(until);
        }
        match self.state {
            State::Closed => Admission::Now,
            State::Open { until } if now < until => Admission::At(until),
            State::Open { .. } => Admission::Probe,
            State::HalfOpen => Admission::AfterProbe,
        }
    }

    /// Forgets what was learned with other settings. Returns whether the settings are others.
    pub fn renew(&mut self, settings: u64, now: Instant) -> bool {
        if self.settings == settings {
            return false;
        }
        let state = match self.is_open(now) {
            true => State::Open { until: now },
            false => State::Closed,
        };
        *self = Breaker { state, settings, ..Breaker::default() };
        true
    }

    /// Whether an attempt began with the settings that are in force. The result of any other says
    /// nothing about the upstream: the attempt is abandoned.
    pub fn is_current(&self, pass: &Pass) -> bool {
        pass.settings == self.settings
    }

    /// Whether the upstream counts as down, or has asked for a pause that is not over.
    pub fn is_open(&self, now: Instant) -> bool {
        self.state != State::Closed || self.paused_until.is_some_and(|until| now < until)
    }

    /// Whether the last [`FAILURES_MAX`] attempts failed, the first attempts of batches and later
    /// ones alike. An attempt after which the upstream asked for a pause does not count.
    pub fn takes_nothing(&self) -> bool {
        self.attempts_failed >= FAILURES_MAX
    }

    /// Begins an attempt. [`Breaker::admission`] has just said that it may begin.
    pub fn begin(&mut self) -> Pass {
        let probe = matches!(self.state, State::Open { .. });
        if probe {
            self.state = State::HalfOpen;
        }
        Pass { probe, settings: self.settings }
    }

    /// Notes that the upstream answered and handled the batch. This closes the breaker, whether the
    /// attempt was the probe or not.
    pub fn succeed(&mut self, _: Pass) {
        self.state = State::Closed;
        (self.failures, self.attempts_failed, self.first_probes) = (0, 0, 0);
    }

    /// Notes that the attempt failed, and that the upstream may have asked for a pause of `after`.
    pub fn fail(
        &mut self,
        pass: Pass,
        tried: Tried,
        after: Option<Duration>,
        backoff: &Backoff,
        now: Instant,
    ) {
        let asked = after.filter(|after| !after.is_zero());
        if let Some(after) = asked {
            self.paused_until = self.paused_until.max(Some(now + after));
        } else {
            self.attempts_failed = self.attempts_failed.saturating_add(1);
        }
        // An attempt that began before the breaker opened counts only for the pause above.
        let counts = match self.state {
            State::Closed => tried == Tried::First || asked.is_some(),
            State::Open { .. } => false,
            State::HalfOpen => pass.probe,
        };
        if !counts {
            return;
        }
        let is_new_probe = pass.probe && tried != Tried::Again;
        if is_new_probe {
            self.first_probes = self.first_probes.wrapping_add(1);
        }
        if !is_new_probe || self.first_probes.is_multiple_of(FIRST_PROBES) {
            self.failures = self.failures.saturating_add(1);
        }
        if pass.probe || asked.is_some() || self.failures >= FAILURES_MAX {
            self.state = State::Open { until: now + backoff.wait(self.failures, after) };
        }
    }

    /// Notes that the attempt ended and says nothing about the upstream. If it was the probe, the
    /// next attempt becomes the probe.
    pub fn abandon(&mut self, pass: Pass, now: Instant) {
        if pass.probe && self.is_current(&pass) && self.state == State::HalfOpen {
            self.state = State::Open { until: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::retries;

    const SECOND: Duration = Duration::from_secs(1);

    struct Rig {
        breaker: Breaker,
        backoff: Backoff,
        now: Instant,
    }

    impl Rig {
        fn new() -> Rig {
            let backoff = Backoff::default();
            Rig { breaker: Breaker::default(), backoff, now: Instant::now() }
        }

        fn admission(&self) -> Admission {
            self.breaker.admission(self.now)
        }

        fn fail(&mut self, pass: Pass, is_first: bool, after: Option<Duration>) {
            let tried = if is_first { Tried::First } else { Tried::Again };
            self.breaker.fail(pass, tried, after, &self.backoff, self.now);
        }

        fn fail_until_open(&mut self) {
            for n in 0..FAILURES_MAX {
                assert_eq!(self.admission(), Admission::Now, "open after {n} failures");
                let pass = self.breaker.begin();
                self.fail(pass, true, None);
            }
            assert!(self.breaker.is_open(self.now));
            self.now += Duration::from_millis(retries::BACKOFF_MS_MAX);
            assert_eq!(self.admission(), Admission::Probe);
        }
    }

    #[tokio::test]
    async fn it_opens_after_failures_in_a_row_only() {
        let mut rig = Rig::new();
        for _ in 0..3 {
            for _ in 1..FAILURES_MAX {
                let pass = rig.breaker.begin();
                rig.fail(pass, true, None);
            }
            let pass = rig.breaker.begin();
            rig.breaker.succeed(pass);
        }
        rig.fail_until_open();
    }

    #[tokio::test]
    async fn a_batch_that_fails_again_and_again_opens_nothing() {
        let mut rig = Rig::new();
        for n in 0..100 {
            let pass = rig.breaker.begin();
            rig.fail(pass, n == 0, None);
            assert_eq!(rig.admission(), Admission::Now);
            assert_eq!(rig.breaker.takes_nothing(), n + 1 >= FAILURES_MAX);
        }
        let pass = rig.breaker.begin();
        rig.breaker.succeed(pass);
        assert!(!rig.breaker.takes_nothing());
    }

    #[tokio::test]
    async fn one_probe_passes_after_the_pause_and_its_success_lets_all_pass() {
        let mut rig = Rig::new();
        rig.fail_until_open();
        let probe = rig.breaker.begin();
        rig.now += 3600 * SECOND;
        assert_eq!(rig.admission(), Admission::AfterProbe);
        rig.breaker.succeed(probe);
        assert_eq!(rig.admission(), Admission::Now);
        assert!(!rig.breaker.is_open(rig.now));
    }

    #[tokio::test]
    async fn a_failed_probe_opens_again_and_pauses_are_bounded() {
        let mut rig = Rig::new();
        rig.fail_until_open();
        for _ in 0..50 {
            let probe = rig.breaker.begin();
            // Whether its batch has failed before does not matter.
            rig.fail(probe, false, None);
            let Admission::At(until) = rig.admission() else { panic!("{:?}", rig.breaker) };
            assert!(until <= rig.now + Duration::from_millis(retries::BACKOFF_MS_MAX));
            rig.now = until;
        }
    }

    #[tokio::test]
    async fn a_pause_grows_slowly_while_each_probe_is_a_first_attempt() {
        let mut rig = Rig { backoff: Backoff::new(|| 1.0), ..Rig::new() };
        rig.fail_until_open();
        let mut pauses = Vec::new();
        for _ in 0..10 * FIRST_PROBES {
            let probe = rig.breaker.begin();
            rig.fail(probe, true, None);
            let Admission::At(until) = rig.admission() else { panic!("{:?}", rig.breaker) };
            pauses.push(until - rig.now);
            rig.now = until;
        }
        let at = |n: u32| pauses[n as usize];
        assert_eq!([at(0), at(FIRST_PROBES - 2)], [4 * SECOND; 2]);
        assert_eq!([at(FIRST_PROBES - 1), at(2 * FIRST_PROBES - 1)], [8 * SECOND, 16 * SECOND]);
        assert_eq!(pauses.last(), Some(&(60 * SECOND)));
        let probe = rig.breaker.begin();
        rig.breaker.succeed(probe);
    }

    #[tokio::test]
    async fn a_pause_that_is_asked_for_outlives_the_success_of_a_straggler() {
        let mut rig = Rig::new();
        let began = rig.now;
        let (first, straggler, late) =
            (rig.breaker.begin(), rig.breaker.begin(), rig.breaker.begin());
        rig.fail(first, true, Some(30 * SECOND));
        rig.breaker.succeed(straggler);
        assert_eq!(rig.admission(), Admission::At(began + 30 * SECOND));
        rig.now += SECOND;
        rig.fail(late, true, Some(5 * SECOND));
        assert!(matches!(rig.admission(), Admission::At(at) if at >= began + 30 * SECOND));
        rig.now += 30 * SECOND;
        assert!(matches!(rig.admission(), Admission::Probe | Admission::Now));
    }

    #[tokio::test]
    async fn a_probe_that_says_nothing_passes_its_turn_on() {
        let mut rig = Rig::new();
        rig.fail_until_open();
        let probe = rig.breaker.begin();
        rig.breaker.abandon(probe, rig.now);
        assert_eq!(rig.admission(), Admission::Probe);
    }

    #[tokio::test]
    async fn other_settings_end_every_pause_and_what_began_before_them_counts_no_more() {
        let mut rig = Rig::new();
        let straggler = rig.breaker.begin();
        let pass = rig.breaker.begin();
        rig.fail(pass, true, Some(3600 * SECOND));
        assert!(matches!(rig.admission(), Admission::At(_)));
        assert!(!rig.breaker.renew(0, rig.now), "the settings are the same");
        assert!(rig.breaker.renew(1, rig.now));
        assert_eq!(rig.admission(), Admission::Probe);
        let probe = rig.breaker.begin();
        assert!(!rig.breaker.is_current(&straggler) && rig.breaker.is_current(&probe));
        rig.breaker.abandon(straggler, rig.now);
        assert_eq!(rig.admission(), Admission::AfterProbe);
        assert!(rig.breaker.renew(2, rig.now), "while the probe is under way");
        assert_eq!(rig.admission(), Admission::Probe);
        rig.breaker.abandon(probe, rig.now);
        let probe = rig.breaker.begin();
        rig.breaker.succeed(probe);
        assert!(rig.breaker.renew(3, rig.now));
        assert_eq!(rig.admission(), Admission::Now, "nothing was wrong");
    }

    #[tokio::test]
    async fn a_straggler_neither_ends_a_probe_nor_shortens_a_pause() {
        let mut rig = Rig::new();
        let straggler = rig.breaker.begin();
        rig.fail_until_open();
        let probe = rig.breaker.begin();
        rig.fail(straggler, true, None);
        assert_eq!(rig.admission(), Admission::AfterProbe);
        rig.breaker.succeed(probe);
        assert_eq!(rig.admission(), Admission::Now);
    }
}
