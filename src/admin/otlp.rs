//! Exports the metrics of `/metrics` by OTLP over HTTP, as protobuf, under the same names.
//!
//! The values are cumulative since the start of the process, so the next export makes up for one
//! that fails. While a collector takes no export, `/status` shows a fault, and nothing is delayed.

use super::otlp_config::Config;
use super::sampler::Sampler;
use super::{portal_totals, status};
use crate::clock::{Clock, SystemClock};
use crate::config_error::ConfigError;
use crate::telemetry::faults::FaultKind;
use crate::upstream::client::{self, Client};
use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, header};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope, KeyValue, any_value::Value,
};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use prometheus::proto::{self, MetricFamily, MetricType};
use prost::Message;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use url::Url;

/// The longest time of one export, in seconds.
const EXPORT_SECONDS_MAX: u64 = 10;
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/x-protobuf");
/// The fault's advice.
const ADVICE: &str = "Look at the collector and at otlp.endpoint and otlp.headers. No metric is \
                      lost: each export brings the counts since start.";

/// Exports the metrics of `/metrics` under the same names by OTLP over HTTP, as protobuf. Runs as a
/// background service of Pingora. An export that fails raises a fault and loses no count.
///
/// ```
/// # use pingora::server::Server;
/// # use pingora::services::background::background_service;
/// # use pixelgate::admin_pages::{OtlpExport, OtlpTarget, Sampler};
/// # use pixelgate::{config::Otlp, errors::ConfigError};
/// # use std::sync::Arc;
/// fn add(server: &mut Server, sampler: Arc<Sampler>, config: &Otlp) -> Result<(), ConfigError> {
///     let export = OtlpExport::new(sampler, OtlpTarget::new(config)?);
///     server.add_service(background_service("otlp", export));
///     Ok(())
/// }
/// ```
pub struct OtlpExport {
    sampler: Arc<Sampler>,
    /// The collector in use. `None`: nothing is exported.
    target: watch::Sender<Option<Arc<OtlpTarget>>>,
    resource: Resource,
    started_ns: u64,
}

/// A collector as `[otlp]` describes it.
pub struct OtlpTarget {
    client: Client,
    url: Url,
    headers: HeaderMap,
    interval: Duration,
}

impl OtlpTarget {
    /// The collector that this section describes. `None` if `endpoint` is not set. Opens no
    /// connection.
    ///
    /// # Errors
    ///
    /// A key cannot be used, or the certificates of the system cannot be read.
    pub fn new(config: &Config) -> Result<Option<Self>, ConfigError> {
        Self::of(config).map_err(|e| e.within("otlp"))
    }

    fn of(config: &Config) -> Result<Option<Self>, ConfigError> {
        config.validate()?;
        let Some(url) = config.url()? else { return Ok(None) };
        let setup = client::Setup {
            timeout_seconds: EXPORT_SECONDS_MAX,
            connections: 1,
            idle_seconds: 2 * config.interval_seconds,
            ..client::Setup::default()
        };
        let mut headers = config.header_map()?;
        headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
        Ok(Some(Self {
            client: Client::build(&url, setup, &Default::default()).map_err(in_endpoint)?,
            url,
            headers,
            interval: Duration::from_secs(config.interval_seconds),
        }))
    }

    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    /// Sends one export. Of the configuration, the error holds no more than the host.
    async fn send(&self, request: &ExportMetricsServiceRequest) -> Result<(), String> {
        let sent = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .body(request.encode_to_vec());
        // The URL may hold a secret.
        let answer = sent.send().await.map_err(|e| e.without_url().to_string())?;
        let status = answer.status();
        client::drain(answer).await;
        if status.is_success() { Ok(()) } else { Err(format!("it answers {status}")) }
    }
}

impl OtlpExport {
    /// An export of the metrics of the sampler's gate to `target`. `None` exports nothing.
    pub fn new(sampler: Arc<Sampler>, target: Option<OtlpTarget>) -> Self {
        let target = watch::Sender::new(target.map(Arc::new));
        Self { sampler, target, resource: resource(), started_ns: now_ns() }
    }

    /// Exports to this collector from now on. `None` ends the export.
    pub fn set(&self, target: Option<OtlpTarget>) {
        self.target.send_replace(target.map(Arc::new));
    }

    /// Exports to this collector until the future is dropped.
    async fn export_to(&self, target: &OtlpTarget) {
        let mut ticks = interval(target.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let gate = self.sampler.gate();
            status::refresh_gauges(gate.metrics(), &self.sampler.snapshot());
            portal_totals::refresh_metric(gate, self.sampler.portals_max());
            let exported = target.send(&self.request(&gate.metrics().gather())).await;
            self.report(target.host(), exported);
        }
    }

