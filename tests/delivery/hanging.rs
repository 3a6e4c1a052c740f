//! SPEC 7: attempts that hang are seen and end, and nothing waits for one that went elsewhere.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::backend::{Act, Backend};
use crate::delivery::{HANGS_AFTER, RECEIVED_AT_MS, sample};
use crate::timed::{Timed, number};
use pixelgate::custom::PortalFormat;
use pixelgate::internals::event;
use pixelgate::internals::upstream::{Batch, Failure, Outcome};
use pixelgate::{Config, PixelGate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn attempts_of_which_none_ends_are_down_and_a_fault() {
    let upstream = Timed::new(|attempt, _| match attempt {
        0 => (300 * SECOND, Outcome::Delivered),
        _ => (SECOND / 100, Outcome::Delivered),
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
    rig.accept(20);
    sleep(58 * SECOND).await;
    assert_eq!((rig.status("own").state.as_str(), rig.faults.list().len()), ("ok", 0));
    sleep(5 * SECOND).await;
    let status = rig.status("own");
    let error = status.last_error.unwrap_or_default();
    assert_eq!(status.state.as_str(), "down", "{error}");
    assert!(error.starts_with("no attempt has ended for 6"), "{error}");
    let [fault] = &rig.faults.list()[..] else { panic!("one fault") };
    assert_eq!(fault.what.as_str(), "upstream_stuck");
    rig.until_counts("own", |counts| counts.delivered == 20).await;
    sleep(2 * SECOND).await;
    assert_eq!((rig.status("own").state.as_str(), rig.faults.list().len()), ("ok", 0));
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_attempt_that_hangs_after_a_start_leaves_room_for_others() {
    let upstream = Timed::new(|attempt, _| match attempt {
        0 => (300 * SECOND, Outcome::Delivered),
        _ => (SECOND / 100, Outcome::Delivered),
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
    rig.accept(20);
    sleep(SECOND).await;
    rig.accept(100);
    sleep(3 * SECOND).await;
    assert_eq!(rig.counts("own").delivered, 100);
    rig.until_counts("own", |counts| counts.delivered == 120).await;
    rig.stop().await;
}

/// Whether the batch holds one of every two hundred events.
fn is_hanging(batch: &Batch) -> bool {
    batch.records().iter().any(|record| number(record).is_multiple_of(200))
}

#[tokio::test(start_paused = true)]
async fn many_events_on_which_the_upstream_hangs_leave_room_for_others() {
    let upstream = Timed::new(|_, batch| match is_hanging(batch) {
        true => (10 * SECOND, Outcome::Retry(Failure::new("no answer in time"))),
        false => (SECOND / 100, Outcome::Delivered),
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 100 }");
    for _second in 0..120 {
        rig.accept(20);
        sleep(SECOND).await;
    }
    // At most the others of the same batches wait with them.
    let counts = rig.counts("own");
    assert!(counts.pending <= 14 * 20, "{counts:?}");
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_goes_elsewhere_waits_for_no_attempt_that_hangs() {
    let upstream = Timed::new(|attempt, _| match attempt {
        0 | 1 => (300 * SECOND, Outcome::Delivered),
        _ => (SECOND / 100, Outcome::Delivered),
    });
    let mut rig = upstream.rig("batch = { events_max = 20, linger_ms = 5 }");
    rig.accept(40);
    sleep(SECOND).await;
    rig.accept(40);
    sleep(10 * SECOND).await;
    assert_eq!(rig.counts("own").delivered, 0, "two attempts at a time, until one succeeds");
    upstream.settings.store(1, SeqCst);
    sleep(3 * SECOND).await;
    assert_eq!(rig.counts("own").delivered, 40);
    rig.until_counts("own", |counts| counts.delivered == 80).await;
    rig.stop().await;
}

/// Answers each connection's first request by informational answers without an end, as fast as they
/// are read. Passes the connections after the first `floods` on.
async fn flood(listener: TcpListener, to: std::net::SocketAddr, floods: usize) {
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(2_000);
    for connection in 0.. {
        let (mut client, _) = listener.accept().await.unwrap();
        let interim = interim.clone();
        tokio::spawn(async move {
            if connection < floods {
                _ = client.read(&mut [0; 1024]).await;
                while client.write_all(interim.as_bytes()).await.is_ok() {}
                return;
            }
            let mut backend = tokio::net::TcpStream::connect(to).await.unwrap();
            _ = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
        });
    }
}

#[test]
fn informational_answers_without_an_end_do_not_delay_the_timeout() {
    let aside = Runtime::new().unwrap();
    let backend = aside.block_on(Backend::start(|_| Act::Take));
    let listener = aside.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    aside.spawn(flood(listener, backend.addr(), 1));
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.spool.dir = dir.path().join("spool");
    let upstream =
        format!("name = 'a'\nkind = 'http'\nurl = 'http://{address}/'\ntimeout_seconds = 1");
    config.upstream = vec![toml::from_str(&upstream).unwrap()];
    // The gate delivers in a thread of its own, as in the binary.
    let gate = PixelGate::builder(config)
        .state_dir(dir.path())
        .portals("1", PortalFormat::Text)
        .open()
        .unwrap();
    let (event, id) = (sample(0), uuid::Uuid::now_v7());
    let record = |out: &mut Vec<u8>| {
        let context = event::Context::default();
        event::encode_record(out, id.as_bytes(), RECEIVED_AT_MS, &event, &context);
    };
    aside.block_on(gate.spool().append(record).unwrap()).unwrap();
    let began = std::time::Instant::now();
    while backend.events().is_empty() {
        assert!(began.elapsed() < HANGS_AFTER);
        std::thread::sleep(SECOND / 100);
    }
    gate.close(8 * SECOND).unwrap();
}
