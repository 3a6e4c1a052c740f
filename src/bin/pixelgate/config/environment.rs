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
    value: Value,
}

impl Environment {
    /// Takes the variables whose name begins with `PIXELGATE__`; others may hold any bytes. A value
    /// is read as TOML (`4`, `true`, `["a"]`) and, where it is none, as text.
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
            all.push(Override { path, value: value(&text), name });
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self(all))
    }

    /// Whether there is no override.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets every override in `file`.
    ///
    /// # Errors
    ///
    /// The variable that sets no possible key, and the reason.
    pub fn apply(self, file: &mut Table) -> Result<(), (String, String)> {
        for Override { name, path, value } in self.0 {
            let Some((leaf, parents)) =
                path.split_last().filter(|_| path.iter().all(|p| !p.is_empty()))
            else {
                return Err((name, "names no key; the form is PIXELGATE__SECTION__KEY".to_owned()));
            };
            set(file, parents, leaf, value).map_err(|why| (name, why))?;
        }
        Ok(())
    }
}

fn value(text: &str) -> Value {
    let parsed = toml::from_str::<Table>(&format!("value = {text}"));
    let value = parsed.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
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
