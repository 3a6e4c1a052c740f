//! The configuration file: SPEC section 9 as one TOML document.
//!
//! This module only composes: each section is defined, defaulted and checked by the module that
//! uses it. What is added here is where a value comes from (a file, then the environment) and how
//! a mistake is told: file, line, key, reason. Nothing imports this module but the binary.

use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// The environment's overrides begin with this: `PIXELGATE__EDGE__THREADS=4`.
const ENV_PREFIX: &str = "PIXELGATE__";
/// Largest configuration file that is read, in bytes. One with ten thousand upstream headers is
/// smaller; a larger one is the wrong file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The listeners and the origin.
    pub edge: crate::edge::Config,
    /// Which requests are events, and their limits.
    pub events: pixelgate::config::Events,
    /// Who may report events.
    pub portals: pixelgate::config::Portals,
    /// What an answer looks like.
    pub response: pixelgate::config::Response,
    /// What is kept of a person.
    pub privacy: pixelgate::config::Privacy,
    /// Where accepted events wait.
    pub spool: pixelgate::config::Spool,
    /// How events are grouped on their way.
    pub batch: pixelgate::config::Batch,
    /// Where events go.
    pub upstream: Vec<pixelgate::config::Upstream>,
    /// The operator's listener.
    pub admin: pixelgate::config::Admin,
    /// What is written to standard error.
    pub log: crate::logging::Config,
}

/// Why a configuration cannot be used. Displays as `file:line: key: reason`.
#[derive(Debug)]
pub struct ConfigError {
    path: PathBuf,
    line: Option<usize>,
    key: String,
    reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads `path`, applies the environment's overrides and checks every section.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|reason| error(path, None, "", reason))?;
        let environment = std::env::vars().filter(|(name, _)| name.starts_with(ENV_PREFIX));
        Self::parse(path, &text, environment)
    }

    fn parse(
        path: &Path,
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        // The file alone comes first: only from its own text can a mistake be told by line.
        let config = from_text(path, text)?;
        let mut table: toml::Table =
            toml::from_str(text).map_err(|e| error(path, None, "", e.message().to_owned()))?;
        let mut overrides: Vec<_> = environment.collect();
        overrides.sort();
        for (name, value) in &overrides {
            overlay(&mut table, name, value)
                .map_err(|reason| error(Path::new("environment"), None, name, reason))?;
        }
        let config = if overrides.is_empty() { config } else { from_table(table)? };
        config.validate(path)?;
        Ok(config)
    }

    /// The sections that belong to the gate itself, as its builder takes them.
    pub fn gate(&self) -> pixelgate::Config {
        pixelgate::Config {
            events: self.events.clone(),
            portals: self.portals.clone(),
            response: self.response.clone(),
            privacy: self.privacy.clone(),
            spool: self.spool.clone(),
            batch: self.batch.clone(),
            upstream: self.upstream.clone(),
        }
    }

    fn validate(&self, path: &Path) -> Result<(), ConfigError> {
        let named = |key: &str, reason: String| error(path, None, key, reason);
        self.edge.validate().map_err(|(key, reason)| named(&format!("edge.{key}"), reason))?;
        self.admin.validate().map_err(|(key, reason)| named(&format!("admin.{key}"), reason))?;
        self.log.validate().map_err(|(key, reason)| named(&format!("log.{key}"), reason))?;
        self.gate().validate().map_err(|e| named(e.key(), e.reason().to_owned()))
    }
}

fn error(path: &Path, line: Option<usize>, key: &str, reason: String) -> ConfigError {
    ConfigError { path: path.to_owned(), line, key: key.to_owned(), reason }
}

fn read(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|e| format!("cannot be read: {e}"))?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("has {length} bytes; {FILE_BYTES_MAX} are the most"));
    }
    std::fs::read_to_string(path).map_err(|e| format!("cannot be read: {e}"))
}

fn from_text(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let told = |key: &str, e: &toml::de::Error| {
        let line =
            e.span().map(|span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        error(path, line, key, e.message().to_owned())
    };
    let document = toml::Deserializer::parse(text).map_err(|e| told("", &e))?;
    serde_path_to_error::deserialize(document).map_err(|e| {
        let key = e.path().to_string();
        told(if key == "." { "" } else { &key }, e.inner())
    })
}

fn from_table(table: toml::Table) -> Result<Config, ConfigError> {
    serde_path_to_error::deserialize(table).map_err(|e| {
        let key = e.path().to_string();
        error(Path::new("environment"), None, &key, e.inner().message().to_owned())
    })
}

/// Puts one variable into the document: `PIXELGATE__UPSTREAM__0__URL` is `upstream[0].url`. The
/// value is read as TOML (`4`, `true`, `["a"]`) and, where it is none, as the text it is.
fn overlay(table: &mut toml::Table, name: &str, value: &str) -> Result<(), String> {
    let path: Vec<String> =
        name[ENV_PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
    let Some((leaf, parents)) = path.split_last().filter(|_| path.iter().all(|p| !p.is_empty()))
    else {
        return Err("names no key; it is written PIXELGATE__SECTION__KEY".to_owned());
    };
    let mut place = Place::Table(table);
    for parent in parents {
        place = place.enter(parent)?;
    }
    place.set(leaf, parse_value(value))
}

fn parse_value(text: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}"));
    let value = parsed.ok().filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    value.unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

enum Place<'a> {
    Table(&'a mut toml::Table),
    Array(&'a mut Vec<toml::Value>),
}

impl<'a> Place<'a> {
    fn enter(self, key: &str) -> Result<Place<'a>, String> {
        let value = match self {
            Place::Table(table) => {
                table.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()))
            }
            Place::Array(array) => element(array, key)?,
        };
        match value {
            toml::Value::Table(table) => Ok(Place::Table(table)),
            toml::Value::Array(array) => Ok(Place::Array(array)),
            _ => Err(format!("`{key}` is a value and has no keys below it")),
        }
    }

    fn set(self, key: &str, value: toml::Value) -> Result<(), String> {
        match self {
            Place::Table(table) => {
                table.insert(key.to_owned(), value);
            }
            Place::Array(array) => *element(array, key)? = value,
        }
        Ok(())
    }
}

