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
//! work for each byte is bounded, and the sets have a fixed size, which is that of the event path.

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
    /// One bit for each position in `path`: where each segment begins.
    starts: Box<[u128]>,
    /// For each byte, the positions in `path` at which it stands, one bit each. Upper-case letters
    /// have the positions of the lower-case ones.
    places: Box<[u128]>,
}

/// A set of stacks of resolved segments.
///
/// Bit `n` of `above[m]` is the stack that begins with `m` segments of the event path and has `n`
/// others above them; the highest bit stands for all greater `n` too, which errs towards refusing.
#[derive(Clone, Copy)]
struct Stacks<const SEGMENTS: usize> {
    above: [u64; SEGMENTS],
    /// Bit `n` is a stack of an empty segment with `n` others above it. The path so far begins with
    /// `//`, so at `n == 0` the next segment may be an authority.
    above_empty: u64,
}

/// What the readings may have made of the path up to one position.
#[derive(Clone, Copy)]
struct Column<const SEGMENTS: usize> {
    /// The stacks after the segment under way, whatever else it holds.
    settled: Stacks<SEGMENTS>,
    /// The stacks before the segment under way, if it is empty, one dot or two dots so far.
    dots: [Stacks<SEGMENTS>; 3],
    /// Bit `n`: the first `n` bytes of the event path are matched, with no other segment above.
    matched: u128,
}

impl Pattern {
    /// `None` if the path has too many bytes or segments. It must be canonical.
    pub fn new(path: &[u8]) -> Option<Self> {
        let slashes = path.iter().filter(|byte| **byte == b'/').count();
        if path.len() > EVENT_PATH_BYTES_MAX || slashes > SEGMENTS_MAX {
            return None;
        }
        let mut places = vec![0; 256];
        for (at, byte) in path.iter().enumerate() {
            places[usize::from(byte.to_ascii_lowercase())] |= 1 << at;
            places[usize::from(byte.to_ascii_uppercase())] |= 1 << at;
        }
        let slashes = (0..path.len()).filter(|at| path[*at] == b'/');
        let starts = slashes.map(|at| 1 << (at + 1)).collect();
        Some(Self { path: path.into(), starts, places: places.into() })
    }

    /// The event path.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// Whether any reading of `path` is the event path, or begins with it and a slash. Takes time
    /// linear in the length of `path`, and allocates nothing.
    pub fn is_any_reading_of(&self, path: &[u8]) -> bool {
        match self.starts.len() {
            ..=2 => self.search::<2>(path),
            3 | 4 => self.search::<4>(path),
            _ => self.search::<SEGMENTS_MAX>(path),
        }
    }

    /// Does what [`Pattern::is_any_reading_of`] does, for an event path of up to `SEGMENTS`
    /// segments.
    fn search<const SEGMENTS: usize>(&self, path: &[u8]) -> bool {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let mut column = Column::<SEGMENTS>::EMPTY;
        self.begin_segment(Stacks::root(), &mut column);
        // What escapes have led to at positions further on, of which the last is `later_end`.
        let mut later = [Column::<SEGMENTS>::EMPTY; COLUMNS];
        let mut later_end = 0;
        for at in 0..path.len() {
            let mut next = Column::EMPTY;
            let mut found = self.step(&column, path[at], &mut next);
            if path[at] == b'%' {
                escapes(&path[at..], DECODINGS_MAX, |byte, length, _| {
                    let end = at + length;
                    found |= self.step(&column, byte, &mut later[end % COLUMNS]);
                    later_end = later_end.max(end);
                });
            }
            if found {
                return true;
            }
            if at < later_end {
                next.add(&std::mem::replace(&mut later[(at + 1) % COLUMNS], Column::EMPTY));
            }
            column = next;
        }
        self.end_segment(&column).is_none()
    }

    /// Adds to `next` what the readings in `column` become by `byte`. Returns whether one of them
    /// has reached the event path.
    #[inline(always)]
    fn step<const SEGMENTS: usize>(
        &self,
        column: &Column<SEGMENTS>,
        byte: u8,
        next: &mut Column<SEGMENTS>,
    ) -> bool {
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
        next.matched |= (column.matched & self.places[usize::from(byte)]) << 1;
        false
    }

    /// Begins a segment on each of these stacks.
    fn begin_segment<const SEGMENTS: usize>(
        &self,
        stacks: Stacks<SEGMENTS>,
        column: &mut Column<SEGMENTS>,
    ) {
        column.settled.add(&stacks.pushed());
        // An authority is dropped with the slashes before it.
        column.settled.above[0] |= stacks.above_empty & 1;
        column.dots[0].add(&stacks);
        for (above, start) in stacks.above.iter().zip(&self.starts) {
            column.matched |= if above & 1 == 1 { *start } else { 0 };
        }
    }

    /// Ends the segment under way, and returns the stacks after it. `None`: one of them is the
    /// event path.
    fn end_segment<const SEGMENTS: usize>(
        &self,
        column: &Column<SEGMENTS>,
    ) -> Option<Stacks<SEGMENTS>> {
        if column.matched & (1 << self.path.len()) != 0 {
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
            *above |= u64::from(column.matched & (start >> 1) != 0);
        }
        Some(stacks)
    }
}

impl<const SEGMENTS: usize> Column<SEGMENTS> {
    const EMPTY: Self = Self { settled: Stacks::NONE, dots: [Stacks::NONE; 3], matched: 0 };

    fn add(&mut self, other: &Self) {
        self.settled.add(&other.settled);
        self.dots.iter_mut().zip(&other.dots).for_each(|(to, from)| to.add(from));
        self.matched |= other.matched;
    }
}

impl<const SEGMENTS: usize> Stacks<SEGMENTS> {
    const NONE: Self = Self { above: [0; SEGMENTS], above_empty: 0 };

    /// The empty stack.
    fn root() -> Self {
        let mut stacks = Self::NONE;
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

/// Passes each byte to `found` that escapes at the beginning of `text` spell, decoded up to
/// `decodings` times, with the length of its spelling and how often it is decoded. `text` begins
/// with `%`. Each of the three bytes of an escape may be spelled as an escape itself: the first by
/// the escape found before it, a digit by whatever is found last at its place.
fn escapes(text: &[u8], decodings: usize, mut found: impl FnMut(u8, usize, usize)) {
    let (mut end, mut times) = (1, 0);
    while times < decodings {
        let Some((high, at_low, high_times)) = digit(text, end, decodings - 1) else { return };
        let Some((low, at_end, low_times)) = digit(text, at_low, decodings - 1) else { return };
        (end, times) = (at_end, times.max(high_times).max(low_times) + 1);
        let byte = high << 4 | low;
        found(byte, end, times);
        if byte != b'%' {
            return;
        }
    }
}

/// The value of the hexadecimal digit that is spelled at `at`, where its spelling ends, and how
/// often it is decoded.
fn digit(text: &[u8], at: usize, decodings: usize) -> Option<(u8, usize, usize)> {
    let text = text.get(at..)?;
    match *text.first()? {
        b'%' => {
            let mut last = None;
            escapes(text, decodings, |byte, length, times| {
                last = hex(byte).map(|value| (value, at + length, times));
            });
            last
        }
        byte => Some((hex(byte)?, at + 1, 0)),
    }
}

/// The value of a hexadecimal digit.
pub fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
