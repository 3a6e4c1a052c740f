//! Metrics by OTLP: what a collector gets, and what happens while it takes nothing.

use crate::harness::{Edge, Setup, wait_for};
use crate::reload::rename_over;
use crate::wire::{Message, Origin};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as Any};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, metric::Data, number_data_point::Value,
};
use prost::Message as _;
use rustix::process::Signal;
use serde_json::Value as Json;
use std::collections::BTreeSet;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const NO: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
const PATH: &str = "/base/v1/metrics";

fn start(collector: &Origin) -> Edge {
    let section = format!(
        "[otlp]\nendpoint = \"http://{}/base/\"\ninterval_seconds = 1\n\
         headers = {{ Authorization = \"Bearer sesame\" }}",
        collector.address
    );
    Setup::default().sections(&section).start()
}

/// The exports that have come since this was last called.
fn exports(collector: &Origin) -> Vec<(Message, ExportMetricsServiceRequest)> {
    let decoded = |message: Message| {
        let request = ExportMetricsServiceRequest::decode(message.body.as_slice()).unwrap();
        (message, request)
    };
    collector.take_seen().into_iter().map(decoded).collect()
}

fn metrics(request: &ExportMetricsServiceRequest) -> &[Metric] {
    &request.resource_metrics[0].scope_metrics[0].metrics
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Any::StringValue(text) => Some(text),
        _ => None,
    }
}

/// Accepted events, as the counter of this export says.
fn accepted(request: &ExportMetricsServiceRequest) -> Option<f64> {
    let all = metrics(request);
    let metric = all.iter().find(|metric| metric.name == "pixelgate_requests_total")?;
    let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
    assert!(sum.is_monotonic);
    assert_eq!(sum.aggregation_temporality, AggregationTemporality::Cumulative as i32);
    let is_accepted = |attributes: &[KeyValue]| text(attributes, "verdict") == Some("accepted");
    let point = sum.data_points.iter().find(|point| is_accepted(&point.attributes))?;
    assert!(point.start_time_unix_nano > 0 && point.start_time_unix_nano <= point.time_unix_nano);
    match point.value {
        Some(Value::AsDouble(value)) => Some(value),
        _ => None,
    }
}

#[test]
fn a_collector_gets_the_metrics_under_the_names_of_the_scrape() {
    let collector = Origin::start();
    collector.answer(PATH, OK);
    let edge = start(&collector);
    edge.event("_a=62515&_n=a");
    edge.event("_a=62515&_n=b");
    let mut last = None;
    wait_for("both events in an export", || {
        last = exports(&collector).pop().or(last.take());
        last.as_ref().is_some_and(|(_, request)| accepted(request) == Some(2.0))
    });
    let (message, request) = last.unwrap();
    assert_eq!(message.start, format!("POST {PATH} HTTP/1.1"));
    assert_eq!(message.header("authorization"), Some("Bearer sesame"));
    assert_eq!(message.header("content-type"), Some("application/x-protobuf"));
    let resource = request.resource_metrics[0].resource.as_ref().unwrap();
    assert_eq!(text(&resource.attributes, "service.name"), Some("pixelgate"));
    assert!(text(&resource.attributes, "service.instance.id").is_some());

    let scrape = String::from_utf8(edge.admin("/metrics").body).unwrap();
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let scraped: BTreeSet<_> = types.map(|line| line.split(' ').next().unwrap()).collect();
    let sent: BTreeSet<_> = metrics(&request).iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(sent, scraped);
    for metric in metrics(&request) {
        match metric.data.as_ref().unwrap() {
            Data::Histogram(histogram) => {
                let point = &histogram.data_points[0];
                assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
            }
            Data::Gauge(_) => assert!(!metric.name.ends_with("_total"), "{}", metric.name),
            Data::Sum(_) => assert!(metric.name.ends_with("_total"), "{}", metric.name),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_collector_that_takes_nothing_is_a_fault_until_it_does() {
    let collector = Origin::start();
    collector.answer(PATH, NO);
    let edge = start(&collector);
    let fault = || {
        let faults = edge.status()["faults"].as_array().unwrap().clone();
        faults.into_iter().find(|fault| fault["what"] == "otlp")
    };
    let mut found: Option<Json> = None;
    wait_for("the fault", || {
        found = fault();
        found.is_some()
    });
    assert!(found.unwrap()["text"].as_str().unwrap().contains("503"));
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    assert!(!edge.log().contains("sesame"));
    exports(&collector);
    collector.answer(PATH, OK);
    wait_for("the fault to be over", || fault().is_none());
    wait_for("the event in an export", || {
        exports(&collector).iter().any(|(_, request)| accepted(request) == Some(1.0))
    });
}

#[test]
fn a_reload_begins_moves_and_ends_the_export() {
    let [first, second] = [(); 2].map(|()| Origin::start());
    first.answer(PATH, OK);
    second.answer(PATH, NO);
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let config = Setup::default().write(dir.path());
    let text = std::fs::read_to_string(&config).unwrap();
    let edge = Edge::start_in(dir);
    let to = |section: &str| {
        let logged = edge.log().len();
        rename_over(&config, &format!("{text}\n{section}"));
        edge.signal(Signal::HUP);
        wait_for("the reload", || edge.log()[logged..].contains("in force from now on: otlp."));
    };
    let section = |collector: &Origin| {
        let endpoint = format!("http://{}/base/", collector.address);
        format!("[otlp]\nendpoint = \"{endpoint}\"\ninterval_seconds = 1\n")
    };
    let has_fault = || {
        let faults = edge.status()["faults"].as_array().unwrap().clone();
        faults.iter().any(|fault| fault["what"] == "otlp")
    };
    to(&section(&first));
    wait_for("an export", || !exports(&first).is_empty());
    to(&section(&second));
    wait_for("the fault", has_fault);
    assert!(!exports(&second).is_empty());
    to("");
    wait_for("the fault to be over", || !has_fault());
}
