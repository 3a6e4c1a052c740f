//! Style is a test: what each room may do, the sizes of files and functions, and words that are not
//! used any more. `imports.rs` checks which room imports which.

use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file; the median stays far below.
const FILE_LINES_MAX: usize = 500;
const FILE_LINES_MEDIAN_MAX: usize = 250;
/// Most lines of a function, its signature included.
const FUNCTION_LINES_MAX: usize = 70;
/// Most columns of a line, in characters.
const COLUMNS_MAX: usize = 100;

/// The rooms that name Pingora: they serve requests, or put a server together.
const PINGORA_ROOMS: &[&str] = &["plugin", "server", "builder", "admin", "bin", "lib"];
/// The rooms that do no I/O and nothing asynchronous.
const PURE_ROOMS: &[&str] = &["event", "request", "response"];
/// Words that the glossary in `docs/architecture.md` has replaced. Here without their first letter,
/// so that this file does not find itself.
const OLD_WORDS: &[(char, &str)] = &[
    ('c', "ourier"),
    ('p', "arcel"),
    ('s', "etback"),
    ('g', "atherer"),
    ('l', "ookout"),
    ('g', "limpse"),
    ('c', "ensus"),
    ('e', "ntrance"),
    ('t', "eller"),
    ('k', "eeper"),
    ('w', "hoever"),
];

/// Words of comments that leave open what they stand for. Cut in two as the words above.
const VAGUE_WORDS: &[(char, &str)] =
    &[('n', "obody"), ('s', "omebody"), ('a', "nybody"), ('t', "old")];

/// A file of this repository.
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// The Rust files below some folders.
pub fn sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|f| root().join(f)).collect();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty());
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The top module that a file of `src` belongs to.
fn module(path: &Path) -> String {
    let first = path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn only_the_hosts_know_pingora() {
    for source in sources(&["src"]) {
        let code = source.text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let knows = code.into_iter().any(|line| line.contains("pingora::"));
        let allowed = PINGORA_ROOMS.contains(&module(&source.path).as_str());
        assert!(!knows || allowed, "{} names Pingora", source.path.display());
    }
}

#[test]
fn pure_rooms_do_no_io_and_nothing_asynchronous() {
    let forbidden = ["std::fs", "std::net::Tcp", "tokio::", "async fn", "std::thread", "reqwest"];
    let sources = sources(&["src"]);
    for source in sources.iter().filter(|s| PURE_ROOMS.contains(&module(&s.path).as_str())) {
        for word in forbidden {
            let used = source.text.contains(word);
            assert!(!used, "{} uses {word}", source.path.display());
        }
    }
}

/// The places of these words in the lines that `part` reduces to what is checked.
fn places(words: &[(char, &str)], part: fn(&str) -> &str) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources(&["src", "tests", "benches", "examples", "fuzz/fuzz_targets"]) {
        let text = source.text.to_lowercase();
        for (first, rest) in words {
            let word = format!("{first}{rest}");
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let says = |line: &str| {
                let mut words = part(line).split(|c| !is_word(c)).flat_map(|word| word.split('_'));
                words.any(|found| found == word || found.strip_suffix('s') == Some(&word))
            };
            if let Some(line) = text.lines().position(says) {
                found.push(format!("{}:{}: {word}", source.path.display(), line + 1));
            }
        }
    }
    found
}

/// The comment of a line, with its slashes; empty if there is none.
fn comment(line: &str) -> &str {
    match line.trim_start().starts_with("//") {
        true => line,
        false => line.find(" // ").map_or("", |start| &line[start..]),
    }
}

#[test]
fn rooms_are_called_by_the_words_of_the_glossary() {
    let wrong = places(OLD_WORDS, |line| line);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn comments_name_what_they_mean() {
    let wrong = places(VAGUE_WORDS, comment);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_small() {
    let mut lengths = Vec::new();
    for source in sources(&["src", "tests", "benches", "examples"]) {
        let length = source.text.lines().count();
        assert!(length <= FILE_LINES_MAX, "{} has {length} lines", source.path.display());
        lengths.push(length);
    }
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median <= FILE_LINES_MEDIAN_MAX, "the median file has {median} lines");
}

#[test]
fn functions_are_small_and_lines_are_short() {
    let mut wrong = Vec::new();
    for source in sources(&["src", "tests", "benches", "examples"]) {
        let mut began: Option<(usize, usize)> = None;
        for (number, line) in source.text.lines().enumerate() {
            let place = format!("{}:{}", source.path.display(), number + 1);
            if line.chars().count() > COLUMNS_MAX {
                wrong.push(format!("{place} is too long"));
            }
            let indent = line.len() - line.trim_start().len();
            match began {
                // Formatted code closes a function at the column where it began.
                Some((start, column)) if indent == column && line.trim() == "}" => {
                    if number + 1 - start > FUNCTION_LINES_MAX {
                        wrong.push(format!("{place} ends a function of {}", number + 1 - start));
                    }
                    began = None;
                }
                None if is_function(line) && !line.trim_end().ends_with(['}', ';']) => {
                    began = Some((number, indent));
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| {
        matches!(*word, "pub" | "async" | "const" | "unsafe") || word.starts_with("pub(")
    });
    words.next() == Some("fn")
}

#[test]
fn nothing_is_left_undone() {
    // Put together here, so that this file does not find itself.
    let words = ["to", "fix", "xx", "dbg", "unimplemented"]
        .iter()
        .zip(["do!", "me", "x", "!(", "!("])
        .map(|(a, b)| format!("{a}{b}"))
        .collect::<Vec<_>>();
    for source in sources(&["src", "tests", "benches", "examples"]) {
        let text = source.text.to_lowercase();
        for word in &words {
            assert!(!text.contains(word.as_str()), "{} says {word}", source.path.display());
        }
    }
}

/// `clock.rs` keeps each date within the years that have a text; calendar libraries panic at
/// others.
#[test]
fn dates_are_read_by_one_clock() {
    for source in sources(&["src"]) {
        let code = source.text.split("#[cfg(test)]").next().unwrap();
        let code: Vec<&str> = code.lines().filter_map(|line| line.split("//").next()).collect();
        let reads = |word: &str| code.iter().any(|line| line.contains(word));
        // A stamp is compared with those of the kernel, and has no text.
        let is_stamp = source.path.ends_with("file_stamp.rs");
        for word in ["Timestamp::now", "Zoned::now", "SystemTime::now().duration_since(UNIX_EPOCH)"]
        {
            let path = source.path.display();
            assert!(is_stamp || !reads(word), "{path} reads the date by {word}");
        }
    }
}

#[test]
fn what_may_panic_says_why() {
    for source in sources(&["src"]) {
        // Tests stand last in a file.
        let code = source.text.split("#[cfg(test)]").next().unwrap();
        let lines: Vec<&str> = code.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if !(line.contains(".unwrap()") || line.contains(".expect(")) {
                continue;
            }
            let reasons = lines[number.saturating_sub(3)..=number].iter();
            let has_reason = line.contains(".expect(")
                || reasons.clone().any(|line| line.trim_start().starts_with("//"));
            assert!(has_reason, "{}:{} panics without a reason", source.path.display(), number + 1);
        }
    }
}
