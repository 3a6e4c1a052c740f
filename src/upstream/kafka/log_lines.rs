//! Forwards librdkafka's log lines to our log, throttled, shortened and without secrets.
//!
//! The lines are about brokers, connections and topics and never hold an event's key or value. A
//! broken connection is logged repeatedly, so of each facility (librdkafka's word for a sort of
//! line) one line passes per [`REPEAT_SECONDS_MIN`]; the others are counted. Debug lines are not
//! throttled: an operator has to enable them twice (`properties.debug` and `RUST_LOG`).

use std::collections::HashMap;
use std::time::Duration;

use crate::telemetry::log_throttle::LogThrottle;
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use tokio::time::Instant;

/// Minimum time between two logged lines of a facility, in seconds.
pub const REPEAT_SECONDS_MIN: u64 = 60;
/// Maximum number of facilities; librdkafka has fewer. Lines of further facilities are dropped.
const FACILITIES_MAX: usize = 128;
/// Longest line, in characters.
const LINE_CHARS_MAX: usize = 400;
/// Shorter values, in characters, are not masked: they are words like `true` and `plain`.
const SECRET_CHARS_MIN: usize = 6;

/// Forwards librdkafka's log lines: see the module.
pub struct LogLines {
    secrets: Vec<String>,
    throttles: Mutex<HashMap<String, LogThrottle>>,
}

impl LogLines {
    /// `secrets` are masked in every line.
    pub fn new(secrets: &[String]) -> LogLines {
        LogLines { secrets: secrets.to_vec(), throttles: Mutex::default() }
    }

    /// Logs a line, or counts it as held back.
    pub fn pass_on(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let level = match level {
            // At most a warning: the upstream's state in `/status` shows the severity.
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => log::Level::Warn,
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => log::Level::Info,
            RDKafkaLogLevel::Debug => log::Level::Debug,
        };
        let held_back = match level {
            log::Level::Debug => Some(0),
            _ => self.may_log(facility),
        };
        let Some(held_back) = held_back else { return };
        let line = without(&self.secrets, line);
        match held_back {
            0 => log::log!(level, "librdkafka: {facility}: {line}"),
            n => log::log!(level, "librdkafka: {facility}: {line} ({n} like it were held back)"),
        }
    }

    /// `Some` if this line may pass, with the number of lines held back since the last one.
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

/// A text of librdkafka as one line of at most [`LINE_CHARS_MAX`] characters, secrets as `***`.
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
