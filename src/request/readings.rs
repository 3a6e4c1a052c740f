//! Compares all readings of a path with the event path at once (SPEC 2).
//!
//! Each lenient step may be taken or not at each place where it applies, so a path has
//! exponentially many readings. None is written out. An automaton passes over the path once and
//! holds, for each position, everything that the readings may have made of the path so far:
//!
//! - which segments are on the stack after `.` and `..` are resolved: how many segments of the
//!   event path the stack begins with, and how many others lie above them;
//! - what the segment under way may become: nothing, `.`, `..`, the next segment of the event path,
//!   or any other name.
//!
//! A step that may be taken or not adds its outcome to the set and removes none. An escape is read
//! both as it stands and as the byte that it encodes, which begins here and ends up to
//! [`ESCAPE_BYTES_MAX`] bytes further on. So the automaton holds that many positions at a time. The
//! work for each byte is bounded, and the sets have a fixed size.

/// The most times that an escape is decoded (SPEC 2).
pub const DECODINGS_MAX: usize = 3;
/// The longest escape, in bytes: each byte of `%41` is an escape, and each byte of those is one.
const ESCAPE_BYTES_MAX: usize = 3usize.pow(DECODINGS_MAX as u32);
/// The number of positions that are held at a time.
const COLUMNS: usize = ESCAPE_BYTES_MAX + 1;
/// The most segments of an event path.
pub const SEGMENTS_MAX: usize = 8;
/// The longest event path, in bytes, without the slash at its end.
pub const EVENT_PATH_BYTES_MAX: usize = 127;
/// The bit that stands for 63 or more segments above those of the event path.
const MANY: u64 = 1 << 63;

/// An event path, as the automaton compares with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// Canonical, without the slash at the end.
    path: Box<[u8]>,
    /// Where each segment begins in `path`.
    starts: Box<[usize]>,
}

/// A set of stacks of resolved segments.
///
/// Bit `n` of `above[m]` is the stack that begins with `m` segments of the event path and has `n`
/// others above them; the highest bit stands for all greater `n` too, which errs towards refusing.
#[derive(Clone, Copy, Default)]
struct Stacks {
    above: [u64; SEGMENTS_MAX],
    /// Bit `n` is a stack of an empty segment with `n` others above it. The path so far begins with
    /// `//`, so at `n == 0` the next segment may be an authority.
    above_empty: u64,
}

/// What the readings may have made of the path up to one position.
#[derive(Clone, Copy, Default)]
struct Column {
    /// The stacks after the segment under way, whatever else it holds.
    settled: Stacks,
    /// The stacks before the segment under way, if it is empty, one dot or two dots so far.
    dots: [Stacks; 3],
    /// Bit `n`: the first `n` bytes of the event path are matched, with no other segment above.
    matched: u128,
}

impl Pattern {
    /// `None` if the path has too many bytes or segments. It must be canonical.
    pub fn new(path: &[u8]) -> Option<Self> {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let starts: Box<[usize]> = slashes.map(|(at, _)| at + 1).collect();
        let fits = path.len() <= EVENT_PATH_BYTES_MAX && starts.len() <= SEGMENTS_MAX;
        fits.then(|| Self { path: path.into(), starts })
    }

    /// The event path.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Whether any reading of `path` is the event path, or begins with it and a slash. Takes time
    /// linear in the length of `path`, and allocates nothing.
    pub fn is_any_reading_of(&self, path: &[u8]) -> bool {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let mut columns = [Column::default(); COLUMNS];
        self.begin_segment(Stacks::root(), &mut columns[0]);
        for at in 0..path.len() {
            let column = std::mem::take(&mut columns[at % COLUMNS]);
            let mut found = false;
            spellings(&path[at..], DECODINGS_MAX, &mut |byte, length| {
                found |= self.step(&column, byte, &mut columns[(at + length) % COLUMNS]);
            });
            if found {
                return true;
            }
        }
        self.end_segment(&columns[path.len() % COLUMNS]).is_none()
    }

