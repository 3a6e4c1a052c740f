//! Reads dead letters, and gives them up.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::filter::Filter;
use super::letter::Letter;
use super::lines::{Content, LineEdit, Lines, rewrite};
use super::store::{DeadError, Files};

/// Most damaged lines that a [`Summary`] names; further ones are only counted.
pub const DAMAGED_NAMED_MAX: usize = 100;

/// What [`list`] found.
///
/// ```
/// use pixelgate::tools::dead_letters::Summary;
///
/// fn report(summary: &Summary) {
///     println!("{} letters", summary.letters);
///     summary.places.iter().for_each(|place| println!("{place}: not a letter"));
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Letters that match the filter.
    pub letters: u64,
    /// Lines that are not a letter. They belong to no filter and stay in the file.
    pub damaged: u64,
    /// Where the first [`DAMAGED_NAMED_MAX`] of them are.
    pub places: Vec<Place>,
}

/// A line of a file.
///
/// ```
/// use pixelgate::tools::dead_letters::Place;
///
/// let place = Place { file: "collector.ndjson".into(), line: 7 };
/// assert_eq!(place.to_string(), "collector.ndjson:7");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The names of the upstreams that have a file of dead letters, configured or not, in order.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dead_dir = dir.path();
/// use pixelgate::tools::dead_letters::upstreams;
///
/// std::fs::write(dead_dir.join("collector.ndjson"), "")?;
/// assert_eq!(upstreams(dead_dir)?, ["collector"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The errors of the file system. A missing folder is no error: it has no files.
pub fn upstreams(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().and_then(Files::upstream_of);
        names.extend(name.map(str::to_owned));
    }
    Ok(names.into_iter().collect())
}

/// Calls `show` with every dead letter of an upstream that matches, oldest first.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dead_dir = dir.path();
/// use pixelgate::tools::dead_letters::{Filter, Summary, list};
///
/// let all = Filter::default();
/// let summary = list(dead_dir, "collector", &all, |letter| println!("{}", letter.detail))?;
/// assert_eq!(summary, Summary::default());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`DeadError::Io`] for the errors of the file system.
pub fn list(
    dir: &Path,
    upstream: &str,
    filter: &Filter,
    mut show: impl FnMut(&Letter),
) -> Result<Summary, DeadError> {
    let files = Files::new(dir, upstream);
    let mut summary = Summary::default();
    for path in files.all() {
        let Some(mut lines) = Lines::open(&files, path)? else { continue };
        while let Some(line) = lines.next()? {
            match line.content {
                Content::Letter(letter) if filter.matches(&letter) => {
                    summary.letters += 1;
                    show(&letter);
                }
                Content::Letter(_) | Content::Delivered => {}
                Content::Damaged => {
                    summary.damaged += 1;
                    if summary.places.len() < DAMAGED_NAMED_MAX {
                        summary.places.push(Place { file: path.clone(), line: line.number });
                    }
                }
            }
        }
    }
    Ok(summary)
}

/// Removes the dead letters of an upstream that match, and returns how many. Damaged lines stay.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let dead_dir = dir.path();
/// use pixelgate::tools::dead_letters::{Filter, remove};
///
/// assert_eq!(remove(dead_dir, "collector", &Filter::default())?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`DeadError::Busy`] while another process replays or removes these letters, and
/// [`DeadError::Io`] for the errors of the file system.
pub fn remove(dir: &Path, upstream: &str, filter: &Filter) -> Result<u64, DeadError> {
    let files = Files::new(dir, upstream);
    let Some(_replaying) = files.lock_replay()? else { return Err(DeadError::Busy) };
    let mut removed = 0;
    for path in files.all() {
        rewrite(&files, path, |line| match &line.content {
            Content::Letter(letter) if filter.matches(letter) => {
                removed += 1;
                LineEdit::Remove
            }
            Content::Delivered => LineEdit::Remove,
            Content::Letter(_) | Content::Damaged => LineEdit::Keep,
        })?;
    }
    Ok(removed)
}
