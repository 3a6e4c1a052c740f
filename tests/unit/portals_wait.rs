//! The wait that the server of a portal list asks for (`Retry-After`).

use crate::portals_url::Rig;
use pixelgate::internals::clock::Clock;
use pixelgate::internals::policy::portals::{Config, Refreshed};
use std::time::Duration;

/// The seconds until the server is asked again, because its last answer asked for a wait.
fn wait_seconds(rig: &Rig) -> Option<u64> {
    let at = rig.portals.status().retry_at_ms;
    at.map(|at| (at - rig.clock.unix_ms()) / 1000)
}

#[tokio::test]
async fn the_wait_that_a_server_asks_for_is_in_the_status_until_its_next_answer() {
    let config = Config { refresh_seconds: 7, ..Config::default() };
    let rig = Rig::with("/l.txt", config).await;
    rig.server.answers("200 OK\nRetry-After: 20", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert_eq!(wait_seconds(&rig), None, "a list needs no second request");
    for (answer, wait) in [
        ("503 No\nRetry-After: 20", Some(20)),
        ("429 No\nRetry-After: 20", Some(20)),
        // The clock of the test stands at 2026-12-31 00:00:00.
        ("503 No\nRetry-After: Thu, 31 Dec 2026 00:01:00 GMT", Some(60)),
        ("503 No\nRetry-After: Thu, 31 Dec 2026 23:00:00 GMT", Some(3600)),
        ("503 No\nRetry-After: 999999999999", Some(3600)),
        ("503 No\nRetry-After: 0", Some(7)),
        ("503 No\nRetry-After: soon", None),
        ("404 No\nRetry-After: 20", Some(20)),
        ("503 No", None),
        ("500 No\nRetry-After: 20", Some(20)),
    ] {
        rig.server.answers(answer, "");
        rig.fails(": answered ").await;
        assert_eq!(wait_seconds(&rig), wait, "{answer}");
    }
    rig.server.answers("200 OK", "11\n");
    assert_eq!(rig.look().await, Refreshed::Same);
    assert_eq!(wait_seconds(&rig), None);
}

#[tokio::test]
async fn a_server_is_not_asked_before_the_time_it_names_but_on_sighup() {
    let config = Config { refresh_seconds: 1, ..Config::default() };
    let rig = Rig::with("/l.txt", config).await;
    rig.server.answers("503 No\nRetry-After: 3", "");
    rig.server.answers("200 OK", "11\n");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let begin = std::time::Instant::now();
    let watching = tokio::spawn(rig.portals.clone().watch(stopped));
    rig.until_allowed(11).await;
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_secs(3), "asked again after {waited:?}");

    rig.server.answers("503 No\nRetry-After: 3600", "");
    let deferred = async {
        while rig.portals.status().retry_at_ms.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), deferred).await.expect("the wait");
    rig.server.answers("200 OK", "22\n");
    rig.portals.reload();
    rig.until_allowed(22).await;
    stop.send(true).unwrap();
    watching.await.unwrap();
}
