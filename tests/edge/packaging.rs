//! Compares the files in `packaging/` with the binary and checks them with the tools that read
//! them.

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Setup, command, wait_for};
use crate::terminal::is_there;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DASHBOARD: &str = include_str!("../../packaging/grafana/pixelgate.json");
const ALERTS: &str = include_str!("../../packaging/prometheus/alerts.yml");
const CONFIG: &str = include_str!("../../packaging/pixelgate.toml");
const MANIFESTS: &str = include_str!("../../packaging/kubernetes/pixelgate.yaml");
const DOCKERFILE: &str = include_str!("../../packaging/Dockerfile");
const DOCKERIGNORE: &str = include_str!("../../packaging/Dockerfile.dockerignore");

/// Labels that Prometheus itself adds to each sample.
const ADDED_LABELS: [&str; 3] = ["instance", "job", "le"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn yaml_documents(text: &str) -> Vec<Value> {
    let documents = text
        .split("\n---\n")
        .filter(|part| part.lines().any(|line| !line.is_empty() && !line.starts_with('#')));
    documents.map(|part| serde_saphyr::from_str(part).unwrap()).collect()
}

/// The texts under this key, wherever they are.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                if let (true, Value::String(text)) = (name == key, value) {
                    found.push(text);
                }
                all(value, key, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| all(value, key, found)),
        _ => {}
    }
}

/// A metric as an expression names it: its name, and `label="value"` where one is named.
type Asked = (String, Vec<(String, Option<String>)>);

fn asked(expression: &str) -> Vec<Asked> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("pixelgate_") {
        let rest = &expression[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let labels = rest[end..].strip_prefix('{').and_then(|rest| rest.split('}').next());
        let labels = labels.unwrap_or_default().split(',').filter(|label| !label.is_empty());
        let labels = labels.map(|label| match label.split_once("=~") {
            Some((name, _)) => (name.to_owned(), None),
            None => {
                let (name, value) = label.split_once('=').expect(label);
                (name.to_owned(), Some(value.trim_matches('"').to_owned()))
            }
        });
        found.push((rest[..end].to_owned(), labels.collect()));
    }
    found
}

/// The metrics of a scrape: metric, label, values.
fn exposed(text: &str) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut found = BTreeMap::<String, BTreeMap<String, BTreeSet<String>>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let metric = found.entry(name.to_owned()).or_default();
        let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
        for label in labels.map_or("", |(labels, _)| labels).split(',').filter(|l| !l.is_empty()) {
            let (label, value) = label.split_once('=').unwrap();
            let values = metric.entry(label.to_owned()).or_default();
            values.insert(value.trim_matches('"').to_owned());
        }
    }
    found
}

#[test]
fn dashboard_and_alerts_ask_for_nothing_but_what_the_edge_exposes() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(401)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    for query in ["_a=62515&_n=a", "_a=1&_n=a", "_a=62515&_n=a&email=x", "_a=62515&_n=a&Bad-=1"] {
        edge.event(query);
    }
    wait_for("a refusal", || edge.upstream("collector")["state"] == "misconfigured");
    let exposed = exposed(&String::from_utf8(edge.admin("/metrics").body).unwrap());

    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut expressions = Vec::new();
    all(&dashboard, "expr", &mut expressions);
    all(&dashboard, "query", &mut expressions);
    let alerts = yaml_documents(ALERTS);
    all(&alerts[0], "expr", &mut expressions);
    assert!(expressions.len() > 25, "{expressions:?}");
    for (name, labels) in expressions.iter().flat_map(|expression| asked(expression)) {
        let metric = exposed.get(&name).unwrap_or_else(|| panic!("/metrics has no {name}"));
        for (label, value) in labels {
            let Some(values) = metric.get(&label) else {
                assert!(ADDED_LABELS.contains(&label.as_str()), "{name} has no label {label}");
                continue;
            };
            let known = value.as_ref().is_none_or(|value| values.contains(value));
            assert!(known, "{name} has no {label}={value:?}");
        }
    }
}

#[test]
fn promtool_takes_the_rules_and_they_fire_as_they_should() {
    if !is_there("promtool") {
        return;
    }
    for (what, file) in [
        (["check", "rules"], "alerts.yml"),
        (["test", "rules"], "alerts_test.yml"),
        (["check", "config"], "scrape.yml"),
    ] {
        let path = root().join("packaging/prometheus").join(file);
        let output = Command::new("promtool").args(what).arg(path).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&said));
    }
}

