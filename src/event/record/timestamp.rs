//! Writes a time by RFC 3339, in UTC with milliseconds: the form of every time in a batch.
//!
//! This is written by hand because each delivered event needs it and a calendar library takes ten
//! times as long. The tests compare it with such a library.

/// The last millisecond of the year 9999: RFC 3339 has four digits for the year.
pub(super) const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// The length of a time as [`Stamp::rfc3339`] writes it.
pub(super) const RFC3339_BYTES: usize = 24;

/// The text of the time that was written last. Most consecutive events differ in the milliseconds
/// only, so that the rest of the text is used again.
pub(super) struct Stamp {
    second: u64,
    text: [u8; RFC3339_BYTES],
}

impl Default for Stamp {
    fn default() -> Stamp {
        Stamp { second: 0, text: *b"1970-01-01T00:00:00.000Z" }
    }
}

impl Stamp {
    /// `2026-11-23T02:45:13.123Z`. A time after [`UNIX_MS_MAX`] loses the first digit of its year.
    pub(super) fn rfc3339(&mut self, unix_ms: u64) -> &[u8; RFC3339_BYTES] {
        let (second, ms) = (unix_ms / 1000, unix_ms % 1000);
        if second != self.second {
            self.second = second;
            self.write_second();
        }
        self.put(20, 3, ms);
        &self.text
    }

    fn write_second(&mut self) {
        let (year, month, day) = civil(self.second / 86_400);
        let second = self.second % 86_400;
        self.put(0, 4, year);
        self.put(5, 2, month);
        self.put(8, 2, day);
        self.put(11, 2, second / 3600);
        self.put(14, 2, second / 60 % 60);
        self.put(17, 2, second % 60);
    }

    fn put(&mut self, place: usize, digits: usize, mut number: u64) {
        for digit in self.text[place..place + digits].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day comes last and the months before it have
/// lengths that repeat: 153 days in five months.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_OF_400_YEARS, days % DAYS_OF_400_YEARS);
    let leap_days_before = day_of_era / 1460 + day_of_era / 146_096 - day_of_era / 36_524;
    let year_of_era = (day_of_era - leap_days_before) / 365;
    let first_day = 365 * year_of_era + year_of_era / 4 - year_of_era / 100;
    let day_of_year = day_of_era - first_day;
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (400 * era + year_of_era + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rfc3339(unix_ms: u64) -> [u8; RFC3339_BYTES] {
        *Stamp::default().rfc3339(unix_ms)
    }

    fn check(unix_ms: u64) {
        let instant = jiff::Timestamp::from_millisecond(unix_ms as i64).expect("within range");
        let expected = format!("{instant:.3}");
        assert_eq!(std::str::from_utf8(&rfc3339(unix_ms)), Ok(&*expected), "{unix_ms}");
    }

    #[test]
    fn times_are_those_of_a_calendar_library() {
        assert_eq!(&rfc3339(1_795_401_913_123), b"2026-11-23T02:45:13.123Z");
        for unix_ms in [0, 1, 999, 951_782_400_000, 4_107_542_399_999, 4_107_542_400_000] {
            check(unix_ms);
        }
        // Every day of two centuries, then every 13th, at another time of the day each.
        const DAY: usize = 86_400_000;
        (0..200 * 365).for_each(|day| check(day * (DAY as u64 + 4_321)));
        (0..253_402_200_000_000).step_by(13 * DAY + 4_321).for_each(check);
        // jiff ends a few hours before the year does, for the sake of time zones.
        assert_eq!(&rfc3339(UNIX_MS_MAX), b"9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_stamp_is_not_misled_by_the_one_before() {
        let mut stamp = Stamp::default();
        for unix_ms in [0, 999, 1000, 1001, 1000, 86_400_000, 86_399_999, 86_400_999, UNIX_MS_MAX] {
            assert_eq!(stamp.rfc3339(unix_ms), &rfc3339(unix_ms), "{unix_ms}");
        }
    }
}
