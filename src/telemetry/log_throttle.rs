//! Limits how often one kind of log line is written.
//!
//! A remote client or a failing upstream can cause the same line thousands of times a second. A
//! [`LogThrottle`] lets at most N lines pass in a period, counts the others, and returns that
//! count, which the caller writes into the next line. It does not format or write lines and has no
//! lock: the caller has one throttle for each kind of line.

use std::time::{Duration, Instant};

/// At most `lines_max` lines in each period; the others are counted.
///
/// A period begins with the first line after the previous one is over, so a line that follows a
/// quiet time is always written.
///
/// ```
/// use pixelgate::tools::LogThrottle;
/// use std::time::{Duration, Instant};
///
/// let mut throttle = LogThrottle::new(1, Duration::from_secs(10));
/// let now = Instant::now();
/// assert_eq!(throttle.admit(now), Some(0)); // write the line
/// assert_eq!(throttle.admit(now), None); // leave it out
/// assert_eq!(throttle.admit(now + Duration::from_secs(10)), Some(1)); // and say: 1 was left out
/// ```
#[derive(Debug, Clone)]
pub struct LogThrottle {
    lines_max: u64,
    period: Duration,
    /// When the current period began. `None`: there was no line yet.
    since: Option<Instant>,
    /// Lines that passed in the current period.
    lines: u64,
    /// Lines left out since the count was last reported.
    left_out: u64,
}

impl LogThrottle {
    /// A throttle that has seen no line yet and lets `lines_max` lines pass in each `period`.
    pub const fn new(lines_max: u64, period: Duration) -> Self {
        Self { lines_max, period, since: None, lines: 0, left_out: 0 }
    }

    /// Whether a line may be written at `now`.
    ///
    /// `Some(n)`: write the line, and report in it that `n` lines were left out since the last
    /// report. `None`: leave the line out; it is counted.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.is_period_over(now) {
            self.since = Some(now);
            self.lines = 0;
        }
        if self.lines >= self.lines_max {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// The number of lines that were left out, once their period is over. `None` if the period is
    /// not over, or if no line was left out. This is for a caller that reports the number without
    /// waiting for the next line.
    ///
    /// The report begins a new period in which no line passes, so that lines that keep coming cost
    /// one report in each period.
    pub fn report(&mut self, now: Instant) -> Option<u64> {
        if self.left_out == 0 || !self.is_period_over(now) {
            return None;
        }
        self.since = Some(now);
        self.lines = self.lines_max;
        Some(std::mem::take(&mut self.left_out))
    }

    /// Whether the throttle can be dropped at `now` without a loss: its period is over and no count
    /// waits to be reported.
    pub fn is_idle(&self, now: Instant) -> bool {
        self.left_out == 0 && self.is_period_over(now)
    }

    fn is_period_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: Duration = Duration::from_secs(60);

    #[test]
    fn lines_over_the_limit_are_counted_and_reported_with_the_next_line() {
        let mut throttle = LogThrottle::new(2, PERIOD);
        let start = Instant::now();
        let last = start + PERIOD - Duration::from_millis(1);
        let admitted = [start, start, start, last, start + PERIOD, start + PERIOD]
            .map(|now| throttle.admit(now));
        assert_eq!(admitted, [Some(0), Some(0), None, None, Some(2), Some(0)]);
    }

    #[test]
    fn a_report_stands_for_the_lines_of_its_period() {
        let mut throttle = LogThrottle::new(1, PERIOD);
        let start = Instant::now();
        assert_eq!(throttle.admit(start), Some(0));
        assert_eq!(throttle.admit(start), None);
        assert_eq!(throttle.report(start), None, "the period is not over");
        assert_eq!(throttle.report(start + PERIOD), Some(1));
        assert_eq!(throttle.admit(start + PERIOD), None);
        assert_eq!(throttle.report(start + 2 * PERIOD), Some(1));
        assert!(!throttle.is_idle(start + 2 * PERIOD));
        assert_eq!(throttle.report(start + 3 * PERIOD), None);
        assert!(throttle.is_idle(start + 3 * PERIOD));
        assert_eq!(throttle.admit(start + 3 * PERIOD), Some(0), "news again after a quiet period");
    }
}
