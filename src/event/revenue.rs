//! Revenue (`_m`): a decimal number, read and written exactly, without floating point.
//!
//! The limits of SPEC 3 apply to the value and not to its spelling: `20.50000000` has one decimal,
//! and `0.00001e5` is 1. So a canonical form always passes again.

use std::fmt;

use super::param::{
    REVENUE_DECIMALS_MAX, REVENUE_DIGITS_MAX, REVENUE_EXPONENT_DIGITS_MAX,
    REVENUE_INTEGER_DIGITS_MAX,
};

/// Millionths in one: a revenue has at most six decimals.
const MICROS: i64 = 10i64.pow(REVENUE_DECIMALS_MAX);
/// The first absolute value that is too large, in millionths. It fits into an `i64`.
const MICROS_END: i64 = 10i64.pow(REVENUE_INTEGER_DIGITS_MAX + REVENUE_DECIMALS_MAX);

/// The powers of ten that an `i64` holds.
const TENS: [i64; 19] = {
    let mut tens = [1; 19];
    let mut power = 1;
    while power < tens.len() {
        tens[power] = tens[power - 1] * 10;
        power += 1;
    }
    tens
};

/// Space for the longest canonical form: sign, integer part, point, decimals.
pub(super) type Space =
    [u8; 2 + REVENUE_INTEGER_DIGITS_MAX as usize + REVENUE_DECIMALS_MAX as usize];

/// An amount within the limits of SPEC 3. Its `Display` is the canonical form: a plain decimal, no
/// exponent, no needless zeros, no `-0`. The canonical form is also a JSON number.
///
/// ```
/// use pixelgate::custom::Revenue;
///
/// let revenue = Revenue::parse("+2.050e1").unwrap();
/// assert_eq!((revenue.to_string().as_str(), revenue.micros()), ("20.5", 20_500_000));
/// assert_eq!(Revenue::parse("$20"), None);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revenue {
    micros: i64,
}

impl Revenue {
    /// Reads an amount of the form `[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?`. `None` if the
    /// text does not have this form, or if the value has more than 15 significant digits or more
    /// than 6 decimals, or if its absolute value is not below 10¹².
    pub fn parse(text: &str) -> Option<Revenue> {
        let (negative, number) = unsigned(text.as_bytes());
        let (mantissa, exponent) = match number.iter().position(|b| matches!(b, b'e' | b'E')) {
            Some(place) => (&number[..place], exponent(&number[place + 1..])?),
            None => (number, 0),
        };
        let micros = micros(mantissa, exponent)?;
        Some(Revenue { micros: if negative { -micros } else { micros } })
    }

    /// The amount in millionths.
    pub fn micros(self) -> i64 {
        self.micros
    }

    /// Writes the canonical form, which is ASCII, at the end of `space`. Does not use `fmt`, which
    /// takes several times as long, because every event with a revenue needs this.
    pub(super) fn write(self, space: &mut Space) -> &[u8] {
        let micros = self.micros.unsigned_abs();
        let (mut whole, mut decimals) =
            (micros / MICROS.unsigned_abs(), micros % MICROS.unsigned_abs());
        // Writes from the last byte to the first.
        let mut start = space.len();
        let mut put = |byte: u8| {
            start -= 1;
            space[start] = byte;
        };
        let digit = |number: u64| b'0' + (number % 10) as u8;
        if decimals != 0 {
            let mut width = REVENUE_DECIMALS_MAX;
            while decimals % 10 == 0 {
                decimals /= 10;
                width -= 1;
            }
            for _ in 0..width {
                put(digit(decimals));
                decimals /= 10;
            }
            put(b'.');
        }
        loop {
            put(digit(whole));
            whole /= 10;
            if whole == 0 {
                break;
            }
        }
        if self.micros < 0 {
            put(b'-');
        }
        &space[start..]
    }
}

impl fmt::Display for Revenue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = Space::default();
        let text = self.write(&mut space);
        f.write_str(std::str::from_utf8(text).map_err(|_| fmt::Error)?)
    }
}

fn unsigned(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    }
}

fn exponent(text: &[u8]) -> Option<i32> {
    let (negative, digits) = unsigned(text);
    if digits.is_empty() || digits.len() > REVENUE_EXPONENT_DIGITS_MAX {
        return None;
    }
    let value = digits.iter().try_fold(0, |value, digit| {
        digit.is_ascii_digit().then(|| value * 10 + i32::from(digit - b'0'))
    })?;
    Some(if negative { -value } else { value })
}

/// The absolute value of `mantissa · 10^exponent` in micros.
fn micros(mantissa: &[u8], exponent: i32) -> Option<i64> {
    // The value is `significant · 10^(zeros - decimals + exponent)`. `significant` neither begins
    // nor ends with a zero: `zeros` counts the zeros at its end, which become part of it only when
    // another digit follows.
    let (mut significant, mut count, mut zeros, mut decimals) = (0i64, 0u32, 0u32, 0i32);
    let (mut any_digit, mut point) = (false, false);
    for &byte in mantissa {
        match byte {
            b'.' if !point => {
                point = true;
                continue;
            }
            b'0' if count == 0 => {}
            b'0' => zeros += 1,
            b'1'..=b'9' => {
                count = count.saturating_add(zeros + 1);
                if count > REVENUE_DIGITS_MAX {
                    return None;
                }
                significant = significant * TENS[zeros as usize + 1] + i64::from(byte - b'0');
                zeros = 0;
            }
            _ => return None,
        }
        any_digit = true;
        decimals += i32::from(point);
    }
    if !any_digit {
        return None;
    }
    if significant == 0 {
        return Some(0);
    }
    let power = i32::try_from(zeros).ok()? - decimals + exponent + REVENUE_DECIMALS_MAX as i32;
    let scale = TENS.get(usize::try_from(power).ok()?)?;
    significant.checked_mul(*scale).filter(|micros| *micros < MICROS_END)
}
