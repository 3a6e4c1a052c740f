//! Routed records: each upstream gets and counts what is meant for it, whatever happens to the
//! process, the configuration and the disk.

use std::path::PathBuf;

use pixelgate::internals::spool::{Ack, Spool, UpstreamStatus};

use crate::spool_sim::SimFs;
use crate::spool_sim::rig::{append_all, close, config, drain, of, open, read};

const BOTH: [&str; 2] = ["near", "far"];

/// Accepted, delivered, lost and pending of an upstream.
fn counts(spool: &Spool, name: &str) -> [u64; 4] {
    let UpstreamStatus { accepted, delivered, dead, lost, pending, .. } = of(spool, name);
    assert_eq!(accepted, delivered + dead + lost + pending, "{name}");
    [accepted, delivered, lost, pending]
}

fn segments(fs: &SimFs) -> Vec<PathBuf> {
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|ext| ext == "seg");
    fs.files().into_iter().filter(is_segment).collect()
}

#[test]
fn what_is_not_meant_for_an_upstream_is_in_none_of_its_counts_read_or_not() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &BOTH);
    append_all(&spool, &["all", ">near>a", ">far>b", ">near>far>c", ">far>d"]);
    assert_eq!(counts(&spool, "near"), [3, 0, 0, 3]);
    assert_eq!(counts(&spool, "far"), [4, 0, 0, 4]);
    assert_eq!(drain(&spool, "near"), ["all", ">near>a", ">near>far>c"]);
    assert_eq!(counts(&spool, "near"), [3, 3, 0, 0]);
    assert_eq!(counts(&spool, "far"), [4, 0, 0, 4]);
    (0..3).for_each(|_| spool.checkpoint());
    assert_ne!(spool.status().bytes, 0, "it holds what waits for the other one");
    assert_eq!(drain(&spool, "far"), ["all", ">far>b", ">near>far>c", ">far>d"]);
    assert_eq!((counts(&spool, "far"), spool.status().bytes), ([4, 4, 0, 0], 0));
}

#[test]
fn an_upstream_that_gets_nothing_holds_nothing_back() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &BOTH);
    let long = format!(">near>{}", "x".repeat(1000));
    (0..20).for_each(|_| append_all(&spool, &[&long]));
    assert_eq!(drain(&spool, "near").len(), 20);
    let before = segments(&fs).len();
    assert_eq!(drain(&spool, "far"), [""; 0]);
    (0..3).for_each(|_| spool.checkpoint());
    assert_eq!((counts(&spool, "far"), spool.status().bytes), ([0; 4], 0));
    assert!(segments(&fs).len() < before, "passed over is as good as acknowledged");
}

#[test]
fn the_counts_are_exact_after_a_kill_at_any_moment() {
    let texts: Vec<String> = (0..60)
        .map(|n| match n % 3 {
            0 => format!(">near>{n}"),
            1 => format!(">far>{n}"),
            _ => format!("{n} {}", "x".repeat(300)),
        })
        .collect();
    for appended in 0..texts.len() {
        let disk = SimFs::new(1);
        let fs = disk.process();
        let spool = open(&fs, &config(), &BOTH);
        for (at, text) in texts[..appended].iter().enumerate() {
            append_all(&spool, &[text]);
            if at == appended / 2 {
                spool.checkpoint();
            }
        }
        let mut reader = spool.reader("near").expect("configured");
        let (_, ids) = read(&mut reader);
        // One event is stuck; those behind it are delivered.
        reader.acknowledger().acknowledge(&ids[1.min(ids.len())..], Ack::Delivered);
        let expect = BOTH.map(|name| counts(&spool, name));
        disk.kill(&fs);
        let next = disk.process();
        let spool = open(&next, &config(), &BOTH);
        assert_eq!(BOTH.map(|name| counts(&spool, name)), expect, "{appended} events");
        assert_eq!(drain(&spool, "near").len() as u64, expect[0][3]);
        assert_eq!(drain(&spool, "far").len() as u64, expect[1][3]);
        (0..3).for_each(|_| spool.checkpoint());
        assert_eq!(spool.status().bytes, 0);
    }
}

