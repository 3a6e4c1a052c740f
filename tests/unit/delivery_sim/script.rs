//! What an upstream of a seed does.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use pixelgate::internals::upstream::{Outcome, answer};

/// Numbers that follow from a seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// From 0 up to but not including `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// From 0 up to but not including 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What an upstream does, beside taking what it is sent.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// One event in this many gets a 500 until the upstream is mended; 0: none.
    pub poison: u64,
    /// One in so many events gets a 400; 0: none.
    pub rejected: u64,
    /// The number of one more event that gets a 400; 0: none.
    pub stuck: u64,
    /// One in so many attempts ends with a 429 and a pause; 0: none.
    pub pauses: u64,
    /// One in so many attempts ends with a 503; 0: none.
    pub flaky: u64,
    /// One in so many attempts is taken and its answer lost; 0: none.
    pub lost_answers: u64,
    /// One in so many attempts panics; 0: none.
    pub panics: u64,
    /// One in so many attempts takes up to a minute; 0: none.
    pub stalls: u64,
    /// One in so many attempts ends differently for each half; 0: none.
    pub mixed: u64,
    /// One in so many attempts ends with a failure that says nothing about the upstream; 0: none.
    pub local: u64,
    /// What a stop cuts off may have been taken, and must not be sent again, as with money.
    pub counts_money: bool,
    pub in_order: bool,
    pub concurrency: usize,
}

impl Script {
    /// Draws a script. `is_sober`: only the events that it never takes make it fail.
    pub fn drawn(random: &mut Random, is_sober: bool) -> Script {
        let in_order = random.once_in(4);
        let mut one_in = |often: u64| if random.once_in(2) { often } else { 0 };
        let (poison, rejected) = (one_in(40), one_in(50));
        let mut one_in = |often: u64| if is_sober { 0 } else { one_in(often) };
        Script {
            poison,
            rejected,
            stuck: 0,
            pauses: one_in(30),
            flaky: one_in(10),
            lost_answers: one_in(40),
            panics: one_in(60),
            stalls: one_in(20),
            mixed: one_in(10),
            local: one_in(15),
            counts_money: one_in(1) == 1,
            in_order,
            concurrency: 1 + random.below(8) as usize,
        }
    }

    /// A script that takes everything in order, except for some events.
    pub fn poisoned(random: &mut Random) -> Script {
        let (poison, concurrency) = (5 + random.below(40), 1 + random.below(3) as usize);
        Script { poison, concurrency, ..Script::default() }
    }

    /// A script that takes everything but the event of this number; 0: everything.
    pub fn stuck_at(event: u64, random: &mut Random) -> Script {
        let concurrency = 1 + random.below(8) as usize;
        Script { stuck: event, concurrency, ..Script::default() }
    }

    /// Whether the upstream never takes the event.
    pub fn refuses(&self, event: u64) -> bool {
        self.is_poison(event) || self.is_rejected(event)
    }

    /// Whether it answers 500 to the event until it is mended.
    pub fn is_poison(&self, event: u64) -> bool {
        self.stuck == event || self.poison > 0 && Random(event).once_in(self.poison)
    }

    pub fn is_rejected(&self, event: u64) -> bool {
        self.rejected > 0 && Random(event ^ 0xBAD).once_in(self.rejected)
    }
}

/// An answer that asks for a pause of `after` at least, in one of the four forms of RFC 9110, as
/// the kinds that speak HTTP understand it at the time `now_ms` (since 1970).
pub fn asks_for_pause(after: Duration, now_ms: u64, random: &mut Random) -> Outcome {
    let now = Timestamp::from_millisecond(now_ms as i64).expect("in range");
    // A date has no milliseconds.
    let date = now + after + Duration::from_millis(999);
    let date = date.to_zoned(TimeZone::UTC);
    let text = match random.below(4) {
        0 => after.as_secs().to_string(),
        1 => date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        2 => date.strftime("%A, %d-%b-%y %H:%M:%S GMT").to_string(),
        _ => date.strftime("%a %b %e %H:%M:%S %Y").to_string(),
    };
    let value = HeaderValue::try_from(text).expect("ASCII");
    let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value)]);
    answer::outcome(StatusCode::TOO_MANY_REQUESTS, &headers, now)
}