/// Checks a packaged configuration with the binary, in a folder that holds its files.
fn check_config(text: &str, portals: &str) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let text = text.replace("/etc/pixelgate", at).replace("/var/lib/pixelgate", at);
    let text = text.replace("config/portals.toml", &format!("{at}/portals.toml"));
    let config = dir.path().join("pixelgate.toml");
    std::fs::write(&config, text).unwrap();
    std::fs::write(dir.path().join("portals.toml"), portals).unwrap();
    let mut check = command(&config, &["check"]);
    check.env("PIXELGATE__ADMIN__TOKEN", "0123456789abcdef");
    let output = check.env("SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("portals: 2"), "{out}");
}

#[test]
fn the_packaged_configurations_are_valid() {
    let portals = std::fs::read_to_string(root().join("config/portals.toml")).unwrap();
    check_config(CONFIG, &portals);
    check_config(include_str!("../../config/collector.toml"), &portals);
    let manifests = yaml_documents(MANIFESTS);
    let map = of_kind(&manifests, "ConfigMap");
    let text = |name: &str| map["data"][name].as_str().unwrap();
    check_config(text("pixelgate.toml"), text("portals.toml"));
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    manifests.iter().find(|manifest| manifest["kind"] == kind).unwrap()
}

#[test]
fn the_manifests_fit_each_other_and_the_edge() {
    let manifests = yaml_documents(MANIFESTS);
    let set = &of_kind(&manifests, "StatefulSet")["spec"];
    let pod = &set["template"]["spec"];
    let container = &pod["containers"][0];
    let labels = &set["template"]["metadata"]["labels"];
    assert_eq!(&set["selector"]["matchLabels"], labels);
    for service in manifests.iter().filter(|manifest| manifest["kind"] == "Service") {
        assert_eq!(&service["spec"]["selector"], labels);
        let port = &service["spec"]["ports"][0]["targetPort"];
        let ports = container["ports"].as_array().unwrap();
        assert!(ports.iter().any(|known| &known["name"] == port), "{port}");
    }
    let service = manifests.iter().find(|m| m["metadata"]["name"] == set["serviceName"]).unwrap();
    assert_eq!(service["spec"]["clusterIP"], "None");
    let base = include_str!("../../packaging/kubernetes/kustomization.yaml");
    assert_eq!(yaml_documents(base)[0]["resources"], serde_json::json!(["pixelgate.yaml"]));
    let map = of_kind(&manifests, "ConfigMap");
    assert_eq!(pod["volumes"][0]["configMap"]["name"], map["metadata"]["name"]);
    assert_eq!(set["volumeClaimTemplates"][0]["metadata"]["name"], "state");

    // The port for events is open to all, the admin port to the named namespace.
    let policy = &of_kind(&manifests, "NetworkPolicy")["spec"];
    assert_eq!(&policy["podSelector"]["matchLabels"], labels);
    assert_eq!(policy["policyTypes"], serde_json::json!(["Ingress"]));
    let rules = policy["ingress"].as_array().unwrap();
    let ports: Vec<_> = rules.iter().map(|rule| &rule["ports"][0]["port"]).collect();
    assert_eq!(ports, ["http", "admin"]);
    assert_eq!(rules[0].get("from"), None);
    assert!(rules[1]["from"][0]["namespaceSelector"]["matchLabels"].is_object());

    // Each probe is a command of the binary, and has more time than the command takes itself.
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let command: Vec<&str> = container[probe]["exec"]["command"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        assert!(matches!(command[..], ["pixelgate", "probe", "livez" | "readyz"]), "{command:?}");
        assert!(container[probe]["timeoutSeconds"].as_u64() > Some(5), "{probe}");
    }
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let user = pod["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(DOCKERFILE.contains(&format!("\nUSER {user}:")), "the image's user");
}

#[test]
fn kustomize_builds_the_base_and_an_overlay_sets_its_image() {
    if !is_there("kubectl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, overlay) = (dir.path().join("base"), dir.path().join("overlay"));
    std::fs::create_dir_all(&base).unwrap();
    std::fs::create_dir_all(&overlay).unwrap();
    for file in ["kustomization.yaml", "pixelgate.yaml"] {
        std::fs::copy(root().join("packaging/kubernetes").join(file), base.join(file)).unwrap();
    }
    let lines = "resources: [../base]\nnamespace: pixels\n\
                 images: [{ name: pixelgate, newName: registry.example/pixelgate, newTag: v1 }]\n";
    std::fs::write(overlay.join("kustomization.yaml"), lines).unwrap();
    let built = Command::new("kubectl").arg("kustomize").arg(&overlay).output().unwrap();
    let text = String::from_utf8(built.stdout).unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let built = yaml_documents(&text);
    let kinds = |manifests: &[Value]| -> BTreeSet<String> {
        manifests.iter().map(|m| format!("{} {}", m["kind"], m["metadata"]["name"])).collect()
    };
    assert_eq!(kinds(&built), kinds(&yaml_documents(MANIFESTS)));
    assert!(built.iter().all(|manifest| manifest["metadata"]["namespace"] == "pixels"));
    let set = &of_kind(&built, "StatefulSet")["spec"]["template"]["spec"];
    assert_eq!(set["containers"][0]["image"], "registry.example/pixelgate:v1");
}

#[test]
fn a_pod_is_taken_out_of_the_service_before_its_edge_closes() {
    let manifests = yaml_documents(MANIFESTS);
    let pod = &of_kind(&manifests, "StatefulSet")["spec"]["template"]["spec"];
    let text = of_kind(&manifests, "ConfigMap")["data"]["pixelgate.toml"].as_str().unwrap();
    let config: toml::Table = toml::from_str(text).unwrap();
    let drain = config["edge"]["drain_seconds"].as_integer().unwrap().unsigned_abs();
    let probe = &pod["containers"][0]["readinessProbe"];
    let [period, failures] =
        ["periodSeconds", "failureThreshold"].map(|key| probe[key].as_u64().unwrap());
    assert!(drain > period * failures);
    // The edge has time for both grace periods of a stop.
    assert!(pod["terminationGracePeriodSeconds"].as_u64() > Some(drain + 2 * 10));
}

#[test]
fn the_dockerfile_copies_what_is_there_and_runs_as_an_unprivileged_user() {
    let sent: Vec<&str> = DOCKERIGNORE.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let mut copied = 0;
    let copies = DOCKERFILE.lines().filter_map(|line| line.strip_prefix("COPY "));
    for copy in copies.filter(|copy| !copy.starts_with("--from")) {
        let mut words: Vec<&str> = copy.split(' ').collect();
        words.pop();
        for source in words {
            assert!(root().join(source).exists(), "{source} is not there");
            let covers = |sent: &&str| source == *sent || source.starts_with(&format!("{sent}/"));
            assert!(sent.iter().any(covers), "{source} is not sent to the builder");
            copied += 1;
        }
    }
    assert!(copied >= 8, "{copied}");
    // Cargo fails where the file of a target in the manifest is missing.
    let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
    for kind in ["bench", "test", "example", "bin"] {
        for target in manifest.get(kind).and_then(|t| t.as_array()).into_iter().flatten() {
            let path = target.get("path").and_then(|path| path.as_str());
            let folder = path.map_or(PathBuf::from("benches"), PathBuf::from);
            let first = folder.components().next().unwrap().as_os_str().to_str().unwrap();
            assert!(sent.contains(&first), "{first} is not sent to the builder");
        }
    }
    let last_stage = DOCKERFILE.rsplit("\nFROM ").next().unwrap();
    let user = last_stage.lines().filter_map(|line| line.strip_prefix("USER ")).next_back();
    let user = user.and_then(|user| user.split(':').next()?.parse::<u32>().ok());
    assert!(user.is_some_and(|user| user > 0), "{user:?}");
    assert!(last_stage.contains("CMD [\"pixelgate\", \"probe\"]"));
}

#[test]
fn a_rotation_reloads_every_unit_of_an_edge_and_no_other() {
    let rotation = std::fs::read_to_string(root().join("packaging/logrotate/pixelgate")).unwrap();
    let script = rotation.split("postrotate\n").nth(1).unwrap().split("endscript").next().unwrap();
    // What would reload the units says what it is asked for instead.
    let dir = tempfile::tempdir().unwrap();
    let systemctl = dir.path().join("systemctl");
    std::fs::write(&systemctl, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let asked = Command::new("sh").args(["-c", script]).env("PATH", path).output().unwrap();
    let asked = String::from_utf8(asked.stdout).unwrap();
    let (verb, pattern) = asked.trim_end().split_once('\n').unwrap();
    // Fails for no unit that does not run.
    assert_eq!(verb, "try-reload-or-restart");
    for (unit, expect) in [
        ("pixelgate.service", true),
        ("pixelgate@a.service", true),
        ("pixelgate@eu.service", true),
        ("pixelgate-exporter.service", false),
        ("pixelgate.slice", false),
    ] {
        let fits = format!("case '{unit}' in {pattern}) exit 0;; esac; exit 1");
        let status = Command::new("sh").args(["-c", &fits]).status().unwrap();
        assert_eq!(status.success(), expect, "{unit} and {pattern}");
    }
}