    fn request(&self, families: &[MetricFamily]) -> ExportMetricsServiceRequest {
        let times = Times { started_ns: self.started_ns, now_ns: now_ns() };
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let metrics = families.iter().filter_map(|family| metric(family, &times)).collect();
        let scope_metrics =
            vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
        let resource_metrics = vec![ResourceMetrics {
            resource: Some(self.resource.clone()),
            scope_metrics,
            ..ResourceMetrics::default()
        }];
        ExportMetricsServiceRequest { resource_metrics }
    }

    fn report(&self, host: &str, exported: Result<(), String>) {
        let faults = self.sampler.gate().faults();
        match exported {
            Ok(()) => faults.clear(FaultKind::Otlp, host),
            Err(why) => {
                let text = format!("metrics cannot be sent to {host}: {why}");
                // The binary's logger leaves out most repetitions of this line.
                log::warn!("{text}");
                faults.raise(FaultKind::Otlp, host, text, ADVICE);
            }
        }
    }
}

#[async_trait]
impl BackgroundService for OtlpExport {
    /// Exports until the stop.
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut targets = self.target.subscribe();
        loop {
            let target = targets.borrow_and_update().clone();
            let export = async {
                match &target {
                    Some(target) => self.export_to(target).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = shutdown.changed() => return,
                () = export => {}
                // Never an error, because `self` owns the sender.
                _ = targets.changed() => {}
            }
            if let Some(old) = target {
                self.report(old.host(), Ok(()));
            }
        }
    }
}

/// Turns an error of the client into an error of `endpoint`, the key of `[otlp]` that it is about.
fn in_endpoint(e: ConfigError) -> ConfigError {
    match e.key() {
        "proxy" => ConfigError::new("endpoint", format!("its proxy {}", e.reason())),
        _ => ConfigError::new("endpoint", e.reason()),
    }
}

/// The time from which a value counts and the time at which it was read, in nanoseconds since 1970,
/// UTC.
struct Times {
    started_ns: u64,
    now_ns: u64,
}

fn now_ns() -> u64 {
    SystemClock.unix_ms().saturating_mul(1_000_000)
}

fn resource() -> Resource {
    let instance = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let attributes = vec![
        attribute("service.name", env!("CARGO_PKG_NAME")),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
        attribute("service.instance.id", &instance.to_string()),
    ];
    Resource { attributes, ..Resource::default() }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

/// A metric family in the form of OTLP. `None` if its type is one that no metric of the gate has.
fn metric(family: &MetricFamily, times: &Times) -> Option<Metric> {
    let all = family.get_metric();
    let cumulative = AggregationTemporality::Cumulative.into();
    let numbers = |value: fn(&proto::Metric) -> f64| {
        all.iter().map(|metric| number(metric, value(metric), times)).collect()
    };
    let data = match family.get_field_type() {
        MetricType::COUNTER => Data::Sum(Sum {
            data_points: numbers(|metric| metric.get_counter().get_value()),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        MetricType::GAUGE => {
            Data::Gauge(Gauge { data_points: numbers(|metric| metric.get_gauge().get_value()) })
        }
        MetricType::HISTOGRAM => Data::Histogram(Histogram {
            data_points: all.iter().map(|metric| histogram(metric, times)).collect(),
            aggregation_temporality: cumulative,
        }),
        _ => return None,
    };
    Some(Metric {
        name: family.name().to_owned(),
        description: family.help().to_owned(),
        data: Some(data),
        ..Metric::default()
    })
}

fn labels(metric: &proto::Metric) -> Vec<KeyValue> {
    metric.get_label().iter().map(|label| attribute(label.name(), label.value())).collect()
}

fn number(metric: &proto::Metric, value: f64, times: &Times) -> NumberDataPoint {
    NumberDataPoint {
        attributes: labels(metric),
        start_time_unix_nano: times.started_ns,
        time_unix_nano: times.now_ns,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    }
}

/// A histogram in the form of OTLP. In Prometheus, a bucket includes the counts of all lower
/// buckets; in OTLP it does not, and a last bucket has no upper bound.
fn histogram(metric: &proto::Metric, times: &Times) -> HistogramDataPoint {
    let histogram = metric.get_histogram();
    let count = histogram.get_sample_count();
    let bounded = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let (mut explicit_bounds, mut bucket_counts, mut below) = (Vec::new(), Vec::new(), 0);
    for bucket in bounded {
        explicit_bounds.push(bucket.upper_bound());
        bucket_counts.push(bucket.cumulative_count().saturating_sub(below));
        below = bucket.cumulative_count();
    }
    bucket_counts.push(count.saturating_sub(below));
    HistogramDataPoint {
        attributes: labels(metric),
        start_time_unix_nano: times.started_ns,
        time_unix_nano: times.now_ns,
        count,
        sum: Some(histogram.get_sample_sum()),
        bucket_counts,
        explicit_bounds,
        ..HistogramDataPoint::default()
    }
}
