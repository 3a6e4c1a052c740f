//! The parts that the two commands that send events share: `dead replay` and `send`.

use crate::causes::with_causes;
use pixelgate::Upstream;
use pixelgate::config::{Batch, UpstreamKind, ValidUpstream};
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// The exit code of a command that is ended by a second signal.
const KILLED: i32 = 130;

/// An upstream that is ready to send to.
pub struct Session {
    pub runtime: Runtime,
    pub built: Arc<dyn Upstream>,
    /// The limits of a batch.
    pub batch: Batch,
    /// Becomes true at the first SIGINT or SIGTERM. The second one ends the process.
    pub stop: watch::Receiver<bool>,
}

impl Session {
    /// Builds the upstream, and handles signals from now on.
    ///
    /// # Errors
    ///
    /// A text for the operator: the upstream cannot be built, or the system refuses a thread or a
    /// signal handler.
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

/// Returns the limits of a batch for this upstream. A legacy backend counts an event that it
/// receives twice as two events. So a batch for it holds one event, and after a command was killed
/// the next one repeats at most the event that was being sent.
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

/// Reads a time in RFC 3339, or a date, which stands for its beginning (00:00 UTC). Returns
/// milliseconds since 1970.
pub fn unix_ms(text: &str) -> Result<i64, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>()
        && has_possible_offset(text)
    {
        return Ok(time.as_millisecond());
    }
    let time = jiff::civil::Date::strptime("%Y-%m-%d", text).ok().and_then(|date| {
        date.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|midnight| midnight.timestamp())
    });
    let time = time.ok_or("is neither a time such as 2026-11-23T02:45:13Z nor a date")?;
    Ok(time.as_millisecond())
}

/// Whether a time ends in `Z` or in an offset of less than a day (RFC 3339, section 5.6). `jiff`
/// takes offsets of up to 25 hours.
fn has_possible_offset(time: &str) -> bool {
    let is_utc = time.ends_with(['Z', 'z']);
    let Some((_, offset)) = time.rsplit_once(['+', '-']).filter(|_| !is_utc) else { return true };
    offset.get(..2).and_then(|hours| hours.parse::<u8>().ok()).is_some_and(|hours| hours < 24)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_a_date_in_utc() {
        const OVER_A_DAY: &str = "2026-11-23T02:45:13+25:00";
        let check = |text: &str, expect: Option<&str>| {
            let expect = expect.map(|time| time.parse::<jiff::Timestamp>().unwrap());
            assert_eq!(unix_ms(text).ok(), expect.map(|time| time.as_millisecond()), "{text}");
        };
        check("2026-11-23T02:45:13Z", Some("2026-11-23T02:45:13Z"));
        check("2026-11-23T02:45:13.123Z", Some("2026-11-23T02:45:13.123Z"));
        check("2026-11-23T02:45:13+02:00", Some("2026-11-23T00:45:13Z"));
        check("2026-11-23T02:45:13-23:59", Some("2026-11-24T02:44:13Z"));
        check("2026-11-23", Some("2026-11-23T00:00:00Z"));
        for bad in ["", "yesterday", "2026-13-01", "2026-11-23T02:45", "1795401913", OVER_A_DAY] {
            check(bad, None);
        }
    }
}
