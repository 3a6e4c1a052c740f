//! One librdkafka producer, with its own threads and connections.
//!
//! After a fatal error (idempotent production has lost its sequence) a producer accepts no event
//! any more, and `upstream.rs` replaces it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{
    BaseProducer, BaseRecord, Producer as _, ProducerContext, ThreadedProducer,
};

use super::log_lines::{self, LogLines};
use super::outstanding::{DeliveryHandle, End};
use super::setup::Setup;

/// The header that holds an event's id.
const ID_HEADER: &str = "id";

/// See the module.
pub struct Producer {
    /// `None` only while it is dropped.
    producer: Option<ThreadedProducer<Callbacks>>,
}

/// One event as it is handed over.
pub struct Message<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub value: &'a [u8],
    pub id: &'a str,
    pub received_at_ms: u64,
}

/// What is wrong with the connections, as far as librdkafka has said. The later ones explain more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    None,
    Unreachable,
    Unresolved,
    Tls,
    Authentication,
}

/// librdkafka's callbacks: delivery reports, errors, log lines.
struct Callbacks {
    trouble: AtomicU8,
    lines: LogLines,
}

impl Producer {
    /// Starts a producer, which begins to connect. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// What librdkafka finds wrong with the configuration as a whole, without any of its values.
    pub fn open(setup: &Setup) -> Result<Producer, String> {
        let callbacks =
            Callbacks { trouble: AtomicU8::new(0), lines: LogLines::new(&setup.secrets) };
        let producer = setup.client.create_with_context(callbacks);
        Ok(Producer { producer: Some(producer.map_err(|e| told(e, setup))?) })
    }

    /// As [`Producer::open`], but knows no broker and so connects nowhere: whether it would open.
    pub fn rehearse(setup: &Setup) -> Result<(), String> {
        let mut client = setup.client.clone();
        client.remove("bootstrap.servers");
        let callbacks =
            Callbacks { trouble: AtomicU8::new(0), lines: LogLines::new(&setup.secrets) };
        let producer: Result<BaseProducer<Callbacks>, _> = client.create_with_context(callbacks);
        producer.map(drop).map_err(|e| told(e, setup))
    }

    /// Hands one event over. Its handle comes back with the report, or, where this fails, at once.
    ///
    /// # Errors
    ///
    /// There is no room just now: the handle comes back open.
    pub fn hand_over(
        &self,
        message: &Message<'_>,
        handle: DeliveryHandle,
    ) -> Result<(), DeliveryHandle> {
        let Some(producer) = &self.producer else { return Err(handle) };
        let id = Header { key: ID_HEADER, value: Some(message.id) };
        let mut record = BaseRecord::with_opaque_to(message.topic, Box::new(handle))
            .payload(message.value)
            .timestamp(i64::try_from(message.received_at_ms).unwrap_or(i64::MAX))
            .headers(OwnedHeaders::new_with_capacity(1).insert(id));
        record.key = message.key;
        let Err((error, record)) = producer.send(record) else { return Ok(()) };
        match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                return Err(*record.delivery_opaque);
            }
            KafkaError::MessageProduction(code) => record.delivery_opaque.end(End::Failed(code)),
            // The topic's name holds a null, which the configuration does not let through.
            _ => record.delivery_opaque.end(End::Failed(RDKafkaErrorCode::InvalidTopic)),
        }
        Ok(())
    }

    /// What keeps events from being delivered, if anything was said since the last delivery.
    pub fn trouble(&self) -> Trouble {
        self.producer.as_ref().map_or(Trouble::None, |p| p.client().context().trouble())
    }

    /// Ends the producer: what is still on its way is given up. Blocks until its threads have
    /// ended.
    pub fn close(mut self) {
        drop(self.producer.take());
    }

    /// The fatal error that has ended the producer, if one has.
    pub fn fatal_error(&self) -> Option<RDKafkaErrorCode> {
        Some(self.producer.as_ref()?.client().fatal_error()?.0)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // As `close`, which async code must not wait for. Where no thread can be had it is dropped
        // right here.
        let Some(producer) = self.producer.take() else { return };
        let _ = thread::Builder::new().spawn(move || drop(producer));
    }
}

impl Trouble {
    const ALL: [Trouble; 5] = [
        Trouble::None,
        Trouble::Unreachable,
        Trouble::Unresolved,
        Trouble::Tls,
        Trouble::Authentication,
    ];
}

impl Callbacks {
    fn trouble(&self) -> Trouble {
        let place = usize::from(self.trouble.load(Ordering::Relaxed));
        Trouble::ALL.get(place).copied().unwrap_or(Trouble::None)
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.lines.pass_on(level, facility, line);
    }

    fn error(&self, error: KafkaError, _: &str) {
        // Its text is in a log line as well.
        let KafkaError::Global(code) = error else { return };
        let trouble = match code {
            RDKafkaErrorCode::Authentication => Trouble::Authentication,
            RDKafkaErrorCode::SSL => Trouble::Tls,
            RDKafkaErrorCode::Resolve => Trouble::Unresolved,
            RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::BrokerTransportFailure => {
                Trouble::Unreachable
            }
            _ => return,
        };
        self.trouble.fetch_max(trouble as u8, Ordering::Relaxed);
    }

    fn stats_raw(&self, _: &[u8]) {}
}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = Box<DeliveryHandle>;

    fn delivery(&self, result: &DeliveryResult<'_>, handle: Box<DeliveryHandle>) {
        let end = match result {
            Ok(_) => {
                self.trouble.store(Trouble::None as u8, Ordering::Relaxed);
                End::Delivered
            }
            Err((KafkaError::MessageProduction(code), _)) => End::Failed(*code),
            Err(_) => End::Failed(RDKafkaErrorCode::Fail),
        };
        handle.end(end);
    }
}

/// librdkafka's own words, which name the property at fault, less what must not be shown.
fn told(error: KafkaError, setup: &Setup) -> String {
    match error {
        KafkaError::ClientCreation(text) => log_lines::without(&setup.secrets, &text),
        _ => "librdkafka refuses the configuration".to_owned(),
    }
}
