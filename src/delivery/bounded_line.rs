//! Reads lines of a file whose content is not trusted, with a bound on their length.

use std::io::{self, BufRead};

/// Reads a line into `text`, which it clears first, without the line feed. Of a line that is longer
/// than `bytes_max`, stores `bytes_max` bytes and one more, so that the caller sees that it is too
/// long. The last line may lack its line feed. Returns the number of bytes read, with the line
/// feed; 0 at the end of the file.
///
/// # Errors
///
/// The errors of `reader`.
pub fn read_line(
    reader: &mut impl BufRead,
    bytes_max: usize,
    text: &mut Vec<u8>,
) -> io::Result<u64> {
    text.clear();
    let mut read = 0;
    loop {
        let chunk = match reader.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            chunk => chunk?,
        };
        if chunk.is_empty() {
            return Ok(read);
        }
        let end = memchr::memchr(b'\n', chunk);
        let used = end.unwrap_or(chunk.len());
        let room = (bytes_max + 1).saturating_sub(text.len());
        text.extend_from_slice(&chunk[..used.min(room)]);
        let used = used + usize::from(end.is_some());
        reader.consume(used);
        read += used as u64;
        if end.is_some() {
            return Ok(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_whole_or_cut_one_byte_behind_the_bound() {
        let text = b"ab\n\nabcdefgh\nend";
        for buffer_bytes in [1, 2, 3, 100] {
            let mut reader = io::BufReader::with_capacity(buffer_bytes, &text[..]);
            let mut line = Vec::new();
            let mut lines = Vec::new();
            loop {
                let read = read_line(&mut reader, 4, &mut line).unwrap();
                if read == 0 {
                    break;
                }
                lines.push((read, String::from_utf8(line.clone()).unwrap()));
            }
            let expect = [(3, "ab"), (1, ""), (9, "abcde"), (3, "end")];
            assert_eq!(lines, expect.map(|(read, line)| (read, line.to_owned())));
        }
    }
}