fn element<'a>(array: &'a mut [toml::Value], key: &str) -> Result<&'a mut toml::Value, String> {
    let length = array.len();
    let index: usize = key.parse().map_err(|_| format!("`{key}` is not a position in a list"))?;
    array.get_mut(index).ok_or_else(|| format!("the list has {length} entries, none at {index}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../../config/reference.toml");
    const SAMPLE: &str = include_str!("../../../config/pixelgate.toml");

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let environment = environment.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Config::parse(Path::new("edge.toml"), text, environment).map_err(|e| e.to_string())
    }

    /// The keys that a section takes, as its own error message lists them.
    fn keys_of(section: &str) -> Vec<String> {
        let bogus = "there_is_no_such_key = 1";
        let text = if section.is_empty() { bogus.into() } else { format!("[{section}]\n{bogus}") };
        let message = parse(&text, &[]).unwrap_err();
        let (_, expected) = message.split_once("expected ").expect(&message);
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_reference_says_what_the_code_does() {
        let reference = parse(REFERENCE, &[]).unwrap();
        let mut code = parse("", &[]).unwrap();
        code.upstream = reference.upstream.clone();
        assert_eq!(format!("{reference:#?}"), format!("{code:#?}"));
    }

    #[test]
    fn the_reference_lists_every_key() {
        let sections = keys_of("");
        assert!(sections.len() >= 9, "{sections:?}");
        for section in sections.iter().filter(|s| *s != "upstream") {
            let start = REFERENCE.find(&format!("\n[{section}]\n")).expect(section);
            let body = &REFERENCE[start + 1..];
            let body = &body[..body.find("\n[").unwrap_or(body.len())];
            for key in keys_of(section) {
                let listed = |line: &str| {
                    let line = line.trim_start_matches("# ");
                    line.split_once('=').is_some_and(|(name, _)| name.trim() == key)
                };
                assert!(body.lines().any(listed), "config/reference.toml lacks {section}.{key}");
            }
        }
    }

    #[test]
    fn the_kinds_that_the_reference_shows_are_read() {
        let blocks: Vec<&str> = REFERENCE.split("\n# [[upstream]]\n").skip(1).collect();
        assert!(blocks.len() >= 4, "{}", blocks.len());
        for block in blocks {
            let keys = block.lines().take_while(|line| line.starts_with("# "));
            let keys: String = keys.map(|line| format!("{}\n", &line[2..])).collect();
            match toml::from_str::<pixelgate::config::Upstream>(&keys) {
                Ok(_) => {}
                Err(e) if e.message().contains("lacks the feature") => {}
                Err(e) => panic!("{e}\n{keys}"),
            }
        }
    }

    #[test]
    fn the_sample_is_valid() {
        parse(SAMPLE, &[]).unwrap();
    }

    #[test]
    fn a_mistake_is_told_by_file_line_key_and_reason() {
        let check = |text: &str, expect: &[&str]| {
            let message = parse(text, &[]).unwrap_err();
            for part in expect {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        };
        check("[edge]\n\nlistne = 1", &["edge.toml:3: ", "edge", "`listne`", "`listen`"]);
        check("[edge]\nthreads = \"four\"", &["edge.toml:2: edge.threads: "]);
        check("[spool]\ndurability = \"maybe\"", &["edge.toml:2: ", "`power`", "`memory`"]);
        check("[edge\n", &["edge.toml:1: "]);
        check("[edges]\n", &["edge.toml:1: ", "`edges`"]);
        check("[edge]\norigin = \"ftp://a\"", &["edge.toml: edge.origin: "]);
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let file = "[edge]\nthreads = 2\n[[upstream]]\nname = \"a\"\nkind = \"file\"\ndir = \"x\"";
        let set = [
            ("PIXELGATE__EDGE__THREADS", "3"),
            ("PIXELGATE__EDGE__LISTEN", "[\"127.0.0.1:1\"]"),
            ("PIXELGATE__PORTALS__SOURCE", "lists/p.txt"),
            ("PIXELGATE__UPSTREAM__0__NAME", "b"),
        ];
        let config = parse(file, &set).unwrap();
        assert_eq!(config.edge.threads, 3);
        assert_eq!(config.edge.listen, ["127.0.0.1:1"]);
        assert_eq!(config.upstream[0].name, "b");
        let wrong = parse(file, &[("PIXELGATE__EDGE__THREADS", "many")]).unwrap_err();
        assert!(wrong.contains("environment: edge.threads: "), "{wrong}");
        let wrong = parse(file, &[("PIXELGATE__UPSTREAM__7__NAME", "b")]).unwrap_err();
        assert!(wrong.contains("PIXELGATE__UPSTREAM__7__NAME"), "{wrong}");
        let wrong = parse(file, &[("PIXELGATE__EDGE__NOPE", "1")]).unwrap_err();
        assert!(wrong.contains("`nope`"), "{wrong}");
    }
}
