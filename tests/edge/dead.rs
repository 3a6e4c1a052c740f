//! SPEC 7: only events that a backend refuses for good become dead letters.

use crate::backend::{Act, Backend, Request};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Edge, Setup, command};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// `pixelgate dead list` or `replay` with an edge's configuration: exit code and output.
pub fn dead(edge: &Edge, what: &str) -> (Option<i32>, String) {
    let output = command(&edge.dir().join("edge.toml"), &["dead", what]).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// The dead letters that `pixelgate dead list` prints.
pub fn letters(edge: &Edge) -> Vec<Value> {
    let (code, printed) = dead(edge, "list");
    assert_eq!(code, Some(0));
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn is_poison(event: &Value) -> bool {
    event["event"] == "poison"
}

fn ids<'a>(events: impl IntoIterator<Item = &'a Value>) -> BTreeSet<u64> {
    let id = |event: &Value| event["external_id"].as_str().unwrap().parse().unwrap();
    events.into_iter().map(id).collect()
}

/// Refuses every batch that holds poison, as a backend does that takes a batch or none of it.
fn refuse_poison(request: &Request) -> Act {
    if request.events().iter().any(is_poison) { Act::Refuse(400) } else { Act::Take }
}

#[test]
fn poison_events_die_alone_and_every_count_survives_the_process() {
    let judge = || Act::Judge(std::sync::Arc::new(refuse_poison));
    let backend = RUNTIME.block_on(Backend::start(move |_| judge()));
    let mut edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    let (poison, good): (BTreeSet<u64>, BTreeSet<u64>) = (0..100).partition(|n| n % 10 == 3);
    for n in 0..100 {
        let name = if poison.contains(&n) { "poison" } else { "good" };
        assert_eq!(edge.event(&format!("_a=62515&_n={name}&id={n}")).status, 200);
    }
    // A crash forgets acknowledgements of the last moments: the same events end the same way
    // again, and count once. A stop forgets nothing.
    for restart in [Some(Edge::kill as fn(Edge) -> _), Some(Edge::stop), None] {
        let row = edge.wait_delivered("collector");
        let counts = ["accepted", "delivered", "dead"].map(|count| row[count].clone());
        assert_eq!(counts, [json!(100), json!(90), json!(10)]);
        assert_eq!(ids(&backend.events()), good);
        let letters = letters(&edge);
        assert_eq!(ids(letters.iter().map(|letter| &letter["event"])), poison);
        for letter in &letters {
            assert_eq!((&letter["reason"], &letter["status"]), (&json!("rejected"), &json!(400)));
        }
        let Some(end) = restart else { break };
        edge = Edge::start_in(end(edge));
    }

    let before = backend.events().len();
    assert_eq!(dead(&edge, "replay").0, Some(0), "refused again is not failed");
    assert_eq!(ids(letters(&edge).iter().map(|letter| &letter["event"])), poison);
    backend.script(|_| Act::Take);
    assert_eq!(dead(&edge, "replay").0, Some(0));
    assert_eq!(letters(&edge), Vec::<Value>::new());
    assert_eq!(ids(&backend.events()[before..]), poison);
}
