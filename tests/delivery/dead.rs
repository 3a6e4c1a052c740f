//! Dead letters: on disk before they count, bounded, readable, and replayed under their ids.

use std::fs;
use std::sync::Arc;

use crate::backend::{Act, Backend, Request};
use crate::delivery::Rig;
use pixelgate::internals::delivery::dead_letters;
use pixelgate::internals::delivery::dead_letters::{DeadError, DeadLetters, Letter, Reason};
use pixelgate::internals::upstream::{BatchConfig, Config, Failure, Upstream};

fn upstream(backend: &Backend) -> String {
    let url = backend.url("/in");
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'collector'\nkind = 'http'\nurl = '{url}'\n"
    )
}

fn built(backend: &Backend) -> Arc<dyn Upstream> {
    let text = format!("name = 'collector'\nkind = 'http'\nurl = '{}'", backend.url("/in"));
    toml::from_str::<Config>(&text).unwrap().build().unwrap()
}

/// Refuses each batch that holds one of these events.
fn refusing(ns: &'static [&'static str]) -> impl FnMut(&Request) -> Act {
    move |_| {
        Act::Judge(Arc::new(move |request: &Request| {
            let poison =
                |e: &serde_json::Value| ns.contains(&e["properties"]["n"].as_str().unwrap());
            if request.events().iter().any(poison) { Act::Refuse(422) } else { Act::Take }
        }))
    }
}

/// A rig with 100 events of which the five first are dead letters.
async fn rig_with_five_dead(backend: &Backend) -> Rig {
    backend.script(refusing(&["0", "1", "2", "3", "4"]));
    let mut rig = Rig::start(&upstream(backend));
    rig.accept(100).await;
    rig.settled("collector").await;
    assert_eq!(rig.counts("collector").dead, 5);
    rig.check("collector", &backend.events());
    rig
}

#[tokio::test]
async fn replay_delivers_them_under_the_same_ids_and_empties_the_file() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    backend.script(|_| Act::Take);
    let upstream = built(&backend);
    let mut progress = Vec::new();
    let dir = rig.dead_dir();
    let batch = BatchConfig { events_max: 2, ..BatchConfig::default() };
    let end =
        dead_letters::replay(&dir, "collector", &*upstream, &batch, |p| progress.push(p.delivered))
            .await
            .unwrap();
    assert_eq!((end.delivered, end.refused, end.put_back, end.damaged), (5, 0, 0, 0));
    assert_eq!(progress, [2, 4, 5]);
    assert_eq!(rig.dead("collector").len(), 0);
    // Each accepted event was delivered once, unchanged.
    assert_eq!(rig.check("collector", &backend.events()), 0);
    let again = dead_letters::replay(&dir, "collector", &*upstream, &batch, |_| ()).await.unwrap();
    assert_eq!(again, dead_letters::Progress::default());
    rig.stop().await;
}

