//! The metrics of a gate, under the names of SPEC 8.
//!
//! Each gate has one [`Metrics`]. It has a registry of its own, so that two gates in one process
//! (or two tests) do not share counters; or it uses a registry of the host, where the label `gate`
//! tells the gates apart. Every set of labels is closed: reasons, causes and verdicts are enums,
//! and the names of upstreams and gates come from the configuration. The only value of a request in
//! a label is the number of a portal, see `portal_events.rs`.

use crate::event::{Ignored, Reason};
use crate::telemetry::portal_events::PortalEvents;
use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, Result, TextEncoder,
};
use std::sync::Arc;

/// Upper bounds, in seconds, of the buckets of `pixelgate_spool_commit_seconds`.
///
/// They reach from a tenth of a millisecond (a log device with a battery) to ten seconds (a disk
/// that is about to be reported as failing).
const COMMIT_BUCKETS_SECONDS: [f64; 12] =
    [1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 0.1, 0.5, 2.0, 10.0];

/// A limit of the HTTP server at which a connection ends (SPEC 9, `[edge]`).
///
/// ```
/// use pixelgate::http_server::Limit;
///
/// assert_eq!(Limit::HeaderTime.as_str(), "header_time");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Limit {
    /// `connections_max` is reached.
    Connections,
    /// `connections_per_address_max` is reached.
    ConnectionsPerAddress,
    /// The PROXY header is missing, malformed, or from a peer that is no trusted proxy.
    ProxyHeader,
    /// The TLS handshake failed or took too long.
    TlsHandshake,
    /// A header took too long.
    HeaderTime,
    /// A header is too large.
    HeaderBytes,
    /// A header has too many lines.
    HeaderLines,
    /// A header is malformed or ambiguous.
    HeaderSyntax,
    /// A body is malformed or cut off.
    BodySyntax,
    /// The client did not read its answer in time.
    WriteTime,
    /// The connection was idle for the whole keep-alive time.
    IdleTime,
    /// The connection reached its number of requests.
    Requests,
    /// HTTP/2: the client reset too many streams at once.
    Resets,
    /// HTTP/2: the client sent too many frames for its number of requests.
    Frames,
}

impl Limit {
    /// Every limit, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::ProxyHeader,
        Self::TlsHandshake,
        Self::HeaderTime,
        Self::HeaderBytes,
        Self::HeaderLines,
        Self::HeaderSyntax,
        Self::BodySyntax,
        Self::WriteTime,
        Self::IdleTime,
        Self::Requests,
        Self::Resets,
        Self::Frames,
    ];

    /// The label in `pixelgate_connections_refused_total{limit}` and in the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::ProxyHeader => "proxy_header",
            Self::TlsHandshake => "tls_handshake",
            Self::HeaderTime => "header_time",
            Self::HeaderBytes => "header_bytes",
            Self::HeaderLines => "header_lines",
            Self::HeaderSyntax => "header_syntax",
            Self::BodySyntax => "body_syntax",
            Self::WriteTime => "write_time",
            Self::IdleTime => "idle_time",
            Self::Requests => "requests",
            Self::Resets => "h2_resets",
            Self::Frames => "h2_frames",
        }
    }
}

