//! SPEC 2 as a rewriting system: each step, taken at one place, gives another text. All texts that
//! any number of steps give, in any order, are the readings of a path.
//!
//! Their number doubles with each place, so only short paths are read this way.

use std::collections::HashSet;

use percent_encoding::percent_decode;

/// A byte, and how often it was decoded to get it.
type Text = Vec<(u8, u8)>;

/// What the readings of a path are, seen from `event_path` (without a slash at its end). `None` if
/// there are more than `readings_max`.
pub fn read_path(event_path: &str, path: &[u8], readings_max: usize) -> Option<&'static str> {
    let loosest = loosest_reading(path);
    if relation(event_path, &loosest) == "event" {
        return Some("event");
    }
    Some(if is_ours(event_path, path, readings_max)? { "unknown" } else { "other" })
}

fn relation(event_path: &str, reading: &[u8]) -> &'static str {
    let rest = reading.strip_prefix(event_path.as_bytes());
    match rest {
        Some(b"" | b"/") => "event",
        Some(rest) if rest.starts_with(b"/") => "below",
        _ => "other",
    }
}

/// All steps but the one that drops an authority, one after the other, each wherever it applies.
pub fn loosest_reading(path: &[u8]) -> Vec<u8> {
    let mut text = path.to_vec();
    for _ in 0..3 {
        text = percent_decode(&text).collect();
    }
    let end = text.iter().position(|b| *b == b'?' || *b == b'#').unwrap_or(text.len());
    text.truncate(end);
    let text: Vec<u8> = text.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
    let segments: Vec<Vec<u8>> = text
        .split(|b| *b == b'/')
        .map(|segment| segment.split(|b| *b == b';').next().unwrap_or_default().to_vec())
        .map(|segment| segment.into_iter().filter(|b| !is_dropped(*b)).collect())
        .collect();
    let mut resolved: Vec<&[u8]> = Vec::new();
    for segment in &segments {
        match segment.as_slice() {
            b"" | b"." => {}
            b".." => drop(resolved.pop()),
            name => resolved.push(name),
        }
    }
    let mut reading = Vec::new();
    for segment in &resolved {
        reading.push(b'/');
        reading.extend_from_slice(segment);
    }
    let last = segments.last().map(Vec::as_slice).unwrap_or_default();
    if [&b""[..], b".", b".."].contains(&last) {
        reading.push(b'/');
    }
    reading.to_ascii_lowercase()
}

/// Control characters and spaces.
fn is_dropped(byte: u8) -> bool {
    byte <= b' ' || byte == 0x7F
}

fn is_ours(event_path: &str, path: &[u8], readings_max: usize) -> Option<bool> {
    let mut start: Text = path.to_ascii_lowercase().into_iter().map(|byte| (byte, 0)).collect();
    if start.first().is_none_or(|first| first.0 != b'/') {
        start.insert(0, (b'/', 0));
    }
    // Decoding comes before the dropping of characters, which makes no new escapes.
    let start = (start, true);
    let mut seen = HashSet::from([start.clone()]);
    let mut left = vec![start];
    while let Some((text, may_decode)) = left.pop() {
        let bytes: Vec<u8> = text.iter().map(|(byte, _)| *byte).collect();
        if relation(event_path, &bytes) != "other" {
            return Some(true);
        }
        let mut steps = Vec::new();
        for at in 0..text.len() {
            if may_decode {
                steps.extend(decode(&text, at).map(|text| (text, true)));
            }
            if is_dropped(text[at].0) {
                steps.push((spliced(&text, at, at + 1, &[]), false));
            }
            steps.extend(rewrite(&text, &bytes, at).map(|text| (text, may_decode)));
        }
        steps.extend(without_authority(&text, &bytes).map(|text| (text, may_decode)));
        for step in steps {
            if seen.insert(step.clone()) {
                left.push(step);
            }
        }
        if seen.len() > readings_max {
            return None;
        }
    }
    Some(false)
}

fn spliced(text: &Text, from: usize, to: usize, with: &[(u8, u8)]) -> Text {
    [&text[..from], with, &text[to..]].concat()
}

/// The escape at `at` decoded, unless that would be the fourth time.
fn decode(text: &Text, at: usize) -> Option<Text> {
    let escape = text.get(at..at + 3)?;
    let bytes: Vec<u8> = escape.iter().map(|(byte, _)| *byte).collect();
    let decoded: Vec<u8> = percent_decode(&bytes).collect();
    let times = escape.iter().map(|(_, times)| times + 1).max()?;
    let [byte] = decoded[..] else { return None };
    let byte = byte.to_ascii_lowercase();
    (times <= 3).then(|| spliced(text, at, at + 3, &[(byte, times)]))
}

/// The other steps, but for dropped characters and an authority. At most one applies at a place.
fn rewrite(text: &Text, bytes: &[u8], at: usize) -> Option<Text> {
    let slash_after = |from: usize| bytes[from..].iter().position(|b| *b == b'/').map(|n| from + n);
    let segment_end = |from: usize| slash_after(from).unwrap_or(bytes.len());
    match bytes[at] {
        b'?' | b'#' => Some(text[..at].to_vec()),
        b'\\' => Some(spliced(text, at, at + 1, &[(b'/', 0)])),
        b';' => Some(spliced(text, at, segment_end(at), &[])),
        b'/' => {
            let end = segment_end(at + 1);
            let after = (end + 1).min(bytes.len());
            match &bytes[at + 1..end] {
                b"" if end < bytes.len() => Some(spliced(text, at, end, &[])),
                b"." => Some(spliced(text, at + 1, after, &[])),
                // At the root `..` goes nowhere.
                b".." if at == 0 => Some(spliced(text, at + 1, after, &[])),
                b".." => {
                    let parent = bytes[..at].iter().rposition(|b| *b == b'/')?;
                    Some(spliced(text, parent + 1, after, &[]))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Without two or more slashes at the beginning and what follows up to the next one.
fn without_authority(text: &Text, bytes: &[u8]) -> Option<Text> {
    let authority = bytes.iter().position(|b| *b != b'/').filter(|slashes| *slashes >= 2)?;
    let end = bytes[authority..].iter().position(|b| *b == b'/')?;
    Some(text[authority + end..].to_vec())
}
