//! Reads the configuration (SPEC 9): one TOML file, and overrides from the environment.
//!
//! Each section is defined and checked by the module that uses it. It is checked once, after the
//! overrides were applied. A mistake is reported as `file:line: key: reason`.

mod environment;
mod error;
mod files;
pub mod keys;
mod line;
pub mod listeners;
mod places;
pub mod schema;

use environment::Environment;
pub use error::ConfigError;
use error::{error, file_place, key_of, twice};
use line::{line_at, line_in_list};
use pixelgate::tools::without_value;
pub use places::Places;
use serde::Deserialize;
use serde_path_to_error::Segment;
use std::path::Path;
use std::sync::Arc;

/// The most bytes of a configuration file. A file with ten thousand upstream headers is smaller, so
/// a larger one is the wrong file.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A checked configuration.
pub struct Config {
    /// The listeners and the origins.
    pub edge: crate::edge::config::Config,
    /// The admin listener.
    pub admin: pixelgate::config::Admin,
    /// The log on standard error.
    pub log: crate::logging::config::Config,
    /// The access log.
    pub access_log: crate::access_log::config::Config,
    /// Which portals the metrics name.
    pub metrics: pixelgate::config::Metrics,
    /// The export of metrics.
    pub otlp: pixelgate::config::Otlp,
    /// The sections of the gate itself.
    pub gate: pixelgate::config::ValidConfig,
    /// The values of the file and of the overrides, to compare with those of a later reload.
    pub table: toml::Table,
    /// Where the values stand.
    pub places: Places,
    /// Whether the file itself sets no key.
    pub is_blank: bool,
}

/// The sections as the file has them, before they are checked.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    edge: crate::edge::config::Config,
    events: pixelgate::config::Events,
    portals: pixelgate::config::Portals,
    response: pixelgate::config::Response,
    privacy: pixelgate::config::Privacy,
    spool: pixelgate::config::Spool,
    batch: pixelgate::config::Batch,
    upstream: Vec<pixelgate::config::Upstream>,
    admin: pixelgate::config::Admin,
    log: crate::logging::config::Config,
    access_log: crate::access_log::config::Config,
    metrics: pixelgate::config::Metrics,
    otlp: pixelgate::config::Otlp,
}

impl Config {
    /// Reads the file at `path`, applies the overrides of the environment and checks every section.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or the first key that cannot be used, with its place and the
    /// reason.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|reason| error(path.display(), "", reason))?;
        let overrides = Environment::new(std::env::vars_os());
        let overrides = overrides.map_err(|(name, reason)| error("environment", &name, reason))?;
        let overridden = overrides.keys();
        let (document, table) = Document::parse(path, &text, overrides)?;
        let is_blank = toml::from_str(&text).is_ok_and(|own: toml::Table| own.is_empty());
        let places = Places::new(path, text, table.clone(), overridden);
        Ok(Config { is_blank, ..document.validate(path, table, places)? })
    }

    /// Returns what a reload puts in force: this configuration of the file at `path`, but with the
    /// values of `in_force` for the keys that need an upgrade.
    ///
    /// # Errors
    ///
    /// The result cannot be used, although both configurations can: a key that a reload changes
    /// depends on one that needs an upgrade.
    pub fn over(&self, in_force: &toml::Table, path: &Path) -> Result<Self, ConfigError> {
        let table = keys::overlay(in_force, &self.table);
        let document = serde_path_to_error::deserialize(table.clone()).map_err(|e| {
            let key = key_of(e.path());
            error(self.places.of(&key), &key, without_value(e.inner().message()))
        })?;
        Document::validate(document, path, table, self.places.clone()).map_err(|mut e| {
            e.reason += " (with the values in force of the keys that need an upgrade)";
            e
        })
    }
}

impl Document {
    /// Reads `text`, the file at `path`, and applies the overrides. Returns the sections, and the
    /// table that they were read from.
    fn parse(
        path: &Path,
        text: &str,
        environment: Environment,
    ) -> Result<(Self, toml::Table), ConfigError> {
        let Ok(mut table) = toml::from_str(text) else {
            return Self::from_text(path, text).map(|document| (document, toml::Table::new()));
        };
        if environment.is_empty() {
            return Self::from_text(path, text).map(|document| (document, table));
        }
        let fits = |table: &toml::Table| Self::deserialize(table.clone()).is_ok();
        let applied = environment.apply(&mut table, fits);
        applied.map_err(|(name, reason)| error("environment", &name, reason))?;
        let document = serde_path_to_error::deserialize(table.clone()).map_err(|e| {
            let key = key_of(e.path());
            // A mistake that the file has, too, is reported with its line.
            match Self::from_text(path, text) {
                Err(own) if own.key == key => own,
                _ => error("environment", &key, without_value(e.inner().message())),
            }
        });
        document.map(|document| (document, table))
    }