/// The counters of one gate. Cheap to clone: every field is a handle.
///
/// ```
/// use pixelgate::tools::Metrics;
///
/// let metrics = Metrics::new(); // a host has `PixelGate::metrics`
/// metrics.count_accepted();
/// assert_eq!(metrics.verdicts().0, 1);
/// ```
#[derive(Clone)]
pub struct Metrics {
    registered: Arc<Registered>,
    requests: RequestCounters,
    /// The time from the append of a record to its commit.
    pub spool_commit_seconds: Histogram,
    /// Bytes of events in the spool that at least one upstream has not acknowledged.
    pub spool_bytes: IntGauge,
    /// Free bytes on the spool's disk.
    pub spool_free_bytes: IntGauge,
    /// Damaged bytes found in the spool, those in quarantine included.
    pub spool_quarantined_bytes: IntGauge,
    /// 1 if `/readyz` answers 200, else 0.
    pub ready: IntGauge,
    /// 1 for each upstream that works or failed only briefly, 0 for one that needs attention.
    pub upstream_up: IntGaugeVec,
    /// Events that are not delivered yet, by upstream.
    pub spool_pending_events: IntGaugeVec,
    /// Events delivered since start, by upstream.
    pub delivered_events: IntCounterVec,
    /// Events written to the dead letters since start, by upstream.
    pub dead_events: IntCounterVec,
    /// Batches sent, by upstream and outcome.
    pub batches: IntCounterVec,
    /// Age in seconds of the oldest event that is not delivered yet, by upstream.
    pub delivery_lag_seconds: IntGaugeVec,
    /// Faults, by kind (`docs/operating.md` lists the kinds).
    pub faults: IntGaugeVec,
    /// Portals in the list that is in force.
    pub portals: IntGauge,
    /// Refreshes of the list that failed and changed nothing.
    pub portals_refresh_failures: IntCounter,
    /// The totals of the busiest portals.
    pub portal_events: PortalEvents,
    /// Requests that no origin answered.
    pub origin_failures: IntCounter,
    /// Lines of the access log that were not written.
    pub access_log_lost_lines: IntCounter,
    refused: Box<[IntCounter]>,
}

/// Event requests by result: one handle for each label, indexed by the enum's number.
#[derive(Clone)]
struct RequestCounters {
    accepted: IntCounter,
    rejected: IntCounter,
    not_judged: IntCounter,
    by_reason: Box<[IntCounter]>,
    dry_run_refusals: Box<[IntCounter]>,
    ignored: Box<[IntCounter]>,
}

