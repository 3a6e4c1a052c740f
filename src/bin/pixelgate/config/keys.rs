//! Finds the keys of the configuration that have changed, and whether a reload puts each in force
//! or only an upgrade (SPEC 9).
//!
//! A key is named as in messages: `privacy.ip`, or `upstream.crm.tokens` for the upstream `crm`.
//! Values are compared as the file writes them. `${NAME}` is not replaced, because the environment
//! of a running process does not change.

use std::collections::{BTreeMap, BTreeSet};
use toml::{Table, Value};

/// The reference configuration, which has every default. A test holds it equal to the code.
const REFERENCE: &str = include_str!("../../../../config/reference.toml");

/// What puts a changed key in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// A reload, which SIGHUP or the change of the file itself causes.
    Reload,
    /// A new process, which `pixelgate run --upgrade` starts without refusing a connection.
    Upgrade,
}

use Needs::{Reload, Upgrade};

/// The value of `upstream.order` that keeps an order, in the form of [`text`].
const IN_ORDER: &str = "\"portal\"";

/// Every key, and what puts its change in force. A key of several kinds of upstream is listed once.
pub const KEYS: &[(&str, Needs)] = &[
    ("edge.listen", Upgrade),
    // `edge.tls` stands for the certificates, `edge.tls.listen` for the addresses of its entries.
    ("edge.tls", Reload),
    ("edge.tls.listen", Upgrade),
    ("edge.origin", Reload),
    ("edge.origin_ca", Reload),
    ("edge.origin_health_path", Reload),
    ("edge.origin_health_seconds", Reload),
    ("edge.origin_timeout_seconds", Reload),
    ("edge.origin_idle_seconds", Reload),
    ("edge.connection_seconds_max", Reload),
    ("edge.threads", Upgrade),
    ("edge.keepalive_seconds", Reload),
    ("edge.header_timeout_seconds", Reload),
    ("edge.write_timeout_seconds", Reload),
    ("edge.connections_max", Reload),
    ("edge.connections_per_address_max", Reload),
    ("edge.requests_per_connection_max", Reload),
    ("edge.header_bytes_max", Reload),
    ("edge.header_lines_max", Reload),
    ("edge.h2_streams_max", Reload),
    ("edge.buffered_bytes_max", Reload),
    ("edge.answer_plain", Reload),
    ("edge.drain_seconds", Reload),
    ("edge.shutdown_grace_seconds", Reload),
    ("edge.trusted_proxies", Reload),
    ("edge.client_ip_header", Reload),
    ("edge.proxy_protocol", Reload),
    ("edge.state_dir", Upgrade),
    ("events.path", Reload),
    ("events.methods", Reload),
    ("events.query_bytes_max", Reload),
    ("events.params_max", Reload),
    ("events.ignore_params", Reload),
    ("events.withhold_params", Reload),
    ("events.utk_cookie", Reload),
    ("events.context_headers", Reload),
    ("portals.source", Reload),
    ("portals.mode", Reload),
    ("portals.refresh_seconds", Reload),
    ("portals.stale_seconds_max", Reload),
    ("portals.headers", Reload),
    ("portals.proxy", Reload),
    ("response.body", Reload),
    ("response.rejections", Reload),
    ("response.verdict_header", Reload),
    ("response.event_id", Reload),
    ("privacy.ip", Reload),
    ("privacy.referer", Reload),
    ("privacy.referer_query", Reload),
    ("privacy.gpc", Reload),
    ("spool.dir", Upgrade),
    ("spool.durability", Upgrade),
    ("spool.linger_ms", Reload),
    ("spool.sync_ms", Reload),
    ("spool.commit_seconds_max", Reload),
    ("spool.unreadable_seconds_max", Reload),
    ("spool.bytes_max", Reload),
    ("spool.free_bytes_min", Reload),
    ("spool.segment_bytes", Reload),
    ("batch.events_max", Reload),
    ("batch.bytes_max", Reload),
    ("batch.linger_ms", Reload),
    ("log.format", Reload),
    ("log.level", Reload),
    ("log.verdicts", Reload),
    ("access_log.path", Reload),
    ("access_log.format", Reload),
    ("access_log.buffer_bytes", Reload),
    ("access_log.flush_seconds", Reload),
    ("metrics.portals_max", Reload),
    ("otlp.endpoint", Reload),
    ("otlp.interval_seconds", Reload),
    ("otlp.headers", Reload),
    ("admin.listen", Upgrade),
    ("admin.token", Reload),
    // `upstream` stands for an upstream that is added, removed or renamed. The keys of all kinds:
    ("upstream", Upgrade),
    ("upstream.kind", Upgrade),
    ("upstream.batch", Reload),
    ("upstream.attempts_max", Reload),
    // With `order = "portal"` this needs an upgrade: see `needs`.
    ("upstream.concurrency_max", Reload),
    ("upstream.timeout_seconds", Reload),
    ("upstream.connection_seconds_max", Reload),
    ("upstream.url", Reload),
    ("upstream.proxy", Reload),
    ("upstream.ca", Reload),
    ("upstream.cert", Reload),
    ("upstream.key", Reload),
    // The keys of `file`:
    ("upstream.dir", Upgrade),
    ("upstream.rotate_bytes", Upgrade),
    ("upstream.rotate_seconds", Upgrade),
    // The keys of `http`:
    ("upstream.format", Reload),
    ("upstream.compression", Reload),
    ("upstream.headers", Reload),
    ("upstream.secret", Reload),
    ("upstream.order", Upgrade),
    // The keys of `legacy`:
    ("upstream.on_unknown", Reload),
    ("upstream.keep_host", Reload),
    // The keys of `hubspot`:
    ("upstream.tokens", Reload),
    ("upstream.event_names", Reload),
    ("upstream.contacts", Reload),
    ("upstream.revenue_property", Reload),
    ("upstream.external_id_property", Reload),
    ("upstream.external_id_contact_property", Reload),
    ("upstream.match_external_id", Reload),
    ("upstream.context_properties", Reload),
    ("upstream.fault_seconds_max", Reload),
    ("upstream.events_path", Reload),
    ("upstream.contacts_path", Reload),
    // The keys of `kafka`, whose `key` is not a file:
    ("upstream.brokers", Reload),
    ("upstream.topic", Reload),
    ("upstream.properties", Reload),
    // The keys of `nats`:
    ("upstream.urls", Reload),
    ("upstream.subject", Reload),
    ("upstream.stream", Reload),
    ("upstream.credentials", Reload),
];

