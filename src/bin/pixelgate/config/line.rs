//! Finds the line of a mistake in a configuration file.
//!
//! For a mistake in a list of tables the TOML parser reports only the whole list. The line is found
//! by leaving out one key after the other until the mistake is gone.

use serde_path_to_error::{Path as KeyPath, Segment};
use std::fmt;
use toml::de::{DeArray, DeTable, DeValue};
use toml::{Table, Value};

/// Returns the number of the line, from 1, that holds the byte at `offset`.
pub fn line_at(text: &str, offset: usize) -> usize {
    1 + text[..offset.min(text.len())].matches('\n').count()
}

/// A step from a table or list to a value in it. Displays as the name of a variable has it.
#[derive(Debug, Clone)]
pub enum Step {
    /// The key of a table.
    Key(String),
    /// The position in a list, from 0.
    Index(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Key(key) => f.write_str(key),
            Step::Index(index) => write!(f, "{index}"),
        }
    }
}

/// Returns the line of the mistake at `path`, or below it in a table whose errors have no path.
/// `mistake` returns the message of the first mistake of a document.
pub fn line_in_list(
    text: &str,
    path: &KeyPath,
    mistake: impl Fn(&Table) -> Option<String>,
) -> Option<usize> {
    let step = |segment: &Segment| match segment {
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Seq { index } => Some(Step::Index(*index)),
        _ => None,
    };
    let mut steps: Vec<Step> = path.iter().map_while(step).collect();
    let document: Table = toml::from_str(text).ok()?;
    let wrong = mistake(&document)?;
    // Finds the key without which there is another mistake or none. The errors of an upstream
    // depend on its `kind` and quote its `name`, so these two are tried last.
    while let Some(table) = value_at(&document, &steps).and_then(Value::as_table) {
        let mut keys: Vec<&String> = table.keys().collect();
        keys.sort_by_key(|key| ["kind", "name"].iter().position(|last| last == key));
        let is_wrong = |key: &&&String| {
            let mut without = document.clone();
            table_at(&mut without, &steps).map(|table| table.remove(**key));
            mistake(&without).as_ref() != Some(&wrong)
        };
        let Some(key) = keys.iter().find(is_wrong) else { break };
        steps.push(Step::Key((*key).clone()));
    }
    line_of(text, &steps)
}

fn value_at<'t>(document: &'t Table, steps: &[Step]) -> Option<&'t Value> {
    let (first, rest) = steps.split_first()?;
    let Step::Key(first) = first else { return None };
    rest.iter().try_fold(document.get(first)?, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

fn table_at<'t>(document: &'t mut Table, steps: &[Step]) -> Option<&'t mut Table> {
    let (first, rest) = steps.split_first()?;
    let Step::Key(first) = first else { return None };
    let value = rest.iter().try_fold(document.get_mut(first)?, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    });
    value?.as_table_mut()
}

/// Returns the line of a value. If the file does not have it, returns that of the table or list
/// around it.
pub fn line_of(text: &str, steps: &[Step]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut offset = None;
    let mut table = Some(document.get_ref());
    let mut list = None;
    for step in steps {
        let value = match step {
            Step::Key(key) => {
                let found = table.and_then(|table| table.get_key_value(key.as_str()));
                found.map(|(key, value)| (key.span().start, value))
            }
            Step::Index(index) => {
                let found = list.and_then(|list: &DeArray<'_>| list.get(*index));
                found.map(|value| (value.span().start, value))
            }
        };
        let Some((start, value)) = value else { break };
        offset = Some(start);
        (table, list) = match value.get_ref() {
            DeValue::Table(table) => (Some(table), None),
            DeValue::Array(list) => (None, Some(list)),
            _ => (None, None),
        };
    }
    offset.map(|offset| line_at(text, offset))
}
