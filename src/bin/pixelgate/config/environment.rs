//! Overrides from the environment: `PIXELGATE__EDGE__THREADS=4` is `edge.threads = 4`, and
//! `PIXELGATE__UPSTREAM__0__URL` is the `url` of the first `[[upstream]]`.

use figment::value::{Dict, Tag, Value};

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
    /// Takes the variables whose name begins with `PIXELGATE__`. A value is read as TOML (`4`,
    /// `true`, `["a"]`) and, where it is none, as text.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let read = |(name, text): (String, String)| {
            let path = name.strip_prefix(PREFIX)?.split("__").map(str::to_ascii_lowercase);
            Some(Override { path: path.collect(), value: value(&text), name })
        };
        let mut all: Vec<_> = variables.into_iter().filter_map(read).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Self(all)
    }

    /// Every section that an override changes, as it is after all of them. figment replaces whole
    /// lists, so an entry of a list is changed in a copy of the file's list.
    ///
    /// # Errors
    ///
    /// The variable that sets no possible key, and the reason.
    pub fn over(&self, file: &Dict) -> Result<Dict, (String, String)> {
        let mut changed = Dict::new();
        for Override { name, path, value } in &self.0 {
            let Some((leaf, parents)) =
                path.split_last().filter(|_| path.iter().all(|p| !p.is_empty()))
            else {
                let reason = "names no key; the form is PIXELGATE__SECTION__KEY";
                return Err((name.clone(), reason.to_owned()));
            };
            if let Some(section) = file.get(&path[0]) {
                changed.entry(path[0].clone()).or_insert_with(|| section.clone());
            }
            set(&mut changed, parents, leaf, value.clone()).map_err(|why| (name.clone(), why))?;
        }
        Ok(changed)
    }
}

fn value(text: &str) -> Value {
    let parsed = toml::from_str::<Dict>(&format!("value = {text}"));
    let value = parsed.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    value.unwrap_or_else(|| Value::from(text))
}

fn set(root: &mut Dict, parents: &[String], leaf: &str, value: Value) -> Result<(), String> {
    let Some((first, rest)) = parents.split_first() else {
        root.insert(leaf.to_owned(), value);
        return Ok(());
    };
    let empty = || Value::Dict(Tag::Default, Dict::new());
    let mut place = root.entry(first.clone()).or_insert_with(empty);
    let mut entered = first.as_str();
    for key in rest {
        place = match place {
            Value::Dict(_, table) => table.entry(key.clone()).or_insert_with(empty),
            Value::Array(_, list) => element(list, key)?,
            _ => return Err(format!("`{entered}` is a value and has no keys below it")),
        };
        entered = key;
    }
    match place {
        Value::Dict(_, table) => drop(table.insert(leaf.to_owned(), value)),
        Value::Array(_, list) => *element(list, leaf)? = value,
        _ => return Err(format!("`{entered}` is a value and has no keys below it")),
    }
    Ok(())
}

fn element<'a>(list: &'a mut [Value], key: &str) -> Result<&'a mut Value, String> {
    let length = list.len();
    let index: usize = key.parse().map_err(|_| format!("`{key}` is not a position in a list"))?;
    list.get_mut(index).ok_or_else(|| format!("the list has {length} entries, none at {index}"))
}
