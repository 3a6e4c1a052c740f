//! Writes the log lines of librdkafka to pixelgate's log, throttled, shortened and without secrets.
//!
//! The lines are about brokers, connections and topics, and never hold the key or the value of an
//! event. librdkafka logs a broken connection repeatedly, so each facility (its word for a kind of
//! line) gets one line per [`REPEAT_SECONDS_MIN`]; the others are counted. Debug lines are not
//! throttled, because an operator has to enable them twice (`properties.debug` and `RUST_LOG`).

use std::collections::HashMap;
use std::time::Duration;

use crate::telemetry::log_throttle::LogThrottle;
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use tokio::time::Instant;

/// The shortest time between two logged lines of a facility, in seconds.
pub const REPEAT_SECONDS_MIN: u64 = 60;
/// Maximum number of facilities; librdkafka has fewer. Lines of further facilities are dropped.
const FACILITIES_MAX: usize = 128;
/// The longest line that is logged, in characters. The rest is cut off.
const LINE_CHARS_MAX: usize = 400;
/// The shortest value that is masked, in characters. Shorter values are words like `true` and
/// `plain`.
const SECRET_CHARS_MIN: usize = 6;

/// Writes the log lines of one producer.
pub struct LogLines {
    secrets: Vec<String>,
    throttles: Mutex<HashMap<String, LogThrottle>>,
}

impl LogLines {
    /// Masks `secrets` in every line.
    pub fn new(secrets: &[String]) -> LogLines {
        LogLines { secrets: secrets.to_vec(), throttles: Mutex::default() }
    }

    /// Logs a line, or counts it as left out.
    pub fn pass_on(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let level = match level {
            // At most a warning, because the state of the upstream in `/status` shows the severity.
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => log::Level::Warn,
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => log::Level::Info,
            RDKafkaLogLevel::Debug => log::Level::Debug,
        };
        let left_out = match level {
            log::Level::Debug => Some(0),
            _ => self.may_log(facility),
        };
        let Some(left_out) = left_out else { return };
        let line = without(&self.secrets, line);
        match left_out {
            0 => log::log!(level, "librdkafka: {facility}: {line}"),
            n => {
                log::log!(level, "librdkafka: {facility}: {line} (further lines left out: {n})");
            }
        }
    }

    /// `Some` if a line of this facility may be logged, with the number of lines that were left out
    /// since the last one.
    fn may_log(&self, facility: &str) -> Option<u64> {
        let now = Instant::now().into_std();
        let mut throttles = self.throttles.lock();
        if let Some(throttle) = throttles.get_mut(facility) {
            return throttle.admit(now);
        }
        if throttles.len() >= FACILITIES_MAX {
            return None;
        }
        let mut throttle = LogThrottle::new(1, Duration::from_secs(REPEAT_SECONDS_MIN));
        let admitted = throttle.admit(now);
        throttles.insert(facility.to_owned(), throttle);
        admitted
    }
}

/// A text of librdkafka as one line of at most [`LINE_CHARS_MAX`] characters, with `***` in place
/// of each secret.
pub fn without(secrets: &[String], text: &str) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|s| s.chars().count() >= SECRET_CHARS_MIN) {
        text = text.replace(secret.as_str(), "***");
    }
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(LINE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_of_one_sort_passes_once_a_while_and_the_others_are_counted() {
        let lines = LogLines::new(&[]);
        assert_eq!(lines.may_log("FAIL"), Some(0));
        assert_eq!(lines.may_log("FAIL"), None);
        assert_eq!(lines.may_log("FAIL"), None);
        assert_eq!(lines.may_log("ERROR"), Some(0));
        tokio::time::advance(Duration::from_secs(REPEAT_SECONDS_MIN)).await;
        assert_eq!(lines.may_log("FAIL"), Some(2));
        assert_eq!(lines.may_log("FAIL"), None);
    }

    #[test]
    fn the_sorts_are_bounded() {
        let lines = LogLines::new(&[]);
        let passed = (0..1000).filter(|n| lines.may_log(&n.to_string()).is_some()).count();
        assert_eq!(passed, FACILITIES_MAX);
    }

    #[test]
    fn a_line_is_short_and_shows_no_secret() {
        let secrets = ["hunter22".to_owned(), "plain".to_owned()];
        let line = without(&secrets, "plain: password hunter22\nis wrong");
        assert_eq!(line, "plain: password *** is wrong");
        assert_eq!(without(&secrets, &"é".repeat(1000)).chars().count(), LINE_CHARS_MAX);
    }
}
