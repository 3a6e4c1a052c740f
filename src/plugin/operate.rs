//! The methods of a gate beside the handling of requests: explaining, the portal list, the access
//! log, metrics and faults, and closing.

use super::access::{AccessLog, AccessRecord};
use super::{PixelGate, Settings};
use crate::delivery::Forwarder;
use crate::explain::{Explanation, NotAnEvent, explain};
use crate::policy::gate::Gate;
use crate::policy::portals::{Format, OpenError as PortalsError};
use crate::spool::{CloseError, Spool};
use crate::telemetry::event_samples::EventSamples;
use crate::telemetry::faults::Faults;
use crate::telemetry::metrics::Metrics;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

impl PixelGate {
    /// Explains how the gate would judge the event in `text`: a whole URL, a path with a query, or
    /// a query alone. Counts and stores nothing. The explanation repeats the personal data that
    /// `text` holds.
    ///
    /// ```
    /// # fn show(gate: &pixelgate::PixelGate) {
    /// match gate.explain("https://track.example.com/v1/event/?_a=62515&_n=signup") {
    ///     Ok(explanation) => println!("{}", explanation.to_text()),
    ///     Err(not_an_event) => println!("{not_an_event}"),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The path is not below `events.path`.
    pub fn explain<'t>(&self, text: &'t str) -> Result<Explanation<'t>, NotAnEvent> {
        let settings = self.settings();
        explain(&settings.gate, &settings.upstreams, text)
    }

    /// The judge in force.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.state.settings.load().gate)
    }

    /// The settings for a request that begins now.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        self.state.settings.load_full()
    }

    /// The number of reloads since the gate was opened. Read it before the value that a reload
    /// replaces, so that a later reload is not missed.
    pub(crate) fn reloads(&self) -> u64 {
        self.state.reloads.load(Acquire)
    }

    /// Counts a reload. Call this after the new value is in place.
    pub(crate) fn count_reload(&self) {
        self.state.reloads.fetch_add(1, Release);
    }

    /// Whether the peer of a connection is a trusted proxy. `None` stands for the peer of a Unix
    /// socket.
    pub fn trusts_peer(&self, peer: Option<IpAddr>) -> bool {
        self.state.settings.load().trusted.trusts_peer(peer)
    }

    /// Reports each request that begins from now on to `log`. `None`, the default, reports none.
    /// The gate's `Server` reports the requests that it answers itself. For the others, the proxy
    /// of the host calls [`PixelGate::begin_record`].
    pub fn set_access_log(&self, log: Option<AccessLog>) {
        self.state.access_log.store(log.map(Arc::new));
        self.count_reload();
    }

    /// The access log in force.
    pub(crate) fn access_log(&self) -> Option<AccessLog> {
        self.state.access_log.load().as_deref().cloned()
    }

    /// Begins the record of a request, if there is an access log.
    pub fn begin_record(&self) -> Option<Box<AccessRecord>> {
        self.state.access_log.load().as_deref().map(AccessLog::begin)
    }

    /// The gate's counters and gauges (SPEC 8).
    pub fn metrics(&self) -> &Metrics {
        &self.state.metrics
    }

    /// The lasting conditions that need an operator.
    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// Masked samples of single events, and the portals with the most events.
    pub(crate) fn event_samples(&self) -> &EventSamples {
        &self.state.event_samples
    }

    /// The queue on disk in which accepted events wait for their upstreams. Public for the tests of
    /// this repository.
    #[doc(hidden)]
    pub fn spool(&self) -> &Spool {
        &self.state.spool
    }

    /// Delivery to the upstreams, with the state of each.
    pub(crate) fn delivery(&self) -> &Forwarder {
        self.state.delivery.forwarder()
    }

    /// Starts to read the portal list again, as SIGHUP does, and returns at once.
    pub fn reload_portals(&self) {
        self.state.settings.load().gate.portals().reload();
    }

    /// Puts a portal list of the host in force (see [`Builder::portals`](crate::Builder::portals)).
    /// It replaces the earlier list at once and as a whole, and refuses or delays no request.
    /// Blocks while it reads the list: a million portals take under a second.
    ///
    /// ```
    /// # use pixelgate::{PixelGate, custom::PortalFormat, errors::PortalsError};
    /// # fn refresh(gate: &PixelGate) -> Result<(), PortalsError> {
    /// gate.put_portals("portals = [62515, 56043]", PortalFormat::Toml)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The text is not a list in this format, which `/status` shows as a failed refresh; or the
    /// gate was opened without a list of the host. The list in force stays.
    pub fn put_portals(&self, list: &str, format: Format) -> Result<(), PortalsError> {
        self.gate().portals().put(list, format)
    }

    /// Makes `/readyz` answer 503 from now on, so that load balancers send their requests elsewhere
    /// before the host stops. Events are accepted as before.
    ///
    /// ```
    /// # fn stop(gate: &pixelgate::PixelGate) {
    /// gate.drain();
    /// assert!(gate.is_draining());
    /// # }
    /// ```
    pub fn drain(&self) {
        self.state.draining.store(true, Release);
    }

    /// Whether [`PixelGate::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.state.draining.load(Acquire)
    }

    /// Stops delivery and writes the events that are still in memory to disk, within `limit`.
    /// Delivery attempts that have begun get half of it to end. Call this when no request is in
    /// flight: later events are rejected as `overloaded`. Events that are not delivered yet are
    /// delivered after the next start. Blocks, so async code calls [`PixelGate::close_async`].
    ///
    /// # Errors
    ///
    /// The disk refused these events, or took longer than `limit`. None of them was answered 200
    /// with durability `power` or `interval`.
    pub fn close(&self, limit: Duration) -> Result<(), CloseError> {
        // Delivery gets three quarters and gives attempts under way two thirds of that: one half.
        let until = Instant::now() + limit;
        self.state.delivery.stop(limit * 3 / 4);
        self.state.spool.close(until.saturating_duration_since(Instant::now()))
    }

    /// Does what [`PixelGate::close`] does, for async code on any runtime. It works on a thread of
    /// its own and goes on there if the future is dropped.
    ///
    /// ```
    /// # use pixelgate::{PixelGate, errors::CloseError};
    /// # use std::time::Duration;
    /// # async fn stop(gate: &PixelGate) -> Result<(), CloseError> {
    /// gate.close_async(Duration::from_secs(5)).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`PixelGate::close`], and that of a thread that cannot be started.
    pub async fn close_async(&self, limit: Duration) -> Result<(), CloseError> {
        let (gate, (closed, closing)) = (self.clone(), oneshot::channel());
        let close = move || {
            let result = gate.close(limit);
            // Once the caller has the result, it may rely on holding the last clone.
            drop(gate);
            // Fails if the caller has stopped waiting.
            let _ = closed.send(result);
        };
        let thread = std::thread::Builder::new().name("close".to_owned()).spawn(close);
        thread.map_err(CloseError::Io)?;
        // No result means that the thread panicked, which the panic hook has reported.
        closing.await.unwrap_or(Err(CloseError::TimedOut))
    }
}
