//! Finds the place of a key that the edge cannot use: its line in the file, or the environment.
//!
//! The parser knows the line of a value that it cannot read. The modules that check the values know
//! only their keys, so the line is found here by the key.

use super::error::file_place;
use super::line::{Step, line_of};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Where the values of a configuration stand.
#[derive(Clone)]
pub struct Places {
    file: PathBuf,
    text: String,
    /// The values of the file and of the overrides.
    table: Table,
    /// The keys that the environment sets, each as its section, then keys and positions in lists.
    overridden: Vec<Vec<String>>,
}

impl Places {
    /// The places of the configuration file at `file`, which holds `text`. `table` has its values
    /// and those of `overridden`.
    pub fn new(file: &Path, text: String, table: Table, overridden: Vec<Vec<String>>) -> Places {
        Places { file: file.to_owned(), text, table, overridden }
    }

    /// Returns the file with the line of `key`, or `environment` if an override sets the key. A key
    /// that is not set has the line of the table that lacks it, or the file alone.
    pub fn of(&self, key: &str) -> String {
        let steps = steps_to(&self.table, key);
        let names: Vec<String> = steps.iter().map(Step::to_string).collect();
        if self.overridden.iter().any(|set| !names.is_empty() && names.starts_with(set)) {
            return "environment".to_owned();
        }
        file_place(&self.file, line_of(&self.text, &steps))
    }

    /// Returns the place of the key with which a message begins, as in `edge.tls: reason`. Another
    /// message has the file alone.
    pub fn of_message(&self, message: &str) -> String {
        self.of(message.split(": ").next().unwrap_or_default())
    }
}

/// Returns the steps to the value of a key such as `upstream.crm.headers.X`, or as far as there are
/// values. A key may hold points, and an entry of a list is named by its `name` or as `[0]`.
fn steps_to(document: &Table, key: &str) -> Vec<Step> {
    let (mut steps, mut rest, mut table) = (Vec::new(), key, Some(document));
    while let Some((name, mut value)) = table.and_then(|table| longest(table, rest)) {
        steps.push(Step::Key(name.to_owned()));
        rest = behind(rest, name).unwrap_or_default();
        if let Some((index, found, after)) = value.as_array().and_then(|list| entry(list, rest)) {
            steps.push(Step::Index(index));
            (value, rest) = (found, after);
        }
        table = value.as_table();
    }
    steps
}

/// Returns the key of `table` with which `rest` begins, and its value.
fn longest<'t>(table: &'t Table, rest: &str) -> Option<(&'t str, &'t Value)> {
    let fits = table.iter().filter(|(name, _)| behind(rest, name).is_some());
    fits.max_by_key(|(name, _)| name.len()).map(|(name, value)| (name.as_str(), value))
}

/// Returns the entry of `list` with whose name or position `rest` begins, and what follows.
fn entry<'l, 'r>(list: &'l [Value], rest: &'r str) -> Option<(usize, &'l Value, &'r str)> {
    list.iter().enumerate().find_map(|(index, value)| {
        let by_name = value.get("name").and_then(Value::as_str);
        let after = by_name.and_then(|name| behind(rest, name));
        let after = after.or_else(|| behind(rest, &format!("[{index}]")))?;
        Some((index, value, after))
    })
}

/// Returns what follows `name` in `rest`, if `rest` begins with it as a whole.
fn behind<'r>(rest: &'r str, name: &str) -> Option<&'r str> {
    let after = rest.strip_prefix(name).filter(|_| !name.is_empty())?;
    match after.chars().next() {
        None | Some('[') => Some(after),
        _ => after.strip_prefix('.'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
[edge]
threads = 1

[[upstream]]
name = \"a\"
kind = \"http\"

[[upstream]]
name = \"ab\"
kind = \"kafka\"
headers = { A = \"b\",
  \"C.D\" = \"d\" }
properties = { security.protocol = \"ssl\" }
[upstream.batch]
linger_ms = 1
";

    #[test]
    fn a_key_has_its_line_and_a_missing_key_that_of_its_table() {
        let table = toml::from_str(TEXT).unwrap();
        let places = Places::new(Path::new("f"), TEXT.to_owned(), table, Vec::new());
        for (key, place) in [
            ("edge.threads", "f:2"),
            ("edge.listen", "f:1"),
            ("upstream.a.kind", "f:6"),
            ("upstream[1].name", "f:9"),
            ("upstream.ab.headers", "f:11"),
            ("upstream.ab.headers.C.D", "f:12"),
            ("upstream.ab.properties.security.protocol", "f:13"),
            ("upstream.ab.batch.linger_ms", "f:15"),
            ("upstream.ab.url", "f:8"),
            ("upstream.abc.url", "f:4"),
            ("spool.dir", "f"),
            ("", "f"),
        ] {
            assert_eq!(places.of(key), place, "{key}");
        }
        assert_eq!(places.of_message("edge.threads: is wrong: very"), "f:2");
        assert_eq!(places.of_message("something else"), "f");
    }

    #[test]
    fn an_overridden_key_is_of_the_environment() {
        let table = toml::from_str(TEXT).unwrap();
        let set = |keys: &[&str]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
        let overridden = vec![set(&["edge", "threads"]), set(&["upstream", "1", "headers"])];
        let places = Places::new(Path::new("f"), TEXT.to_owned(), table, overridden);
        for (key, place) in [
            ("edge.threads", "environment"),
            ("upstream.ab.headers.A", "environment"),
            ("edge", "f:1"),
            ("upstream.a.headers", "f:4"),
        ] {
            assert_eq!(places.of(key), place, "{key}");
        }
    }
}
