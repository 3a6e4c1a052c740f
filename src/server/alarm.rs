//! Timers that outlive the waits that they limit.
//!
//! Registering a timer costs more than most of these waits. So a timer stays registered when its
//! wait has ended. It is moved only if it would fire too late for the next wait, or if it has fired
//! too early for it, which happens once in many waits.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, Sleep, sleep_until};

/// Polls whether `until` has come.
pub fn poll_until(mut timer: Pin<&mut Sleep>, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
    if until < timer.deadline() {
        timer.as_mut().reset(until);
    }
    while timer.as_mut().poll(cx).is_ready() {
        if timer.deadline() >= until {
            return Poll::Ready(());
        }
        timer.as_mut().reset(until);
    }
    Poll::Pending
}

/// Limits the length of waits that follow each other, with one timer.
#[derive(Debug, Default)]
pub struct Alarm {
    /// The timer, and the runtime that it belongs to. `None` before the first wait.
    timer: Option<(Id, Pin<Box<Sleep>>)>,
    /// The moment at which the current wait has lasted too long. `None`: there is no wait.
    until: Option<Instant>,
}

impl Alarm {
    /// Polls whether a wait has lasted for `limit`. It begins with the first call after
    /// [`Alarm::end_wait`].
    pub fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit);
        // A timer panics once its runtime has ended, and a connection may be used in another one.
        let runtime = Handle::current().id();
        let timer = self.timer.take().filter(|(id, _)| *id == runtime);
        let timer = timer.unwrap_or_else(|| (runtime, Box::pin(sleep_until(until))));
        poll_until(self.timer.insert(timer).1.as_mut(), until, cx)
    }

    /// Ends the current wait, if there is one.
    pub fn end_wait(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    const LIMIT: Duration = Duration::from_secs(10);

    async fn wait(alarm: &mut Alarm, limit: Duration) -> Duration {
        let began = Instant::now();
        poll_fn(|cx| alarm.poll(limit, cx)).await;
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_limit() {
        let mut alarm = Alarm::default();
        let tick = Duration::from_millis(2);
        for limit in [LIMIT, LIMIT / 10, LIMIT * 10, LIMIT] {
            assert!(wait(&mut alarm, limit).await.abs_diff(limit) < tick, "{limit:?}");
            alarm.end_wait();
            // A wait that ends early leaves the timer as it is.
            let polled = poll_fn(|cx| Poll::Ready(alarm.poll(LIMIT, cx))).await;
            assert!(polled.is_pending());
            tokio::time::sleep(LIMIT / 3).await;
            alarm.end_wait();
        }
    }

    #[test]
    fn a_wait_in_another_runtime_does_not_need_the_first_one() {
        let runtime = || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_time().start_paused(true).build().unwrap()
        };
        let mut alarm = Alarm::default();
        for _ in 0..2 {
            runtime().block_on(wait(&mut alarm, LIMIT));
            alarm.end_wait();
        }
    }
}