#[tokio::test]
async fn an_event_that_is_refused_again_is_a_dead_letter_again() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    backend.script(refusing(&["3"]));
    let upstream = built(&backend);
    let batch = BatchConfig::default();
    let end = dead_letters::replay(&rig.dead_dir(), "collector", &*upstream, &batch, |_| ())
        .await
        .unwrap();
    assert_eq!((end.delivered, end.refused), (4, 1));
    assert_eq!(rig.dead("collector").len(), 1);
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_replay_to_a_failing_upstream_puts_all_letters_back() {
    for status in [401, 503] {
        let backend = Backend::playing([]).await;
        let rig = rig_with_five_dead(&backend).await;
        let before = fs::read(rig.dead_dir().join("collector.ndjson")).unwrap();
        backend.script(move |_| Act::Refuse(status));
        let seen = backend.seen().len();
        let upstream = built(&backend);
        let batch = BatchConfig { events_max: 2, ..BatchConfig::default() };
        let end = dead_letters::replay(&rig.dead_dir(), "collector", &*upstream, &batch, |_| ())
            .await
            .unwrap();
        assert_eq!((end.delivered, end.put_back), (0, 5));
        assert_eq!(end.gave_up, Some(format!("answered {status}")));
        // A failure that may pass is retried; then the rest of the file is put back unattempted.
        let attempts = if status == 503 { dead_letters::ATTEMPTS_MAX as usize } else { 1 };
        assert_eq!(backend.seen().len() - seen, attempts);
        assert_eq!(fs::read(rig.dead_dir().join("collector.ndjson")).unwrap(), before);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_replay_that_ended_early_is_continued_by_the_next() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let dir = rig.dead_dir();
    let letters = dir.join("collector.ndjson");
    let text = fs::read_to_string(&letters).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    // Three letters in the renamed file of a replay that ended early; since then two more letters
    // and half of a third were written.
    fs::write(dir.join("collector.replaying.ndjson"), lines[..3].concat()).unwrap();
    fs::write(&letters, format!("{}{{\"half\":", lines[3..].concat())).unwrap();
    backend.script(|_| Act::Take);
    let upstream = built(&backend);
    let batch = BatchConfig::default();
    let end = dead_letters::replay(&dir, "collector", &*upstream, &batch, |_| ()).await.unwrap();
    assert_eq!((end.delivered, end.damaged), (5, 0));
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_letter_that_was_changed_by_hand_fails_no_batch() {
    let backend = Backend::playing([]).await;
    let rig = rig_with_five_dead(&backend).await;
    let mut letters = rig.dead("collector");
    let good = letters[0].record().unwrap();
    let json = good.windows(8).position(|bytes| bytes == b"{\"portal").unwrap();
    // Not UTF-8, not JSON, and no record at all.
    for (letter, (place, byte)) in letters.iter_mut().zip([(json + 3, 0xFF), (json, b'['), (0, 9)])
    {
        let mut record = good.to_vec();
        record[place] = byte;
        *letter = Letter::new("collector", 1, Reason::Rejected, &Failure::new("x"), &record);
    }
    let dir = rig.dead_dir();
    fs::remove_file(dir.join("collector.ndjson")).unwrap();
    DeadLetters::new(&dir, "collector", 1 << 20).append(&letters).unwrap();
    backend.script(|_| Act::Take);
    let (upstream, batch) = (built(&backend), BatchConfig::default());
    let seen = backend.seen().len();
    let end = dead_letters::replay(&dir, "collector", &*upstream, &batch, |_| ()).await.unwrap();
    assert_eq!((end.delivered, end.refused, end.put_back, end.damaged), (2, 3, 0, 0));
    assert_eq!(backend.seen().len() - seen, 1, "the others were sent together");
    assert_eq!(rig.dead("collector").len(), 3);
    rig.stop().await;
}

fn letter(n: usize) -> Letter {
    let failure = Failure::answered(400);
    Letter::new("u", n as u64, Reason::Rejected, &failure, format!("record {n}").as_bytes())
}

#[test]
fn the_file_is_bounded_and_refuses_letters_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let line = serde_json::to_vec(&letter(0)).unwrap().len() as u64 + 1;
    let letters = DeadLetters::new(dir.path(), "u", 3 * line);
    letters.append(&[letter(0), letter(1)]).unwrap();
    let refused = letters.append(&[letter(2), letter(3)]).unwrap_err();
    assert!(matches!(refused, DeadError::Full { bytes_max } if bytes_max == 3 * line));
    letters.append(&[letter(2)]).unwrap();
    assert!(matches!(letters.append(&[letter(3)]), Err(DeadError::Full { .. })));
    let mut seen = Vec::new();
    dead_letters::list(dir.path(), "u", |l| seen.push(l.record().unwrap())).unwrap();
    assert_eq!(seen, ["record 0", "record 1", "record 2"]);
}

#[test]
fn a_torn_letter_is_cut_off_by_the_next_and_a_damaged_one_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let letters = DeadLetters::new(dir.path(), "u", 1 << 20);
    letters.append(&[letter(0)]).unwrap();
    let path = dir.path().join("u.ndjson");
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(b"not json\n{\"time\":\"2026");
    fs::write(&path, text).unwrap();
    letters.append(&[letter(1)]).unwrap();
    let mut seen = Vec::new();
    let summary = dead_letters::list(dir.path(), "u", |l| seen.push(l.record().unwrap())).unwrap();
    assert_eq!((summary.letters, summary.damaged), (2, 1));
    assert_eq!(seen, ["record 0", "record 1"]);
}

#[test]
fn a_missing_file_is_an_empty_list() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        dead_letters::list(dir.path(), "u", |_| ()).unwrap(),
        dead_letters::Summary::default()
    );
}

#[tokio::test]
async fn while_letters_cannot_be_written_their_events_wait_and_others_are_delivered() {
    let backend = Backend::start(refusing(&["5"])).await;
    let mut rig = Rig::start(&upstream(&backend));
    // A file stands where the folder should be.
    fs::write(rig.dead_dir(), "in the way").unwrap();
    rig.accept(100).await;
    rig.until("collector", |s| s.state.as_str() == "dead_letters_failing").await;
    assert_eq!(rig.counts("collector").dead, 0);
    fs::remove_file(rig.dead_dir()).unwrap();
    rig.settled("collector").await;
    assert_eq!(rig.counts("collector").dead, 1);
    assert_eq!(rig.check("collector", &backend.events()), 0);
    rig.stop().await;
}