impl RequestCounters {
    fn new(r: &Registered) -> Result<Self> {
        let requests =
            counters(r, "requests_total", "Event requests answered, by verdict.", &["verdict"])?;
        let rejected = counters(r, "rejected_total", "Event requests refused.", &["reason"])?;
        let dry_run = counters(
            r,
            "dry_run_refusals_total",
            "Events accepted in dry_run mode that enforce would refuse.",
            &["reason"],
        )?;
        let ignored = counters(
            r,
            "ignored_params_total",
            "Parameters dropped from events that still counted, by cause.",
            &["why"],
        )?;
        let by_reason = |vec: &IntCounterVec| -> Box<[IntCounter]> {
            Reason::ALL.iter().map(|r| vec.with_label_values(&[r.as_str()])).collect()
        };
        let by_cause = |why: &Ignored| ignored.with_label_values(&[why.as_str()]);
        Ok(Self {
            accepted: requests.with_label_values(&["accepted"]),
            rejected: requests.with_label_values(&["rejected"]),
            not_judged: requests.with_label_values(&["not_judged"]),
            by_reason: by_reason(&rejected),
            dry_run_refusals: by_reason(&dry_run),
            ignored: Ignored::ALL.iter().map(by_cause).collect(),
        })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics in a registry of their own.
    pub fn new() -> Self {
        Self::register(Registry::new(), None)
            .expect("names and labels are literals of this file, tested below")
    }

    /// Registers every metric in `registry`, so that `/metrics` shows zeros before the first event.
    /// `gate` becomes the value of the label `gate`. The metrics leave the registry when the last
    /// clone is dropped.
    ///
    /// # Errors
    ///
    /// The registry already has the metrics of a gate with the same label.
    pub fn register(registry: Registry, gate: Option<&str>) -> Result<Self> {
        let gate = gate.map(str::to_owned);
        let r = Registered { registry, gate, collectors: Mutex::default() };
        Ok(Self {
            requests: RequestCounters::new(&r)?,
            spool_commit_seconds: commit_histogram(&r)?,
            spool_bytes: gauge(&r, "spool_bytes", "Bytes of events that wait in the spool.")?,
            spool_free_bytes: gauge(&r, "spool_free_bytes", "Bytes free on the spool's disk.")?,
            spool_quarantined_bytes: gauge(
                &r,
                "spool_quarantined_bytes",
                "Damaged bytes found in the spool.",
            )?,
            ready: gauge(&r, "ready", "1 if this edge accepts events, as in /readyz, else 0.")?,
            upstream_up: gauges(&r, "upstream_up", "Whether the upstream takes its events.")?,
            spool_pending_events: gauges(
                &r,
                "spool_pending_events",
                "Accepted events not yet delivered, by upstream.",
            )?,
            delivered_events: counters(
                &r,
                "delivered_events_total",
                "Events delivered since start, by upstream.",
                &["upstream"],
            )?,
            dead_events: counters(
                &r,
                "dead_events_total",
                "Events written to the dead letters since start, by upstream.",
                &["upstream"],
            )?,
            batches: counters(
                &r,
                "batches_total",
                "Attempts to send a batch, by upstream and outcome.",
                &["upstream", "outcome"],
            )?,
            delivery_lag_seconds: gauges(
                &r,
                "delivery_lag_seconds",
                "Age of the oldest event that waits, by upstream.",
            )?,
            faults: faults_by_name(&r)?,
            portals: gauge(&r, "portals", "Portals in the list that is in force.")?,
            portals_refresh_failures: counter(
                &r,
                "portals_refresh_failures_total",
                "Refreshes of the portal list that failed and changed nothing.",
            )?,
            portal_events: portal_events(&r)?,
            origin_failures: counter(
                &r,
                "origin_failures_total",
                "Requests passed through that no origin answered.",
            )?,
            access_log_lost_lines: counter(
                &r,
                "access_log_lost_lines_total",
                "Lines of the access log that could not be written.",
            )?,
            refused: refused_by_limit(&r)?,
            registered: Arc::new(r),
        })
    }

    /// Counts an event that was accepted and is as durable as `spool.durability` says.
    pub fn count_accepted(&self) {
        self.requests.accepted.inc();
    }

    /// Counts a refusal by its reason.
    pub fn count_rejected(&self, reason: Reason) {
        self.requests.rejected.inc();
        self.requests.by_reason[reason as usize].inc();
    }

    /// Counts a request for the event path that is answered without being judged
    /// (`HEAD`, `OPTIONS`).
    pub fn count_not_judged(&self) {
        self.requests.not_judged.inc();
    }

    /// Counts an event that mode `dry_run` accepts and `enforce` would reject.
    pub fn count_dry_run_refusal(&self, reason: Reason) {
        self.requests.dry_run_refusals[reason as usize].inc();
    }

    /// Counts a parameter that was dropped from an event.
    pub fn count_ignored(&self, why: Ignored) {
        self.requests.ignored[why as usize].inc();
    }

    /// Counts a connection that ended at a limit of the HTTP server.
    pub fn count_refused(&self, limit: Limit) {
        self.refused[limit as usize].inc();
    }

    /// Connections that ended at this limit since start.
    pub fn refused(&self, limit: Limit) -> u64 {
        self.refused[limit as usize].get()
    }

    /// Requests by verdict since start: accepted, then every reason in the order of SPEC 3.
    pub fn verdicts(&self) -> (u64, Vec<(Reason, u64)>) {
        let reasons = Reason::ALL.iter().zip(&*self.requests.by_reason);
        (self.requests.accepted.get(), reasons.map(|(&r, c)| (r, c.get())).collect())
    }

    /// Requests for the event path answered without being judged, since start.
    pub fn not_judged(&self) -> u64 {
        self.requests.not_judged.get()
    }

    /// All metrics of the registry as they are now.
    pub(crate) fn gather(&self) -> Vec<MetricFamily> {
        self.registered.registry.gather()
    }

    /// All metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        // Encoding fails only if a family has no metrics or if the writer fails. Every family above
        // has a metric, and a `Vec` does not fail.
        let _ = TextEncoder::new().encode(&self.gather(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// The registered metrics and their registry. Dropping this removes them, so that a gate of the
/// same name can be opened again.
struct Registered {
    registry: Registry,
    /// The value of the label `gate`.
    gate: Option<String>,
    collectors: Mutex<Vec<Box<dyn Collector>>>,
}

impl Registered {
    fn opts(&self, name: &str, help: &str) -> Opts {
        let labels = self.gate.iter().map(|gate| ("gate".to_owned(), gate.clone()));
        Opts::new(format!("pixelgate_{name}"), help).const_labels(labels.collect())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for collector in self.collectors.get_mut().drain(..) {
            // Fails only if the host has removed the metric.
            let _ = self.registry.unregister(collector);
        }
    }
}

fn register<M: Collector + Clone + 'static>(r: &Registered, metric: Result<M>) -> Result<M> {
    let metric = metric?;
    r.registry.register(Box::new(metric.clone()))?;
    r.collectors.lock().push(Box::new(metric.clone()));
    Ok(metric)
}

fn counter(r: &Registered, name: &str, help: &str) -> Result<IntCounter> {
    register(r, IntCounter::with_opts(r.opts(name, help)))
}

fn counters(r: &Registered, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    register(r, IntCounterVec::new(r.opts(name, help), labels))
}

fn gauge(r: &Registered, name: &str, help: &str) -> Result<IntGauge> {
    register(r, IntGauge::with_opts(r.opts(name, help)))
}

fn gauges(r: &Registered, name: &str, help: &str) -> Result<IntGaugeVec> {
    register(r, IntGaugeVec::new(r.opts(name, help), &["upstream"]))
}

fn refused_by_limit(r: &Registered) -> Result<Box<[IntCounter]>> {
    let refused = counters(
        r,
        "connections_refused_total",
        "Connections refused or ended at a limit of the HTTP server.",
        &["limit"],
    )?;
    Ok(Limit::ALL.iter().map(|limit| refused.with_label_values(&[limit.as_str()])).collect())
}

fn portal_events(r: &Registered) -> Result<PortalEvents> {
    let help = "Events over the spool's life, of the busiest portals and of all others.";
    register(r, PortalEvents::new(r.opts("portal_events_total", help)))
}

fn faults_by_name(r: &Registered) -> Result<IntGaugeVec> {
    let opts = r.opts("faults", "Conditions that last and need an operator.");
    register(r, IntGaugeVec::new(opts, &["what"]))
}

fn commit_histogram(r: &Registered) -> Result<Histogram> {
    let opts = r.opts("spool_commit_seconds", "Time from a record's append to its commit.");
    let opts = HistogramOpts::from(opts).buckets(COMMIT_BUCKETS_SECONDS.to_vec());
    register(r, Histogram::with_opts(opts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_cause_is_scraped_before_the_first_event() {
        let text = Metrics::new().render();
        for reason in Reason::ALL {
            let line = format!("pixelgate_rejected_total{{reason=\"{}\"}} 0", reason.as_str());
            assert!(text.contains(&line), "missing: {line}");
        }
        for why in Ignored::ALL {
            let line = format!("pixelgate_ignored_params_total{{why=\"{}\"}} 0", why.as_str());
            assert!(text.contains(&line), "missing: {line}");
        }
    }

    #[test]
    fn gates_in_one_registry_are_told_apart_and_leave_it_when_they_are_dropped() {
        let registry = Registry::new();
        let shop = Metrics::register(registry.clone(), Some("shop")).unwrap();
        let taken = Metrics::register(registry.clone(), Some("shop"));
        assert!(matches!(taken.err(), Some(prometheus::Error::AlreadyReg)));
        let blog = Metrics::register(registry.clone(), Some("blog")).unwrap();
        shop.count_accepted();
        let text = blog.render();
        for (gate, count) in [("shop", 1), ("blog", 0)] {
            let line =
                format!("pixelgate_requests_total{{gate=\"{gate}\",verdict=\"accepted\"}} {count}");
            assert!(text.contains(&line), "{text}");
        }
        drop((shop, blog));
        assert!(registry.gather().is_empty());
        Metrics::register(registry, Some("shop")).unwrap();
    }

    #[test]
    fn a_limit_is_counted_under_its_own_name() {
        let metrics = Metrics::new();
        for limit in Limit::ALL {
            metrics.count_refused(limit);
            let name = limit.as_str();
            let line = format!("pixelgate_connections_refused_total{{limit=\"{name}\"}} 1");
            assert!(metrics.render().contains(&line), "missing: {line}");
        }
    }

    #[test]
    fn a_reason_is_counted_under_its_own_name() {
        let metrics = Metrics::new();
        for reason in Reason::ALL {
            metrics.count_rejected(reason);
        }
        metrics.count_rejected(Reason::MissingEvent);
        let text = metrics.render();
        assert!(text.contains("pixelgate_rejected_total{reason=\"missing_event\"} 2"));
        assert!(text.contains("pixelgate_rejected_total{reason=\"overloaded\"} 1"));
    }
}
