//! What the commands that send events have in common: `dead replay` and `send`.

use crate::causes::with_causes;
use pixelgate::Upstream;
use pixelgate::config::{Batch, UpstreamKind, ValidUpstream};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The exit code of a command that a second signal ends.
const KILLED: i32 = 130;

/// An upstream to send to, and all that sending needs.
pub struct Session {
    pub runtime: Runtime,
    pub built: Arc<dyn Upstream>,
    /// The upstream's batches.
    pub batch: Batch,
    /// Becomes true at the first SIGINT or SIGTERM. The second one ends the process.
    pub stop: watch::Receiver<bool>,
}

impl Session {
    /// Builds the upstream and handles signals from here on. An error is a sentence.
    pub fn open(upstream: &ValidUpstream, base: &Batch) -> Result<Session, String> {
        let built = upstream.build().map_err(|e| with_causes(&e))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let stop = stop_on_signals(&runtime).map_err(|e| e.to_string())?;
        Ok(Session { runtime, built, batch: batches(upstream, base), stop })
    }
}

/// The batches to send. A legacy backend counts an event that is sent twice as two, so each is sent
/// and noted alone: a command that is killed repeats at most the one that was on its way.
fn batches(upstream: &ValidUpstream, base: &Batch) -> Batch {
    let mut batch = upstream.batch.over(base);
    if matches!(upstream.kind, UpstreamKind::Legacy(_)) {
        batch.events_max = 1;
    }
    batch
}

fn stop_on_signals(runtime: &Runtime) -> std::io::Result<watch::Receiver<bool>> {
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let (stop, stopping) = watch::channel(false);
    runtime.spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                std::process::exit(KILLED);
            }
        }
    });
    Ok(stopping)
}

/// A time in milliseconds since 1970: RFC 3339, or a date, whose day begins at 00:00 UTC.
pub fn unix_ms(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.as_millisecond());
    }
    let time = jiff::civil::Date::strptime("%Y-%m-%d", text).ok().and_then(|date| {
        date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
    });
    let time = time.ok_or("is neither a time such as 2026-11-23T02:45:13Z nor a date")?;
    Ok(time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_a_date_in_utc() {
        let check = |text: &str, expect: Option<&str>| {
            let expect = expect.map(|time| time.parse::<jiff::Timestamp>().unwrap());
            assert_eq!(unix_ms(text).ok(), expect.map(|time| time.as_millisecond()), "{text}");
        };
        check("2026-11-23T02:45:13Z", Some("2026-11-23T02:45:13Z"));
        check("2026-11-23T02:45:13.123Z", Some("2026-11-23T02:45:13.123Z"));
        check("2026-11-23T02:45:13+02:00", Some("2026-11-23T00:45:13Z"));
        check("2026-11-23", Some("2026-11-23T00:00:00Z"));
        for bad in ["", "yesterday", "2026-13-01", "2026-11-23T02:45", "1795401913"] {
            check(bad, None);
        }
    }
}
