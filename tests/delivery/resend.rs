//! SPEC 7: an event that cannot be delivered stops no other, in a replay of dead letters as well.
//!
//! On tokio's paused time: minutes of retries pass in milliseconds.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::delivery::{RECEIVED_AT_MS, context, sample};
use crate::timed::{Timed, number};
use pixelgate::internals::delivery::dead_letters::{
    self, DeadLetters, Filter, Letter, Progress, Reason,
};
use pixelgate::internals::event::encode_record;
use pixelgate::internals::upstream::{Batch, BatchConfig, Failure, Outcome, Part};
use tokio::sync::watch;
use tokio::time::Instant;
use uuid::Uuid;

const LETTERS: usize = 2_000;
const ANSWERS_AFTER: Duration = Duration::from_millis(10);

/// How a replay ended.
struct Replayed {
    end: Progress,
    /// The events that are still dead letters.
    left: BTreeSet<usize>,
    attempts: usize,
    took: Duration,
}

fn letter(n: usize) -> Letter {
    let mut record = Vec::new();
    let id = Uuid::now_v7();
    encode_record(&mut record, id.as_bytes(), RECEIVED_AT_MS, &sample(n), &context());
    Letter::new("own", 1, Reason::Undeliverable, &Failure::answered(500), &record)
}

fn numbers(batch: &Batch) -> Vec<usize> {
    batch.records().iter().map(|record| number(record)).collect()
}

/// Replays the letters of [`LETTERS`] events, in batches of 500.
async fn replayed(judge: impl Fn(usize, &Batch) -> Outcome + Send + Sync + 'static) -> Replayed {
    let dir = tempfile::tempdir().unwrap();
    let letters: Vec<Letter> = (0..LETTERS).map(letter).collect();
    DeadLetters::new(dir.path(), "own", 64 << 20).append(&letters).unwrap();
    let upstream = Timed::new(move |attempt, batch| (ANSWERS_AFTER, judge(attempt, batch)));
    let (_stop, stopped) = watch::channel(false);
    let (batch, all) = (BatchConfig::default(), Filter::default());
    let began = Instant::now();
    let end = dead_letters::replay(dir.path(), "own", &*upstream, &batch, &all, stopped, |_| ());
    let end = end.await.unwrap();
    let took = began.elapsed();
    let mut left = BTreeSet::new();
    let note = |letter: &Letter| _ = left.insert(number(&letter.record().unwrap()));
    dead_letters::list(dir.path(), "own", &all, note).unwrap();
    Replayed { end, left, attempts: upstream.begun.lock().unwrap().len(), took }
}

fn answered(status: u16) -> Failure {
    Failure::answered(status)
}

#[tokio::test(start_paused = true)]
async fn events_that_always_fail_hold_back_no_other_and_stay_as_they_were() {
    let patterns: [fn(usize) -> bool; 5] =
        [|n| n % 100 == 7, |n| n % 10 == 7, |n| n % 2 == 1, |n| n < 600, |n| n >= 450];
    for (at, is_poison) in patterns.into_iter().enumerate() {
        let replayed = replayed(move |_, batch| {
            let has_poison = numbers(batch).into_iter().any(is_poison);
            if has_poison { Outcome::Retry(answered(500)) } else { Outcome::Delivered }
        });
        let Replayed { end, left, took, .. } = replayed.await;
        let poison: BTreeSet<usize> = (0..LETTERS).filter(|n| is_poison(*n)).collect();
        assert!(left == poison, "pattern {at}: {end:?}");
        let delivered = (LETTERS - poison.len()) as u64;
        assert_eq!((end.delivered, end.undelivered), (delivered, poison.len() as u64));
        assert_eq!((end.refused, end.gave_up.as_deref()), (0, Some("answered 500")));
        assert!(took < Duration::from_secs(120), "pattern {at}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn events_with_a_fault_of_their_own_hold_back_no_other() {
    let is_faulty = |n: usize| n > 500 && n.is_multiple_of(90);
    // The upstream answers for the whole batch, or for each event.
    for is_mixed in [false, true] {
        let replayed = replayed(move |_, batch| {
            let all = numbers(batch);
            let (faulty, good) =
                (0..all.len()).partition::<Vec<usize>, _>(|at| is_faulty(all[*at]));
            match (faulty.is_empty(), is_mixed) {
                (true, _) => Outcome::Delivered,
                (false, false) => Outcome::Fault(answered(404)),
                (false, true) => Outcome::Mixed(vec![
                    Part { places: faulty, outcome: Outcome::Fault(answered(404)) },
                    Part { places: good, outcome: Outcome::Delivered },
                ]),
            }
        });
        let Replayed { end, left, .. } = replayed.await;
        assert_eq!(left, (0..LETTERS).filter(|n| is_faulty(*n)).collect());
        assert_eq!(end.gave_up.as_deref(), Some("answered 404"));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_nothing_for_a_minute_ends_it() {
    let replayed = replayed(|_, _| Outcome::Retry(answered(503))).await;
    assert_eq!((replayed.end.delivered, replayed.end.undelivered), (0, LETTERS as u64));
    assert_eq!(replayed.left.len(), LETTERS);
    assert!(replayed.attempts < 4 * 60, "{} attempts", replayed.attempts);
    assert!(replayed.took < Duration::from_secs(70), "{:?}", replayed.took);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_asks_for_pauses_gets_every_event() {
    let replayed = replayed(|attempt, batch| match attempt % 3 {
        0 => Outcome::Retry(Failure { after: Some(Duration::from_secs(1)), ..answered(429) }),
        1 if batch.records().len() > 3 => Outcome::TooLarge(answered(413)),
        _ => Outcome::Delivered,
    });
    let Replayed { end, left, .. } = replayed.await;
    assert_eq!((end.delivered, end.undelivered, left.len()), (LETTERS as u64, 0, 0));
}