/// The value, as text, of every key that the configuration sets or that has a default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

/// The keys that have changed, by what puts them in force.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The keys that a reload puts in force.
    pub reload: Vec<String>,
    /// The keys that need an upgrade.
    pub upgrade: Vec<String>,
}

impl Values {
    /// Returns the values of a configuration: those of the file and of the overrides, and the
    /// defaults of the other keys.
    pub fn of(configured: &Table) -> Values {
        let mut values = Values::default();
        values.take_sections(&defaults());
        values.take_sections(configured);
        let upstreams = configured.get("upstream").and_then(Value::as_array);
        upstreams.into_iter().flatten().for_each(|upstream| values.take_upstream(upstream));
        values
    }

    /// Returns the keys whose values differ in `new`.
    pub fn changes(&self, new: &Values) -> Changes {
        let same = |key: &str| self.0.get(key) == new.0.get(key);
        let in_order = |name: &str| self.keeps_order(name) || new.keeps_order(name);
        Changes::between(self.0.keys().chain(new.0.keys()), same, in_order)
    }

    /// Whether the upstream of this name keeps the order of each portal's events.
    pub fn keeps_order(&self, upstream: &str) -> bool {
        self.0.get(&format!("upstream.{upstream}.order")).is_some_and(|order| order == IN_ORDER)
    }

    /// All keys and their values.
    pub fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    fn take_sections(&mut self, document: &Table) {
        for (section, keys) in document {
            for (key, value) in keys.as_table().into_iter().flatten() {
                self.0.insert(format!("{section}.{key}"), text(value));
                if (section.as_str(), key.as_str()) == ("edge", "tls") {
                    self.0.insert("edge.tls.listen".to_owned(), listeners(value));
                }
            }
        }
    }

