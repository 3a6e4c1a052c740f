//! Overrides from the environment: `PIXELGATE__EDGE__THREADS=4` is `edge.threads = 4`, and
//! `PIXELGATE__UPSTREAM__0__URL` is the `url` of the first `[[upstream]]`.
//!
//! An override replaces the value of its key, be that a number, a list or a whole table. The crates
//! for layered configuration merge tables instead, so that an override could not clear one, and
//! have no form for TOML's dates.

use std::ffi::OsString;
use toml::{Table, Value};

/// What the name of an override begins with.
const PREFIX: &str = "PIXELGATE__";

/// The overrides, sorted by name.
pub struct Environment(Vec<Override>);

/// One variable.
struct Override {
    name: String,
    /// The key that it sets: section, then keys and list positions.
    path: Vec<String>,
    text: String,
}

impl Environment {
    /// Takes the variables whose name begins with `PIXELGATE__`; others may hold any bytes.
    ///
    /// # Errors
    ///
    /// The name of an override whose value is not UTF-8, and that reason.
    pub fn new(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, (String, String)> {
        let mut all = Vec::new();
        for (name, text) in variables {
            let Ok(name) = name.into_string() else { continue };
            let Some(keys) = name.strip_prefix(PREFIX) else { continue };
            let path = keys.split("__").map(str::to_ascii_lowercase).collect();
            let Ok(text) = text.into_string() else {
                return Err((name, "is not UTF-8".to_owned()));
            };
            all.push(Override { path, text, name });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self(all))
    }

    /// Whether there is no override.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets every override in `file`. A text is read as TOML (`4`, `true`, `["a"]`). Where it is no
    /// TOML, or where its key takes only a string, it is that string as it is. `fits` returns
    /// whether a table is a configuration.
    ///
    /// # Errors
    ///
    /// The variable that sets no possible key, and the reason.
    pub fn apply(
        self,
        file: &mut Table,
        fits: impl Fn(&Table) -> bool,
    ) -> Result<(), (String, String)> {
        for each in &self.0 {
            each.set(file, each.toml().unwrap_or_else(|| each.string()))?;
        }
        // Each text with two readings is tried without the others, which may not fit yet.
        let doubtful: Vec<_> = self.0.iter().filter(|each| each.toml().is_some()).collect();
        let mut rest = file.clone();
        doubtful.iter().for_each(|each| each.remove(&mut rest));
        for each in doubtful {
            let fits_as = |value| {
                let mut table = rest.clone();
                each.set(&mut table, value).is_ok() && fits(&table)
            };
            if !each.toml().is_some_and(fits_as) && fits_as(each.string()) {
                each.set(file, each.string())?;
            }
        }
        Ok(())
    }
}

impl Override {
    fn string(&self) -> Value {
        Value::String(self.text.clone())
    }

    /// The value that the text is as TOML.
    fn toml(&self) -> Option<Value> {
        let parsed = toml::from_str::<Table>(&format!("value = {}", self.text));
        parsed.ok().filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"))
    }

    fn set(&self, root: &mut Table, value: Value) -> Result<(), (String, String)> {
        let mistake = |why: String| (self.name.clone(), why);
        match self.path.split_last().filter(|_| self.path.iter().all(|key| !key.is_empty())) {
            Some((leaf, parents)) => set(root, parents, leaf, value).map_err(mistake),
            None => Err(mistake("names no key; the form is PIXELGATE__SECTION__KEY".to_owned())),
        }
    }

    /// Removes the key, so that its default counts. An entry of a list stays.
    fn remove(&self, root: &mut Table) {
        let Some((leaf, parents)) = self.path.split_last() else { return };
        let mut table = Some(root);
        let mut keys = parents.iter();
        while let Some(key) = keys.next() {
            table = match table.and_then(|table| table.get_mut(key)) {
                Some(Value::Table(inner)) => Some(inner),
                Some(Value::Array(list)) => {
                    let entry =
                        keys.next().and_then(|key| list.get_mut(key.parse::<usize>().ok()?));
                    entry.and_then(Value::as_table_mut)
                }
                _ => None,
            };
        }
        table.map(|table| table.remove(leaf));
    }
}

fn set(root: &mut Table, parents: &[String], leaf: &str, value: Value) -> Result<(), String> {
    let Some((first, rest)) = parents.split_first() else {
        root.insert(leaf.to_owned(), value);
        return Ok(());
    };
    let empty = || Value::Table(Table::new());
    let mut place = root.entry(first.clone()).or_insert_with(empty);
    let mut entered = first.as_str();
    for key in rest {
        place = match place {
            Value::Table(table) => table.entry(key.clone()).or_insert_with(empty),
            Value::Array(list) => element(list, key)?,
            _ => return Err(format!("`{entered}` is a value and has no keys below it")),
        };
        entered = key;
    }
    match place {
        Value::Table(table) => drop(table.insert(leaf.to_owned(), value)),
        Value::Array(list) => *element(list, leaf)? = value,
        _ => return Err(format!("`{entered}` is a value and has no keys below it")),
    }
    Ok(())
}

fn element<'a>(list: &'a mut [Value], key: &str) -> Result<&'a mut Value, String> {
    let length = list.len();
    let index: usize = key.parse().map_err(|_| format!("`{key}` is not a position in a list"))?;
    list.get_mut(index).ok_or_else(|| format!("the list has {length} entries, none at {index}"))
}