#[test]
fn an_upstream_that_is_added_gets_what_is_meant_for_all() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &["near"]);
    append_all(&spool, &["a", ">near>b", ">near>new>c", "d"]);
    close(&spool);
    let spool = open(&fs, &config(), &["near", "new"]);
    assert_eq!(counts(&spool, "new"), [3, 0, 0, 3]);
    assert_eq!(drain(&spool, "new"), ["a", ">near>new>c", "d"]);
    assert_eq!(counts(&spool, "near"), [4, 0, 0, 4]);
    close(&spool);
}

#[test]
fn an_upstream_that_is_removed_finds_what_waited_for_it() {
    let fs = SimFs::new(1);
    let spool = open(&fs, &config(), &BOTH);
    append_all(&spool, &["a", ">near>b", ">far>c"]);
    assert_eq!(drain(&spool, "near").len(), 2);
    close(&spool);
    let spool = open(&fs, &config(), &["near"]);
    append_all(&spool, &[">near>d"]);
    assert_eq!((counts(&spool, "near"), drain(&spool, "near").len()), ([3, 2, 0, 1], 1));
    (0..3).for_each(|_| spool.checkpoint());
    close(&spool);
    let spool = open(&fs, &config(), &BOTH);
    assert_eq!((counts(&spool, "far"), counts(&spool, "near")), ([2, 0, 0, 2], [3, 3, 0, 0]));
    assert_eq!(drain(&spool, "far"), ["a", ">far>c"]);
}

#[test]
fn what_is_damaged_is_lost_for_every_upstream_and_counted_once() {
    // Each third record is routed; one record after the other is damaged.
    let texts = [">near>a", ">far>b", "all c", ">near>d", ">far>e", "all f"];
    for damaged in 0..texts.len() {
        let fs = SimFs::new(1);
        let spool = open(&fs, &config(), &BOTH);
        append_all(&spool, &texts);
        close(&spool);
        let file = segments(&fs).pop().expect("a segment");
        fs.damage(&file, |bytes| {
            let needle = texts[damaged].as_bytes();
            let at = bytes.windows(needle.len()).position(|window| window == needle);
            bytes[at.expect("it is there")] ^= 0x10;
        });
        let spool = open(&fs, &config(), &BOTH);
        for name in BOTH {
            let expect: Vec<&str> = (texts.iter().enumerate())
                .filter(|(at, text)| {
                    *at != damaged && (text.starts_with("all") || text[1..].starts_with(name))
                })
                .map(|(_, text)| *text)
                .collect();
            assert_eq!(drain(&spool, name), expect, "{name} without {damaged}");
            let delivered = expect.len() as u64;
            // At the lane's end, the cursor tells a damaged record from the rest of a torn write.
            assert_eq!(counts(&spool, name), [delivered + 1, delivered, 1, 0], "{damaged}");
        }
        close(&spool);
        let spool = open(&fs, &config(), &BOTH);
        BOTH.iter().for_each(|name| assert_eq!(counts(&spool, name)[3], 0));
        (0..3).for_each(|_| spool.checkpoint());
        assert_eq!(spool.status().bytes, 0);
    }
}

#[test]
fn many_foreign_records_are_passed_over_in_turns() {
    let fs = SimFs::new(1);
    let spool = open(
        &fs,
        &pixelgate::internals::spool::Config {
            segment_bytes: bytesize::ByteSize::mib(4),
            bytes_max: bytesize::ByteSize::mib(64),
            ..config()
        },
        &BOTH,
    );
    let long = format!(">near>{}", "x".repeat(250_000));
    (0..40).for_each(|_| append_all(&spool, &[&long]));
    append_all(&spool, &["last"]);
    let mut reader = spool.reader("far").expect("configured");
    assert!(reader.try_read(10, 1 << 20).is_empty(), "one read passes over a part of them");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let entries = runtime.block_on(reader.read(10, 1 << 20));
    assert_eq!(&entries[0].payload[..], b"last");
    assert_eq!(counts(&spool, "far"), [1, 0, 0, 1]);
}