    fn take_upstream(&mut self, upstream: &Value) {
        let Some(name) = upstream.get("name").and_then(Value::as_str) else { return };
        self.0.insert(format!("upstream.{name}"), String::new());
        for (key, value) in upstream.as_table().into_iter().flatten() {
            if key != "name" {
                self.0.insert(format!("upstream.{name}.{key}"), text(value));
            }
        }
    }
}

impl Changes {
    /// Refuses a file that sets no key, if the configuration in force sets some. An editor or a
    /// full disk leaves such a file behind more often than an operator means it.
    ///
    /// # Errors
    ///
    /// The reason, as the end of a sentence about the file.
    pub fn check_not_emptied(&self, is_blank: bool) -> Result<(), String> {
        match is_blank && *self != Changes::default() {
            true => Err("sets no key, unlike what is in force: it was probably emptied by \
                         mistake. A new start would use it, with every key at its default"
                .to_owned()),
            false => Ok(()),
        }
    }

    /// Returns those of `keys` that have changed. `same` returns whether a key has the same value
    /// in both configurations, `in_order` whether the upstream of a name keeps an order.
    pub fn between<'a>(
        keys: impl Iterator<Item = &'a String>,
        same: impl Fn(&str) -> bool,
        in_order: impl Fn(&str) -> bool,
    ) -> Changes {
        let mut changes = Changes::default();
        for key in keys.collect::<BTreeSet<_>>() {
            if !same(key) {
                match needs(&listed(key), upstream_of(key).is_some_and(&in_order)) {
                    Needs::Reload => changes.reload.push(key.clone()),
                    Needs::Upgrade => changes.upgrade.push(key.clone()),
                }
            }
        }
        // Other addresses need an upgrade, which loads the certificates as well.
        if changes.upgrade.iter().any(|key| key == "edge.tls.listen") {
            changes.reload.retain(|key| key != "edge.tls");
        }
        // An upstream that is added, removed or of another kind changes as a whole.
        for whole in changes.upgrade.clone() {
            let name = whole.strip_suffix(".kind").unwrap_or(&whole);
            if listed(name) == "upstream" {
                let below = format!("{name}.");
                let is_apart = |key: &String| *key == whole || !key.starts_with(&below);
                changes.reload.retain(is_apart);
                changes.upgrade.retain(is_apart);
            }
        }
        changes
    }
}

/// Returns the defaults of every section but `[[upstream]]`.
pub fn defaults() -> Table {
    // The reference is valid TOML: every test of this module would fail otherwise.
    let mut defaults: Table = toml::from_str(REFERENCE).unwrap_or_default();
    defaults.remove("upstream");
    defaults
}

/// Returns the configuration that a reload of `new` puts in force: the values of `new`, but those
/// of `in_force` for the keys that need an upgrade.
pub fn overlay(in_force: &Table, new: &Table) -> Table {
    let sections: BTreeSet<&String> = in_force.keys().chain(new.keys()).collect();
    let mut all = Table::new();
    for section in sections.into_iter().filter(|section| *section != "upstream") {
        let of = |table: &Table| table.get(section).and_then(Value::as_table).cloned();
        let (old, new) = (of(in_force).unwrap_or_default(), of(new).unwrap_or_default());
        all.insert(section.clone(), Value::Table(overlay_keys(section, &old, &new)));
    }
    let upstreams = |table: &Table| {
        let list = table.get("upstream").and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_table).cloned().collect::<Vec<_>>()
    };
    let changed = upstreams(new);
    let overlaid = upstreams(in_force).into_iter().map(|old| {
        let is_same =
            |new: &&Table| ["name", "kind"].iter().all(|key| new.get(*key) == old.get(*key));
        let new = changed.iter().find(is_same);
        Value::Table(new.map_or_else(|| old.clone(), |new| overlay_keys("upstream", &old, new)))
    });
    let overlaid: Vec<Value> = overlaid.collect();
    if !overlaid.is_empty() {
        all.insert("upstream".to_owned(), Value::Array(overlaid));
    }
    all
}

