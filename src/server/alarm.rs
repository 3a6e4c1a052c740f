//! Timers that outlive the waits that they limit.
//!
//! Registering a timer costs more than most of these waits. So a timer stays registered when its
//! wait has ended. It is moved only if it would fire too late for the next wait, or if it has fired
//! too early for it, which happens once in many waits.

use pingora::server::ShutdownWatch;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
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

/// What can end a connection's wait for its next request, other than that request: a timer and the
/// stop of the server.
pub struct WaitLimits<'c, F> {
    pub timer: Pin<&'c mut Sleep>,
    /// Resolves at the stop of the server.
    pub stopped: Pin<&'c mut F>,
    /// The waker that the timer and the stop hold since an earlier wait. `None` at first.
    pub registered: Option<Waker>,
}

/// What ended a wait.
#[derive(Debug, PartialEq, Eq)]
pub enum WaitEnd {
    Late,
    Stopped,
}

impl<F: Future> WaitLimits<'_, F> {
    /// Polls whether `until` has come or the server has stopped, which changes `shutdown`.
    ///
    /// Polling the timer and the stop registers the waker again, under a lock that connections
    /// share. So they are not polled while both hold the waker and neither is ready.
    pub fn poll(
        &mut self,
        until: Instant,
        shutdown: &ShutdownWatch,
        cx: &mut Context<'_>,
    ) -> Poll<WaitEnd> {
        let is_registered = self.registered.as_ref().is_some_and(|held| held.will_wake(cx.waker()));
        let timer_waits = self.timer.deadline() <= until && !self.timer.is_elapsed();
        if is_registered && timer_waits && matches!(shutdown.has_changed(), Ok(false)) {
            return Poll::Pending;
        }
        if poll_until(self.timer.as_mut(), until, cx).is_ready() {
            return Poll::Ready(WaitEnd::Late);
        }
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(WaitEnd::Stopped);
        }
        if !is_registered {
            self.registered = Some(cx.waker().clone());
        }
        Poll::Pending
    }
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
        // A timer panics once its runtime has ended, and a connection may be used in another
        // runtime.
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
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::Wake;

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

    /// A stop that counts how often it is polled.
    async fn stop(mut shutdown: ShutdownWatch, polls: &Cell<u32>) {
        let mut stopped = pin!(shutdown.wait_for(|stop| *stop));
        poll_fn(|cx| {
            polls.set(polls.get() + 1);
            stopped.as_mut().poll(cx).map(|_| ())
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_late_or_by_the_stop_however_rarely_both_are_polled() {
        let (stops, shutdown) = tokio::sync::watch::channel(false);
        let polls = Cell::new(0);
        let stopped = pin!(stop(shutdown.clone(), &polls));
        let timer = pin!(tokio::time::sleep(LIMIT));
        let mut limits = WaitLimits { timer, stopped, registered: None };
        let began = Instant::now();
        for _ in 0..5 {
            // Each wait ends early, by a request.
            let until = Instant::now() + LIMIT;
            let polled = poll_fn(|cx| Poll::Ready(limits.poll(until, &shutdown, cx))).await;
            assert_eq!(polled, Poll::Pending);
        }
        assert_eq!(polls.get(), 1);
        let late = poll_fn(|cx| limits.poll(began + LIMIT, &shutdown, cx)).await;
        assert_eq!((late, began.elapsed().as_secs()), (WaitEnd::Late, LIMIT.as_secs()));
        // A wait that is shorter than the one before moves the timer.
        let until = Instant::now() + LIMIT / 2;
        let late = poll_fn(|cx| limits.poll(until, &shutdown, cx)).await;
        assert_eq!((late, Instant::now() >= until), (WaitEnd::Late, true));
        // The next waker is another one, so both must get it.
        let waker = Waker::from(Arc::new(Woken));
        let until = Instant::now() + LIMIT;
        for _ in 0..2 {
            let cx = &mut Context::from_waker(&waker);
            assert_eq!(limits.poll(until, &shutdown, cx), Poll::Pending);
        }
        let before = polls.get();
        let stopping = poll_fn(|cx| limits.poll(until, &shutdown, cx));
        let stops = async {
            tokio::task::yield_now().await;
            stops.send(true).unwrap();
        };
        let (end, ()) = tokio::join!(stopping, stops);
        assert_eq!((end, polls.get()), (WaitEnd::Stopped, before + 2));
    }

    struct Woken;

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {}
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
