//! librdkafka's log lines, in our log: few, short, and without what was configured.
//!
//! They speak of brokers, connections and topics, never of an event: neither a key nor a value is
//! ever in one. A broken connection is told again and again, so each sort of line (librdkafka
//! calls it a facility) passes once in [`REPEAT_SECONDS_MIN`]; what passed by in between is
//! counted. Debug lines, which an operator has asked for twice (`properties.debug` and `RUST_LOG`),
//! all pass.

use std::collections::HashMap;
use std::time::Duration;

use crate::telemetry::log_throttle::LogThrottle;
use parking_lot::Mutex;
use rdkafka::config::RDKafkaLogLevel;
use tokio::time::Instant;

/// How often a line of the same facility is logged, at most.
pub const REPEAT_SECONDS_MIN: u64 = 60;
/// Facilities that are told apart; librdkafka has fewer. LogLines of any further one are dropped.
const FACILITIES_MAX: usize = 128;
/// Longest line, in characters.
const LINE_CHARS_MAX: usize = 400;
/// Shorter values are not looked for in a line: they are words like `true` and `plain`.
const SECRET_CHARS_MIN: usize = 6;

/// See the module.
pub struct LogLines {
    secrets: Vec<String>,
    throttles: Mutex<HashMap<String, LogThrottle>>,
}

impl LogLines {
    /// `secrets` are never shown.
    pub fn new(secrets: &[String]) -> LogLines {
        LogLines { secrets: secrets.to_vec(), throttles: Mutex::default() }
    }

    /// Logs a line, or counts it.
    pub fn pass_on(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let level = match level {
            // The upstream's own state tells how bad it is: a line is at most a warning.
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

    /// How many lines were held back since the last one, if this one may pass.
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

/// A text of librdkafka's on one line, cut, and with `***` for each of `secrets` in it.
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