    /// Adds to `next` what the readings in `column` become by `byte`. Returns whether one of them
    /// has reached the event path.
    fn step(&self, column: &Column, byte: u8, next: &mut Column) -> bool {
        if matches!(byte, b'/' | b'\\' | b';' | b'?' | b'#') {
            let Some(stacks) = self.end_segment(column) else { return true };
            match byte {
                b'/' | b'\\' => self.begin_segment(stacks, next),
                // What follows is dropped up to the next slash.
                b';' => next.settled.add(&stacks),
                // A path that is cut here is not the event path.
                _ => {}
            }
            if byte == b'/' {
                return false;
            }
        }
        next.settled.add(&column.settled);
        if matches!(byte, 0..=b' ' | 0x7F) {
            // Dropped. The reading in which it is part of a name is in `settled` already.
            next.dots.iter_mut().zip(&column.dots).for_each(|(to, from)| to.add(from));
            next.matched |= column.matched;
            return false;
        }
        if byte == b'.' {
            next.dots[1].add(&column.dots[0]);
            next.dots[2].add(&column.dots[1]);
        }
        let mut matched = column.matched;
        while matched != 0 {
            let length = matched.trailing_zeros() as usize;
            matched &= matched - 1;
            if self.path.get(length) == Some(&byte.to_ascii_lowercase()) {
                next.matched |= 1 << (length + 1);
            }
        }
        false
    }

    /// Begins a segment on each of these stacks.
    fn begin_segment(&self, stacks: Stacks, column: &mut Column) {
        column.settled.add(&stacks.pushed());
        // An authority is dropped with the slashes before it.
        column.settled.above[0] |= stacks.above_empty & 1;
        column.dots[0].add(&stacks);
        for (above, start) in stacks.above.iter().zip(&self.starts) {
            column.matched |= u128::from(above & 1) << start;
        }
    }

    /// Ends the segment under way, and returns the stacks after it. `None`: one of them is the
    /// event path.
    fn end_segment(&self, column: &Column) -> Option<Stacks> {
        let is_matched = |length: usize| column.matched >> length & 1 == 1;
        if is_matched(self.path.len()) {
            return None;
        }
        let [nothing, one_dot, two_dots] = &column.dots;
        let mut stacks = column.settled;
        stacks.add(nothing);
        stacks.add(one_dot);
        stacks.add(&two_dots.popped());
        stacks.above_empty |= nothing.above[0] & 1;
        for (above, start) in stacks.above.iter_mut().zip(&self.starts).skip(1) {
            // The slash before the next segment is never matched as a byte.
            *above |= u64::from(is_matched(start - 1));
        }
        Some(stacks)
    }
}

impl Stacks {
    /// The empty stack.
    fn root() -> Self {
        let mut stacks = Self::default();
        stacks.above[0] = 1;
        stacks
    }

    fn add(&mut self, other: &Self) {
        self.above.iter_mut().zip(&other.above).for_each(|(to, from)| *to |= from);
        self.above_empty |= other.above_empty;
    }

    /// The stacks with one more segment, which is not the event path's next.
    fn pushed(&self) -> Self {
        let push = |above: u64| above << 1 | above & MANY;
        Self { above: self.above.map(push), above_empty: push(self.above_empty) }
    }

    /// The stacks without their last segment. The empty stack stays.
    fn popped(&self) -> Self {
        let pop = |above: u64| above >> 1 | above & MANY;
        let mut popped = Self { above: self.above.map(pop), above_empty: pop(self.above_empty) };
        for (count, above) in self.above.iter().enumerate() {
            popped.above[count.saturating_sub(1)] |= above & 1;
        }
        popped.above[0] |= self.above_empty & 1;
        popped
    }
}

/// Calls `found` for each byte that the beginning of `text` may stand for, with the length of its
/// spelling: for the first byte as it is, and for the byte of each escape, decoded up to
/// `decodings` times. The three bytes of an escape may themselves be spelled as escapes.
fn spellings(text: &[u8], decodings: usize, found: &mut dyn FnMut(u8, usize)) {
    let Some(&first) = text.first() else { return };
    found(first, 1);
    // Each further `%` in a row begins an escape within the escape before it.
    let nested = text.iter().take(decodings + 1).take_while(|byte| **byte == b'%').count();
    if nested == 0 || nested > decodings {
        return;
    }
    let decodings = decodings - 1;
    spellings(text, decodings, &mut |percent, at_high| {
        if percent != b'%' {
            return;
        }
        spellings(&text[at_high..], decodings, &mut |high, length| {
            let Some(high) = hex(high) else { return };
            let at_low = at_high + length;
            spellings(&text[at_low..], decodings, &mut |low, length| {
                if let Some(low) = hex(low) {
                    found(high << 4 | low, at_low + length);
                }
            });
        });
    });
}

/// The value of a hexadecimal digit.
pub fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
