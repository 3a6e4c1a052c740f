//! The files and folders that a configuration names, and those that the edge makes. The access log
//! must be none of them, because its lines would spoil them.
//!
//! Here, paths are compared as texts, each made absolute. So no file system is asked, which might
//! hang. `access_log/others.rs` compares the files themselves when the access log is opened.

use super::keys;
use crate::access_log::config::Config as AccessLog;
use crate::access_log::others::OtherFiles;
use crate::edge::handover::SOCKET_NAME;
use crate::edge::listen::Address;
use crate::edge::running::FILE_NAME;
use crate::real_path::whole;
use std::path::Path;
use toml::{Table, Value};

/// The last parts of the keys that name a file which is read. The keys of librdkafka's properties
/// that name a file end with `.location`.
const FILES: [&str; 6] = ["ca", "cert", "credentials", "key", "origin_ca", "source"];
/// The last part of the keys that name a folder which is written.
const FOLDER: &str = "dir";
/// The files in `edge.state_dir`.
const STATE_FILES: [&str; 3] = [FILE_NAME, SOCKET_NAME, "portals.copy"];
/// What the configuration file itself is.
const CONFIGURATION: &str = "the file that --config names";

/// The files and folders that the configuration at `path` names, and the file at `path` itself.
/// `table` has its keys.
pub fn named(path: &Path, table: &Table) -> OtherFiles {
    let mut others = OtherFiles::default();
    others.files.push((CONFIGURATION.to_owned(), whole(path)));
    for (key, value) in texts(table) {
        let name = key.rsplit('.').next().unwrap_or_default();
        let named = whole(Path::new(&value));
        if FILES.contains(&name) || key.ends_with(".location") {
            others.files.push((format!("the file that {key} names"), named));
        } else if name == FOLDER {
            others.folders.push((key, named));
        }
    }
    others
}

/// Adds what the edge makes: `edge.state_dir`, the files in it, and Unix sockets.
pub fn add_own(others: &mut OtherFiles, state_dir: &Path, listeners: &[(&str, Address)]) {
    others.made.push(("edge.state_dir".to_owned(), whole(state_dir)));
    let state = STATE_FILES.map(|name| ("a file of the edge in edge.state_dir".to_owned(), name));
    others.files.extend(state.map(|(what, name)| (what, whole(&state_dir.join(name)))));
    for (key, address) in listeners {
        if let Address::Unix(path) = address {
            others.files.push((format!("the socket that {key} names"), whole(path)));
        }
    }
}

/// Checks that `access_log.path` is none of these files, and in none of these folders. The error
/// names the key of the file or folder.
pub fn check_access_log(log: &AccessLog, others: &OtherFiles) -> Result<(), String> {
    if !log.is_on() || log.is_stderr() {
        return Ok(());
    }
    let log = whole(&log.path);
    if let Some((what, _)) = others.files.iter().find(|(_, file)| log == *file) {
        return Err(match what.as_str() {
            CONFIGURATION => "is this configuration file".to_owned(),
            what => format!("is {what}"),
        });
    }
    match others.folders.iter().find(|(_, folder)| log.starts_with(folder)) {
        Some((key, _)) => Err(format!("is in the folder that {key} names")),
        None => Ok(()),
    }
}

/// The values that are texts, each with its key, the defaults included. The key of an upstream's
/// value holds the name of the upstream.
fn texts(table: &Table) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut all = keys::defaults();
    for (section, keys) in table {
        match (all.get_mut(section), keys) {
            (Some(Value::Table(all)), Value::Table(keys)) => all.extend(keys.clone()),
            _ => _ = all.insert(section.clone(), keys.clone()),
        }
    }
    for (section, value) in &all {
        collect(section.clone(), value, &mut found);
    }
    found
}

fn collect(key: String, value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::String(text) => found.push((key, text.clone())),
        Value::Array(all) => {
            for one in all {
                let name = one.get("name").and_then(Value::as_str);
                let key = name.map_or_else(|| key.clone(), |name| format!("{key}.{name}"));
                collect(key, one, found);
            }
        }
        Value::Table(keys) => {
            // The `key` of kind `kafka` is not a file.
            let is_kafka = keys.get("kind").and_then(Value::as_str) == Some("kafka");
            for (name, value) in keys.iter().filter(|(name, _)| !is_kafka || *name != "key") {
                collect(format!("{key}.{name}"), value, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_log_is_no_other_file_of_the_configuration() {
        let text = "[edge]\norigin_ca = \"/etc/ca.pem\"\n\
             tls = { listen = \"a:1\", cert = \"/etc/c.pem\", key = \"/etc/k.pem\" }\n\
             [portals]\nsource = \"lists/portals.toml\"\n\
             [[upstream]]\nname = \"crm\"\nkind = \"http\"\nca = \"crm.pem\"\n\
             [[upstream]]\nname = \"disk\"\nkind = \"file\"\ndir = \"/var/events\"\n\
             [[upstream]]\nname = \"bus\"\nkind = \"nats\"\ncredentials = \"/etc/edge.creds\"\n\
             [[upstream]]\nname = \"log\"\nkind = \"kafka\"\nkey = \"portal\"\n\
             properties = { \"ssl.ca.location\" = \"/etc/kafka.pem\" }\n";
        let table: Table = toml::from_str(text).unwrap();
        let check = |path: &str, expect: Option<&str>| {
            let log = AccessLog { path: path.into(), ..AccessLog::default() };
            let others = named(Path::new("conf/edge.toml"), &table);
            let wrong = check_access_log(&log, &others).err();
            assert_eq!(wrong.is_some(), expect.is_some(), "{path}: {wrong:?}");
            assert!(wrong.unwrap_or_default().contains(expect.unwrap_or_default()), "{path}");
        };
        for free in ["", "stderr", "access.log", "portal", "data/access.log", "/var/events.log"] {
            check(free, None);
        }
        check("conf/edge.toml", Some("this configuration"));
        check("./conf//edge.toml", Some("this configuration"));
        check("/etc/ca.pem", Some("edge.origin_ca"));
        check("/etc/c.pem", Some("edge.tls.cert"));
        check("/etc/k.pem", Some("edge.tls.key"));
        check("lists/portals.toml", Some("portals.source"));
        check("crm.pem", Some("upstream.crm.ca"));
        check("/etc/edge.creds", Some("upstream.bus.credentials"));
        check("/etc/kafka.pem", Some("upstream.log.properties.ssl.ca.location"));
        check("data/spool/access.log", Some("spool.dir"));
        check("data/spool/dead/crm.ndjson", Some("spool.dir"));
        check("/var/events/access.log", Some("upstream.disk.dir"));
    }
}