/// Does what [`overlay`] does, for the keys of one section or of one upstream.
fn overlay_keys(section: &str, in_force: &Table, new: &Table) -> Table {
    let tls = |table: &Table| table.get("tls").map(listeners).unwrap_or_default();
    let in_order = in_force.get("order").is_some_and(|order| text(order) == IN_ORDER);
    let is_hot = |key: &str| match (section, key) {
        // The addresses need an upgrade and are a part of this key.
        ("edge", "tls") => tls(in_force) == tls(new),
        _ => needs(&format!("{section}.{key}"), in_order) == Needs::Reload,
    };
    let hot = new.iter().filter(|(key, _)| is_hot(key));
    let cold = in_force.iter().filter(|(key, _)| !is_hot(key));
    hot.chain(cold).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Returns the name of a key in [`KEYS`], where the name of an upstream is left out: `upstream.url`
/// for `upstream.crm.url`, and `upstream` for `upstream.crm`.
fn listed(key: &str) -> String {
    let mut parts = key.splitn(3, '.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("upstream"), Some(_), Some(own)) => format!("upstream.{own}"),
        (Some("upstream"), Some(_), None) => "upstream".to_owned(),
        _ => key.to_owned(),
    }
}

/// Returns the name of the upstream that a key belongs to, if it belongs to one.
fn upstream_of(key: &str) -> Option<&str> {
    let mut parts = key.splitn(3, '.');
    (parts.next() == Some("upstream")).then(|| parts.next()).flatten()
}

/// Returns what puts a changed key of [`KEYS`] in force. `in_order` is whether its upstream keeps
/// an order: then `concurrency_max` is the number of queues, which are made at the start.
fn needs(listed: &str, in_order: bool) -> Needs {
    if in_order && listed == "upstream.concurrency_max" {
        return Needs::Upgrade;
    }
    let known = KEYS.iter().find(|(known, _)| *known == listed);
    known.map_or(Needs::Upgrade, |(_, needs)| *needs)
}

/// Returns a value as text, to compare values. A list of one value has the text of the value,
/// because both mean the same for every key that takes a list.
fn text(value: &Value) -> String {
    let value = match value.as_array().map(Vec::as_slice) {
        Some([one]) => one,
        _ => value,
    };
    // Every TOML value can be written as JSON.
    serde_json::to_string(value).unwrap_or_default()
}

/// Returns the addresses of `edge.tls`, each once and in their order, as text.
fn listeners(tls: &Value) -> String {
    let mut all: Vec<&str> = Vec::new();
    let entries = tls.as_array().map_or(std::slice::from_ref(tls), Vec::as_slice);
    for entry in entries {
        let listen = entry.get("listen").and_then(Value::as_str).unwrap_or_default();
        if !all.contains(&listen) {
            all.push(listen);
        }
    }
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Values {
        Values::of(&toml::from_str(text).unwrap())
    }

    #[track_caller]
    fn check(old: &str, new: &str, reload: &[&str], upgrade: &[&str]) {
        let found = values(old).changes(&values(new));
        assert_eq!(found.reload, reload);
        assert_eq!(found.upgrade, upgrade);
    }

    #[test]
    fn every_key_of_the_reference_is_known_and_no_other() {
        let mut found = BTreeSet::from(["upstream".to_owned(), "edge.tls.listen".to_owned()]);
        let mut section = String::new();
        for line in REFERENCE.lines() {
            let line = line.trim_start_matches("# ");
            let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let name = line.trim_matches(['[', ']']);
            if line.starts_with('[') && is_word(name) {
                section = name.to_owned();
            } else if let Some((key, _)) = line.split_once(" = ")
                && is_word(key)
                && key == key.to_lowercase()
            {
                found.insert(format!("{section}.{key}"));
            }
        }
        found.remove("upstream.name");
        let known: BTreeSet<String> = KEYS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(known.len(), KEYS.len(), "a key stands twice");
        found.insert("upstream.batch".to_owned());
        assert_eq!(found.symmetric_difference(&known).collect::<Vec<_>>(), Vec::<&String>::new());
    }

    #[test]
    fn a_changed_key_is_named_with_what_it_needs() {
        check("", "", &[], &[]);
        check("", "[privacy]\nip = \"full\"", &[], &[]);
        check("", "[privacy]\nip = \"none\"", &["privacy.ip"], &[]);
        check("[edge]\nthreads = 2", "", &[], &["edge.threads"]);
        check("", "[edge]\norigin_ca = \"a\"", &["edge.origin_ca"], &[]);
        check("[edge]\norigin = [\"a\"]", "[edge]\norigin = \"a\"", &[], &[]);
    }

    #[test]
    fn an_upstream_is_known_by_its_name() {
        let of = |name: &str, rest: &str| {
            format!(
                "[[upstream]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"http://h\"\n{rest}\n"
            )
        };
        let headers = of("a", "headers = { A = \"${B}\" }");
        check(&of("a", ""), &headers, &["upstream.a.headers"], &[]);
        check(&of("a", ""), &of("a", "order = \"portal\""), &[], &["upstream.a.order"]);
        let concurrency = "upstream.a.concurrency_max";
        check(&of("a", ""), &of("a", "concurrency_max = 2"), &[concurrency], &[]);
        let ordered = |rest: &str| of("a", &format!("order = \"portal\"\n{rest}"));
        check(&ordered(""), &ordered("concurrency_max = 2"), &[], &[concurrency]);
        let two = of("b", "") + &of("a", "");
        check(&of("a", ""), &two, &[], &["upstream.b"]);
        check(&two, &of("a", ""), &[], &["upstream.b"]);
        let other = of("a", "ca = \"x\"").replace("\"http\"", "\"legacy\"");
        check(&of("a", ""), &other, &[], &["upstream.a.kind"]);
    }

    #[test]
    fn what_needs_an_upgrade_stays_under_a_reload() {
        #[track_caller]
        fn check(old: &str, new: &str, expect: &str) {
            let [old, new, expect] = [old, new, expect].map(|text| toml::from_str(text).unwrap());
            let without_empty = |mut table: Table| {
                table.retain(|_, section| section.as_table().is_none_or(|keys| !keys.is_empty()));
                table
            };
            assert_eq!(without_empty(overlay(&old, &new)), expect);
        }
        let open = "[admin]\nlisten = \"0.0.0.0:1\"\n";
        check(&format!("{open}token = \"a\""), "", open);
        check(open, "[admin]\ntoken = \"b\"", &format!("{open}token = \"b\""));
        check("", "[edge]\nthreads = 2\nkeepalive_seconds = 3", "[edge]\nkeepalive_seconds = 3");
        let upstream = |name: &str, kind: &str, rest: &str| {
            format!("[[upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\n{rest}\n")
        };
        let old = upstream("a", "http", "url = \"x\"\norder = \"none\"");
        check(&old, "", &old);
        check(&old, &upstream("b", "http", "url = \"y\""), &old);
        check(&old, &upstream("a", "kafka", "topic = \"y\""), &old);
        let new = upstream("a", "http", "url = \"y\"\norder = \"portal\"");
        check(&old, &new, &upstream("a", "http", "url = \"y\"\norder = \"none\""));
        let tls = |listen: &str, cert: &str| {
            format!("[edge]\ntls = [{{ listen = \"{listen}\", cert = \"{cert}\" }}]")
        };
        check(&tls("a:1", "x"), &tls("a:1", "y"), &tls("a:1", "y"));
        check(&tls("a:1", "x"), &tls("a:2", "y"), &tls("a:1", "x"));
        check(&tls("a:1", "x"), "", &tls("a:1", "x"));
    }

    #[test]
    fn certificates_are_reloaded_where_the_listeners_stay() {
        let of = |list: &[&str]| {
            let entry = |l: &&str| format!("{{ listen = \"{l}\", cert = \"c\", key = \"k\" }}");
            format!("[edge]\ntls = [{}]", list.iter().map(entry).collect::<Vec<_>>().join(", "))
        };
        check(&of(&["a:1"]), &of(&["a:1", "a:1"]), &["edge.tls"], &[]);
        check(&of(&["a:1"]), &of(&["a:1", "a:2"]), &[], &["edge.tls.listen"]);
    }
}
