//! Overrides of the configuration by environment variables (SPEC 9).
//!
//! `PIXELGATE__EDGE__THREADS=4` means `edge.threads = 4`, and `PIXELGATE__UPSTREAM__0__URL` sets
//! the `url` of the first `[[upstream]]`. An override replaces the value of its key: a number, a
//! list or a whole table. Crates for layered configuration are not used, because they merge tables,
//! so that no override could clear one, and because they cannot hold the dates of TOML.

use std::ffi::OsString;
use toml::{Table, Value};

/// The beginning of the name of each override.
const PREFIX: &str = "PIXELGATE__";

/// All overrides of the environment, sorted by name.
pub struct Environment(Vec<Override>);

/// One variable, which overrides one key.
struct Override {
    name: String,
    /// The key that the variable sets: the section, then keys and positions in lists.
    path: Vec<String>,
    text: String,
}

impl Environment {
    /// Takes the variables whose name begins with `PIXELGATE__`. The other ones may hold any bytes.
    ///
    /// # Errors
    ///
    /// The name of an override whose value is not UTF-8, and a reason that says this.
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

    /// The keys that are overridden, each as its section, then keys and positions in lists.
    pub fn keys(&self) -> Vec<Vec<String>> {
        self.0.iter().map(|each| each.path.clone()).collect()
    }

    /// Sets the key of every override in `file`. The text of a variable is read as TOML (`4`,
    /// `true`, `["a"]`). A text that is not TOML, or whose key takes only a string, is used as a
    /// string. `fits` returns whether a table is a valid configuration.
    ///
    /// # Errors
    ///
    /// The name of a variable that sets no possible key, and the reason.
    pub fn apply(
        self,
        file: &mut Table,
        fits: impl Fn(&Table) -> bool,
    ) -> Result<(), (String, String)> {
        for each in &self.0 {
            each.set(file, each.toml().unwrap_or_else(|| each.string()))?;
        }
        // A text that is TOML can also be meant as a string. Each such text is tried alone, because
        // the other ones may not fit yet.
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

    /// Returns the text read as TOML, or `None` if it is not TOML.
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

    /// Removes the key from `root`, so that its default counts. An entry of a list stays.
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
    list.get_mut(index).ok_or_else(|| match length {
        0 => format!("position {index} does not exist: the list is empty"),
        _ => format!("position {index} does not exist: the last one is {}", length - 1),
    })
}
