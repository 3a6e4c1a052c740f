//! The configuration as a JSON Schema (draft 2020-12), which `pixelgate schema` prints for editors.

/// The content of `config/schema.json`. The tests below hold it equal to the code.
pub const SCHEMA: &str = include_str!("../../../../config/schema.json");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Places;
    use crate::config::environment::Environment;
    use crate::config::{Config, Document};
    use serde_json::{Map, Value, json};
    use std::path::Path;

    const REFERENCE: &str = include_str!("../../../../config/reference.toml");

    fn schema() -> Value {
        serde_json::from_str(SCHEMA).unwrap()
    }

    fn validator() -> jsonschema::Validator {
        assert!(jsonschema::draft202012::meta::is_valid(&schema()));
        jsonschema::draft202012::new(&schema()).unwrap()
    }

    fn document(text: &str) -> Result<Document, String> {
        let none = Environment::new([]).unwrap();
        let read = Document::parse(Path::new("edge.toml"), text, none);
        read.map(|(document, _)| document).map_err(|e| e.to_string())
    }

    fn config(text: &str) -> Result<Config, String> {
        let (path, table) = (Path::new("edge.toml"), toml::from_str(text).unwrap_or_default());
        let places = Places::new(path, text.to_owned(), table, Vec::new());
        let validate = |document: Document| document.validate(path, toml::Table::new(), places);
        document(text).and_then(|document| validate(document).map_err(|e| e.to_string()))
    }

    /// A value of the schema as TOML.
    fn toml_of(value: &Value) -> String {
        toml::Value::try_from(value).unwrap().to_string()
    }

    /// The keys that a table takes, as the error about another key lists them.
    fn keys_of(text: &str) -> Vec<String> {
        let message = config(text).map(drop).unwrap_err();
        let (_, expected) = message.split_once("expected ").expect(&message);
        let mut keys: Vec<String> =
            expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        keys.sort_unstable();
        keys
    }

    fn properties(of: &Value) -> &Map<String, Value> {
        assert_eq!(of["additionalProperties"], false);
        of["properties"].as_object().unwrap()
    }

    /// The least `[[upstream]]` of each kind that is built in, without its kind's other keys.
    fn least(kind: &str) -> Option<String> {
        let rest = match kind {
            "http" | "legacy" => "url = 'http://h/'",
            "kafka" if cfg!(feature = "kafka") => "brokers = ['h:1']\ntopic = 't'",
            "nats" if cfg!(feature = "nats") => "urls = ['nats://h']\nsubject = 's'\nstream = 'S'",
            "hubspot" => "tokens = { '1' = 'token' }",
            "file" => "",
            _ => return None,
        };
        Some(format!("[[upstream]]\nname = 'a'\nkind = '{kind}'\n{rest}\n"))
    }

    const KINDS: [&str; 6] = ["file", "http", "legacy", "hubspot", "kafka", "nats"];
    /// Keys of all kinds, which are read before those of the kind.
    const COMMON: [&str; 4] = ["attempts_max", "batch", "kind", "name"];

    #[test]
    fn it_has_every_key_of_the_code_and_no_other() {
        let schema = schema();
        let sections = properties(&schema);
        assert_eq!(sections.keys().cloned().collect::<Vec<_>>(), keys_of("no_such_key = 1"));
        for (section, its) in sections.iter().filter(|(section, _)| *section != "upstream") {
            let mut known: Vec<_> = properties(its).keys().cloned().collect();
            known.sort_unstable();
            assert_eq!(known, keys_of(&format!("[{section}]\nno_such_key = 1")), "{section}");
        }
        for kind in KINDS {
            let Some(least) = least(kind) else { continue };
            let its = properties(&schema["$defs"][format!("upstream_{kind}")]);
            let known = its.keys().filter(|key| !COMMON.contains(&key.as_str()));
            let mut known: Vec<_> = known.cloned().collect();
            known.sort_unstable();
            assert_eq!(known, keys_of(&format!("{least}no_such_key = 1")), "{kind}");
        }
    }

    #[test]
    fn its_defaults_and_ranges_are_those_of_the_code() {
        let schema = schema();
        let mut checked = 0;
        // Other keys that make the value possible at all.
        let with = |key: &str| match key {
            "stale_seconds_max" => "refresh_seconds = 1\n",
            _ => "",
        };
        for (section, its) in properties(&schema).iter().filter(|(name, _)| *name != "upstream") {
            let before = |key: &str| format!("[{section}]\n{}", with(key));
            for (key, its) in properties(its) {
                checked += check_key(key, its, &before(key), &document, &config);
            }
        }
        for (kind, least) in KINDS.iter().filter_map(|kind| Some((kind, least(kind)?))) {
            for (key, its) in properties(&schema["$defs"][format!("upstream_{kind}")]) {
                checked += check_key(key, its, &least, &document, &config);
            }
        }
        assert!(checked > 200, "{checked}");
    }

    /// Compares a key's default, its least, its greatest and its possible values with what the code
    /// takes after `before`. Returns the number of comparisons.
    fn check_key(
        key: &str,
        schema: &Value,
        before: &str,
        document: &dyn Fn(&str) -> Result<Document, String>,
        config: &dyn Fn(&str) -> Result<Config, String>,
    ) -> usize {
        let mut checked = 0;
        let set = |value: &Value| format!("{before}{key} = {}\n", toml_of(value));
        assert!(key == "kind" || key == "batch" || schema["description"].is_string(), "{key}");
        if let Some(default) = schema.get("default") {
            let [without, with] = [before.to_owned(), set(default)].map(|text| document(&text));
            let [without, with] = [without, with].map(|read| format!("{:#?}", read.expect(key)));
            assert_eq!(without, with, "the default of {key}");
            checked += 1;
        }
        let mut ends = |bound: &str, step: i64| {
            let Some(value) = schema[bound].as_i64() else { return };
            config(&set(&json!(value))).map(drop).expect(key);
            let beyond = config(&set(&json!(value + step)));
            assert!(beyond.is_err(), "{key} = {}", value + step);
            checked += 2;
        };
        ends("minimum", -1);
        ends("maximum", 1);
        for value in schema["enum"].as_array().into_iter().flatten() {
            document(&set(value)).map(drop).expect(key);
            checked += 1;
        }
        checked
    }

    /// Values of every type: for a size texts at its ends, for a text or a list what many keys
    /// refuse.
    fn candidates(schema: &Value) -> Vec<Value> {
        let mut all: Vec<Value> =
            [-1, 0, 1, i64::MAX].into_iter().map(|number| json!(number)).collect();
        all.extend([json!(true), json!(1.5), json!(""), json!([]), json!([1]), json!([""])]);
        all.extend([json!({}), json!({ "a": 1 })]);
        let is_one_word = ["integer", "boolean"].iter().any(|of| schema["type"] == *of);
        let texts = if is_one_word || schema["enum"].is_array() { "" } else { TEXTS };
        for text in texts.split('|').filter(|text| !text.is_empty()) {
            all.extend([json!(text), json!([text]), json!({ text: "b" }), json!({ "a": text })]);
        }
        let is_size = schema["$ref"] == "#/$defs/size";
        if texts.is_empty() || is_size {
            all.extend(sizes(schema));
            return all;
        }
        for length in [15, 16, 50, 51, 64, 65, 100, 101, 126, 127, 128, 249, 255, 256, 257] {
            all.push(json!("x".repeat(length)));
            all.push(json!(["x".repeat(length)]));
            all.push(json!(format!("/{}", "x".repeat(length - 1))));
        }
        for count in [16, 17, 32, 33, 64, 65, 256, 257] {
            all.push(json!((0..count).map(|n| format!("a{n}")).collect::<Vec<_>>()));
            all.push(json!((0..count).map(|n| format!("http://a{n}")).collect::<Vec<_>>()));
        }
        all
    }

    /// Texts at both ends of a size.
    fn sizes(schema: &Value) -> Vec<Value> {
        let ends = [("minimum", -1), ("maximum", 1)];
        let ends = ends.into_iter().filter_map(|(end, step)| Some((schema[end].as_i64()?, step)));
        let mut all = Vec::new();
        for (end, step) in ends {
            for (unit, bytes) in SIZES {
                let near = [end / bytes, end / bytes + step, (end + step) / bytes];
                all.extend(near.iter().filter(|n| **n >= 0).map(|n| json!(format!("{n}{unit}"))));
            }
            all.extend([json!("9EiB"), json!("0B"), json!("1 kg"), json!("-1B")]);
        }
        all
    }

    fn value_is_empty(value: &Value) -> bool {
        value == &json!([]) || value == &json!({})
    }

    /// Texts of which each is good for some keys alone, with `|` between them.
    const TEXTS: &str = concat!(
        " |x|X|a b|a\u{0}|\u{e9}|1|0|/|//|/x|/X|/x/|/x//y|/.|/..|/a;b|/a?b|/a#b|/a%20|/a b|",
        "/a\\b|/1/2/3/4/5/6/7/8|/1/2/3/4/5/6/7/8/9|a/b|*|GET|POST|HEAD|email|_a|a:1|",
        "127.0.0.1|127.0.0.1:1|127.0.0.1:70000|[::1]:1|unix:|unix:/x|10.0.0.0/8|10.0.0.0/33|",
        "http://|http://h|http://h/|https://h/x|http://u:p@h/|http://h/?q|http://h/#f|",
        "ftp://h/|nats://h|tls://h:1|x.toml|x.txt|x.yaml|a.b|a..b|a.*|a.>|{portal}|",
        "a.{portal}|http://h/{portal}|${HOME}|whsec_",
    );

    const SIZES: [(&str, i64); 7] = [
        ("", 1),
        ("B", 1),
        (" kB", 1000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];

    /// Values that the schema takes and the code refuses, because they depend on another key, on
    /// the environment, or on the names that a library knows.
    const BEYOND_THE_SCHEMA: &[(&str, &str)] = &[
        ("listen", "[]"),
        ("proxy_protocol", "true"),
        ("source", "\"\""),
        ("stale_seconds_max", "1"),
        ("token", "\"${HOME}\""),
        ("properties", "{\"a\":1}"),
    ];

    /// Keys of which the code refuses more than a schema can: the grammar of addresses, URLs and
    /// base64, names that a library or HubSpot knows, and a folder that another key names, too.
    /// Two are for a URL source alone.
    const GRAMMAR: &[&str] = &[
        "dir",
        "listen",
        "origin",
        "trusted_proxies",
        "endpoint",
        "url",
        "urls",
        "proxy",
        "source",
        "secret",
        "subject",
        "properties",
        "event_names",
        "headers",
        "tokens",
        "brokers",
    ];

    #[test]
    fn it_refuses_what_the_code_refuses_and_nothing_else() {
        let (validator, schema) = (validator(), schema());
        let (mut different, mut placed) = (Vec::new(), 0);
        let mut compare = |key: &str, its: &Value, before: &str| {
            for value in candidates(its) {
                let text = format!("{before}{key} = {}\n", toml_of(&value));
                let table = toml::from_str::<toml::Table>(&text).expect(&text);
                let by_schema = validator.is_valid(&serde_json::to_value(table).unwrap());
                let by_code = config(&text);
                let refused = by_code.as_ref().err().map(String::as_str).unwrap_or_default();
                placed += usize::from(check_place(refused, key, before));
                let is_text = value.is_string()
                    || value.as_array().is_some_and(|all| all.iter().all(Value::is_string))
                    || value.as_object().is_some_and(|all| all.values().all(Value::is_string));
                let known = BEYOND_THE_SCHEMA.contains(&(key, value.to_string().as_str()))
                    || (by_schema && GRAMMAR.contains(&key) && is_text && !value_is_empty(&value));
                if by_schema != by_code.is_ok() && !known {
                    let why = by_code.map(drop).err();
                    different
                        .push(format!("{before:?} {key} = {value}: schema {by_schema}, {why:?}"));
                }
            }
        };
        for (section, its) in properties(&schema).iter().filter(|(name, _)| *name != "upstream") {
            for (key, its) in properties(its) {
                compare(key, its, &format!("[{section}]\n"));
            }
        }
        for (kind, least) in KINDS.iter().filter_map(|kind| Some((kind, least(kind)?))) {
            for (key, its) in properties(&schema["$defs"][format!("upstream_{kind}")]) {
                // TOML takes a key once.
                let others = least.lines().filter(|line| !line.starts_with(&format!("{key} = ")));
                let others: String = others.map(|line| format!("{line}\n")).collect();
                if key != "batch" && key != "kind" {
                    compare(key, its, &others);
                }
            }
        }
        for (key, its) in properties(&schema["$defs"]["batch"]) {
            compare(key, its, &format!("{}[upstream.batch]\n", least("file").unwrap()));
        }
        assert!(different.is_empty(), "{}", different.join("\n"));
        assert!(placed > 1000, "{placed}");
    }

    /// Checks that a message about `key`, which stands in one line after `before`, has its line.
    /// Returns whether the message is about this key.
    fn check_place(message: &str, key: &str, before: &str) -> bool {
        let Some((place, rest)) = message.split_once(": ") else { return false };
        assert!(place.starts_with("edge.toml:"), "{message}");
        let named = rest.split(": ").next().unwrap_or_default();
        let is_of_key = named.split(['.', '[']).any(|part| part == key);
        let expect = format!("edge.toml:{}", before.lines().count() + 1);
        assert!(!is_of_key || place == expect, "{message} after {before:?}");
        is_of_key
    }

    #[test]
    fn as_many_upstreams_are_possible_in_both() {
        let validator = validator();
        for (count, expect) in [(0, true), (16, true), (17, false)] {
            let each = |n| format!("[[upstream]]\nname = 'u{n}'\nkind = 'file'\ndir = 'd{n}'\n");
            let text: String = (0..count).map(each).collect();
            let table = toml::from_str::<toml::Table>(&text).unwrap();
            assert_eq!(validator.is_valid(&serde_json::to_value(table).unwrap()), expect);
            assert_eq!(config(&text).is_ok(), expect, "{count}");
        }
    }

    #[test]
    fn it_takes_the_reference_and_the_samples_and_refuses_what_is_misspelt() {
        let validator = validator();
        let json = |text: &str| serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap());
        let check = |text: &str, expect: bool| {
            let errors: Vec<_> =
                validator.iter_errors(&json(text).unwrap()).map(|e| e.to_string()).collect();
            assert_eq!(errors.is_empty(), expect, "{errors:?} in {text}");
        };
        check(REFERENCE, true);
        check(include_str!("../../../../config/pixelgate.toml"), true);
        check(include_str!("../../../../config/collector.toml"), true);
        for block in REFERENCE.split("\n# [[upstream]]\n").skip(1) {
            let keys = block.lines().take_while(|line| line.starts_with("# "));
            let keys: String = keys.map(|line| format!("{}\n", &line[2..])).collect();
            let keys = format!("[[upstream]]\n{keys}");
            check(&keys, true);
            check(&format!("{keys}timeout_secods = 3\n"), false);
        }
        for (text, expect) in [
            ("[edge]\nheader_bytes_max = 65536\norigin = 'http://a'", true),
            ("[edge]\nheader_bytes_max = '64 KiB'", true),
            ("[edge]\nheader_bytes_max = 'large'", false),
            ("[edge]\nthreds = 2", false),
            ("[edge]\nthreads = '2'", false),
            ("[edges]", false),
            ("[privacy]\nip = 'Full'", false),
            ("[spool]\nsync_ms = 0", false),
            ("[[upstream]]\nname = 'A'\nkind = 'file'", false),
            ("[[upstream]]\nname = 'a'\nkind = 'ftp'", false),
            ("[[upstream]]\nname = 'a'\nkind = 'http'", false),
        ] {
            check(text, expect);
            assert_eq!(config(text).is_ok(), expect, "{text}");
        }
    }
}