    fn from_text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line = |e: &toml::de::Error| e.span().map(|span| line_at(text, span.start));
        let document = toml::Deserializer::parse(text).map_err(|e| {
            error(file_place(path, line(&e)), twice(text, &e), without_value(e.message()))
        })?;
        serde_path_to_error::deserialize(document).map_err(|e| {
            // For a mistake in a list of tables the parser reports the span of the whole list.
            let in_a_list = e.path().iter().any(|segment| matches!(segment, Segment::Seq { .. }));
            let mistake = |table: &toml::Table| {
                Self::deserialize(table.clone()).err().map(|e| e.message().to_owned())
            };
            let listed = in_a_list.then(|| line_in_list(text, e.path(), mistake)).flatten();
            let place = file_place(path, listed.or_else(|| line(e.inner())));
            error(place, &key_of(e.path()), without_value(e.inner().message()))
        })
    }

    fn validate(
        self,
        path: &Path,
        table: toml::Table,
        places: Places,
    ) -> Result<Config, ConfigError> {
        let Self { edge, admin, log, mut access_log, metrics, otlp, .. } = self;
        let wrong = |key: &str, reason: String| error(places.of(key), key, reason);
        let within = |section: &'static str| {
            move |(key, reason): (&str, String)| wrong(&format!("{section}.{key}"), reason)
        };
        edge.validate().map_err(within("edge"))?;
        admin.validate().map_err(within("admin"))?;
        log.validate().map_err(within("log"))?;
        listeners::check(&edge, &admin).map_err(|(key, reason)| wrong(&key, reason))?;
        access_log.validate().map_err(within("access_log"))?;
        let mut others = files::named(path, &table);
        files::add_own(&mut others, &edge.state_dir, &listeners::all(&edge, &admin));
        files::check_access_log(&access_log, &others)
            .map_err(|reason| wrong("access_log.path", reason))?;
        access_log.others = Arc::new(others);
        metrics.validate().map_err(within("metrics"))?;
        let in_otlp = |e: pixelgate::errors::ConfigError| {
            wrong(&format!("otlp.{}", e.key()), e.reason().to_owned())
        };
        otlp.validate().map_err(in_otlp)?;
        let mut gate = pixelgate::Config::default();
        gate.events = self.events;
        gate.portals = self.portals;
        gate.response = self.response;
        gate.privacy = self.privacy;
        gate.spool = self.spool;
        gate.batch = self.batch;
        gate.upstream = self.upstream;
        let gate = gate.validate().map_err(|e| wrong(e.key(), e.reason().to_owned()))?;
        let is_blank = false;
        Ok(Config { edge, admin, log, access_log, metrics, otlp, gate, table, places, is_blank })
    }
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = pixelgate::tools::read_regular_file(path, FILE_BYTES_MAX);
    let bytes = bytes.map_err(|e| format!("cannot be read: {e}"))?;
    String::from_utf8(bytes).map_err(|_| "cannot be read: the file is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFERENCE: &str = include_str!("../../../config/reference.toml");
    const SAMPLE: &str = include_str!("../../../config/pixelgate.toml");

    fn document(text: &str, environment: &[(&str, &str)]) -> Result<Document, ConfigError> {
        let environment = environment.iter().map(|(k, v)| (k.into(), v.into()));
        let environment = Environment::new(environment).unwrap();
        Document::parse(Path::new("edge.toml"), text, environment).map(|(document, _)| document)
    }

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, String> {
        let document = document(text, environment);
        let path = Path::new("edge.toml");
        let table: toml::Table = toml::from_str(text).unwrap_or_default();
        let places = Places::new(path, text.to_owned(), table, Vec::new());
        let validate = |d: Document| d.validate(path, toml::Table::new(), places);
        document.and_then(validate).map_err(|e| e.to_string())
    }

    /// The keys that a section takes, as its own error message lists them.
    fn keys_of(section: &str) -> Vec<String> {
        let bogus = "there_is_no_such_key = 1";
        let text = if section.is_empty() { bogus.into() } else { format!("[{section}]\n{bogus}") };
        let message = parse(&text, &[]).map(drop).unwrap_err();
        let (_, expected) = message.split_once("expected ").expect(&message);
        expected.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_reference_says_what_the_code_does() {
        let reference = document(REFERENCE, &[]).unwrap();
        let mut code = document("", &[]).unwrap();
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
            let keys = keys.replace("${", "$ {");
            match toml::from_str::<pixelgate::config::Upstream>(&keys) {
                Ok(_) => {}
                Err(e) if e.message().contains("lacks the feature") => {}
                Err(e) => panic!("{e}\n{keys}"),
            }
        }
    }

    #[test]
    fn the_sample_is_valid() {
        assert!(parse(SAMPLE, &[]).is_ok());
    }

    #[test]
    fn a_mistake_is_reported_by_file_line_key_and_reason() {
        let check = |text: &str, expect: &[&str]| {
            let message = parse(text, &[]).map(drop).unwrap_err();
            for part in expect {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        };
        check("[edge]\n\nlistne = 1", &["edge.toml:3: ", "edge", "`listne`", "`listen`"]);
        check("[edge]\nthreads = \"four\"", &["edge.toml:2: edge.threads: "]);
        check("[spool]\ndurability = \"maybe\"", &["edge.toml:2: ", "`power`", "`memory`"]);
        check("[edge\n", &["edge.toml:1: "]);
        check("[edges]\n", &["edge.toml:1: ", "`edges`"]);
        check("[edge]\norigin = \"ftp://a\"", &["edge.toml:2: edge.origin: "]);
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
        assert_eq!(config.gate.upstream[0].name, "b");
        let wrong = parse(file, &[("PIXELGATE__EDGE__THREADS", "many")]).map(drop).unwrap_err();
        assert!(wrong.contains("environment: edge.threads: "), "{wrong}");
        let wrong = parse(file, &[("PIXELGATE__UPSTREAM__7__NAME", "b")]).map(drop).unwrap_err();
        assert!(wrong.contains("PIXELGATE__UPSTREAM__7__NAME"), "{wrong}");
        let wrong = parse(file, &[("PIXELGATE__EDGE__NOPE", "1")]).map(drop).unwrap_err();
        assert!(wrong.contains("`nope`"), "{wrong}");
    }

    #[test]
    fn an_override_replaces_the_whole_value_of_its_key() {
        let file = "[portals]\nsource = \"http://127.0.0.1:1/x\"\nheaders = { a = \"${NOPE}\" }";
        assert!(parse(file, &[]).is_err());
        let none = parse(file, &[("PIXELGATE__PORTALS__HEADERS", "{}")]).unwrap();
        assert!(none.gate.portals.headers.is_empty());
        let whole = [("PIXELGATE__SPOOL", "{ linger_ms = 1 }")];
        let config = parse("[spool]\ndir = \"elsewhere\"", &whole).unwrap();
        assert_eq!(config.gate.spool.dir, Path::new("data/spool"));
    }

    #[test]
    fn a_string_key_takes_the_text_of_its_variable_as_it_is() {
        for token in [
            "1234567890123456",
            "184467440737095516160000",
            "123456789012345.50",
            "0x1234567890abcdef",
            "2027-01-01T00:00:00",
            "[ \"a list's text\" ]",
        ] {
            let config = parse("", &[("PIXELGATE__ADMIN__TOKEN", token)]).unwrap();
            assert_eq!(config.admin.token.unwrap().expose(), token);
        }
        // Beside a name that is not set, and other texts that could be numbers.
        let set = [
            ("PIXELGATE__ADMIN__TOKEN", "1234567890123456"),
            ("PIXELGATE__EDGE__STATE_DIR", "1"),
            ("PIXELGATE__EDGE__THREADS", "2"),
            ("PIXELGATE__PORTALS__HEADERS", "{}"),
        ];
        let file = "[portals]\nheaders = { a = \"${NO_SUCH}\" }";
        let config = parse(file, &set).unwrap();
        assert_eq!((config.edge.state_dir.as_path(), config.edge.threads), (Path::new("1"), 2));
        let file = "[[upstream]]\nname = \"a\"\nkind = \"http\"\nurl = \"http://h\"";
        let secret = [("PIXELGATE__UPSTREAM__0__SECRET", "1234")];
        let wrong = parse(file, &secret).map(drop).unwrap_err();
        assert!(wrong.contains("upstream.a.secret: "), "taken as text: {wrong}");
        // A key that takes a text or a list takes the list.
        let origins = [("PIXELGATE__EDGE__ORIGIN", "[\"http://a\", \"http://b\"]")];
        assert_eq!(parse("", &origins).unwrap().edge.origin.len(), 2);
        let date = [("PIXELGATE__PORTALS__HEADERS", "2027-01-01")];
        let wrong = parse("", &date).map(drop).unwrap_err();
        assert!(wrong.contains("environment: portals.headers: "), "{wrong}");
    }

    #[test]
    fn a_name_in_a_string_is_replaced_from_the_environment() {
        let file = "[edge]\nlisten = [\"${CARGO_PKG_NAME}:1\"]\n\
             origin = \"http://${CARGO_PKG_NAME} \"\n\
             [portals]\nsource = \"${CARGO_PKG_NAME}.toml\"\n\
             [admin]\nlisten = \"\"\ntoken = \" ${CARGO_PKG_NAME} ${CARGO_PKG_NAME}\\n\"";
        let document = document(file, &[]).unwrap();
        assert_eq!(document.edge.listen, ["pixelgate:1"]);
        assert_eq!(document.edge.origin, ["http://pixelgate"]);
        assert_eq!(document.portals.source, "pixelgate.toml");
        assert_eq!(document.admin.token.unwrap().expose(), "pixelgate pixelgate");
    }

    #[test]
    fn a_name_that_is_not_set_is_an_error_with_its_line_and_key() {
        for (section, key, value) in [
            ("admin", "token", "\"${NO_SUCH}\""),
            ("admin", "listen", "\"${NO_SUCH}\""),
            ("edge", "origin", "\"http://${NO_SUCH}\""),
            ("edge", "origin", "[\"http://${NO_SUCH}\"]"),
            ("edge", "listen", "[\"${NO_SUCH}:1\"]"),
            ("edge", "trusted_proxies", "[\"${NO_SUCH}\"]"),
            ("portals", "source", "\"${NO_SUCH}\""),
            ("portals", "headers", "{ a = \"${NO_SUCH}\" }"),
        ] {
            let message =
                parse(&format!("[{section}]\n{key} = {value}"), &[]).map(drop).unwrap_err();
            let place = message.starts_with(&format!("edge.toml:2: {section}.{key}"));
            assert!(place && message.contains("${NO_SUCH} is not in the environment"), "{message}");
        }
    }

    #[test]
    fn no_mistake_shows_the_value_that_is_wrong() {
        let upstream = "[[upstream]]\nname = \"a\"\nkind = \"hubspot\"\ntokens = \"s3cret\"";
        for (text, variable) in [
            ("[admin]\ntoken = 7734773477347734", None),
            ("[admin]\nlisten = \"s3cret\"", None),
            ("[portals]\nheaders = \"s3cret\"", None),
            ("[portals]\nmode = \"s3cret\"", None),
            ("[portals]\nsource = \"s3cret\"", None),
            ("[spool]\nbytes_max = \"s3cret\"", None),
            ("[edge]\norigin = \"s3cret\"", None),
            ("[edge]\norigin = \"s3cret://a\"", None),
            ("[edge]\nlisten = [\"s3cret\"]", None),
            ("[edge]\ntrusted_proxies = [\"s3cret\"]", None),
            ("[edge]\norigin_health_path = \"s3cret\"", None),
            ("[edge]\nclient_ip_header = \"s3cret:\"", None),
            ("[events]\nmethods = [\"s3cret\"]", None),
            ("[events]\ncontext_headers = [\"s3cret:\"]", None),
            ("[events]\nutk_cookie = \"s3cret;\"", None),
            ("[privacy]\nreferer = \"s3cret\"", None),
            ("[log]\nlevel = \"s3cret\"", None),
            ("[admin]\ntoken = s3cret", None),
            (upstream, None),
            ("", Some(("PIXELGATE__PORTALS__MODE", "s3cret"))),
            ("", Some(("PIXELGATE__EDGE__THREADS", "7734773477347734.5"))),
        ] {
            let environment: Vec<_> = variable.into_iter().collect();
            let message = parse(text, &environment).map(drop).unwrap_err();
            assert!(!message.contains("7734") && !message.contains("s3cret"), "{message}");
        }
    }

    #[test]
    fn a_mistake_in_a_later_table_of_a_list_has_its_own_line() {
        let upstream = "[[upstream]]\nname = \"a\"\nkind = \"file\"\n";
        let text = format!("{upstream}{}", upstream.replace("\"file\"", "5"));
        let message = parse(&text, &[]).map(drop).unwrap_err();
        assert!(
            message.starts_with("edge.toml:4") || message.starts_with("edge.toml:6"),
            "{message}"
        );
    }

    #[test]
    fn a_mistake_in_a_list_of_tables_has_the_line_of_its_key() {
        let upstream = "[[upstream]]\nname = \"a\"\nkind = \"http\"\nurl = \"http://h\"\n";
        let check = |rest: &str, line: usize| {
            let text = format!("{upstream}{upstream}{rest}");
            let message = parse(&text, &[]).map(drop).unwrap_err();
            assert!(message.starts_with(&format!("edge.toml:{line}: upstream")), "{message}");
        };
        check("format = \"json\"\n\nconcurency = 1", 11);
        check("timeout_seconds = 1\ntimeout_secodns = 2\ntimeout_secods = 3", 10);
        check("compression = \"none\"\nformat = \"xml\"", 10);
        check("headers = { A = \"b\", B = 5 }", 9);
        check("[upstream.batch]\nlinger_ms = 5\nevent_max = 5", 11);
        let check = |text: &str, expect: &str| {
            let message = parse(text, &[]).map(drop).unwrap_err();
            assert!(message.starts_with(expect), "{message}");
        };
        check("[[upstream]]\nname = \"a\"\nkind = 5", "edge.toml:3: ");
        check("[[upstream]]\nkind = \"file\"\nname = 5", "edge.toml:3: ");
        let tls = "[[edge.tls]]\nlisten = \"a:1\"\ncert = \"c\"\nkey = \"k\"\n";
        check(&format!("{tls}{tls}keey = 1"), "edge.toml:9: edge.tls");
    }

    #[test]
    fn a_list_may_be_one_value() {
        let file = "[edge]\nlisten = \"127.0.0.1:1\"\ntrusted_proxies = \"10.0.0.0/8\"\n\
                    tls = { listen = \"127.0.0.1:2\", cert = \"c\", key = \"k\" }\n\
                    [events]\nignore_params = \"v\"\nmethods = \"GET\"";
        let config = parse(file, &[]).unwrap();
        assert_eq!(config.edge.listen, ["127.0.0.1:1"]);
        assert_eq!(config.edge.trusted_proxies, ["10.0.0.0/8"]);
        assert_eq!(config.edge.tls.len(), 1);
        assert_eq!(config.gate.events.ignore_params, ["v"]);
        let set = [("PIXELGATE__EDGE__LISTEN", "127.0.0.1:3")];
        assert_eq!(parse("", &set).unwrap().edge.listen, ["127.0.0.1:3"]);
        let wrong = parse("[edge]\nlisten = 80", &[]).map(drop).unwrap_err();
        let expect =
            "edge.toml:2: edge.listen: invalid type: integer, expected one value or a list";
        assert!(wrong.starts_with(expect), "{wrong}");
    }

    #[test]
    fn a_key_that_is_set_twice_is_named() {
        let check = |text: &str, expect: &str| {
            assert_eq!(parse(text, &[]).map(drop).unwrap_err(), expect);
        };
        check("[edge]\nthreads = 1\nthreads = 2", "edge.toml:3: threads: duplicate key");
        check("[edge]\n[spool]\n[edge]", "edge.toml:3: edge: duplicate key");
    }

    #[test]
    fn only_the_programs_own_variables_must_be_text() {
        use std::os::unix::ffi::OsStringExt;
        let bytes = || std::ffi::OsString::from_vec(vec![0xff]);
        assert!(Environment::new([("OTHER".into(), bytes())]).is_ok());
        let (name, _) = Environment::new([("PIXELGATE__A".into(), bytes())]).err().unwrap();
        assert_eq!(name, "PIXELGATE__A");
    }
}
