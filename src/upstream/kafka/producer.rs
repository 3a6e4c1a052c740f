//! One librdkafka producer, with its own threads and connections.
//!
//! After a fatal error (the idempotent producer has lost its sequence), a producer accepts no more
//! events. After a broker has lost its state, or after a topic was deleted and created again, it
//! may deliver nothing without an error. In both cases `upstream.rs` replaces the producer.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

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

/// One librdkafka producer.
pub struct Producer {
    /// `None` only during `drop`.
    producer: Option<ThreadedProducer<Callbacks>>,
}

/// One event as a Kafka message.
pub struct Message<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    pub value: &'a [u8],
    pub id: &'a str,
    pub received_at_ms: u64,
}

/// The last connection trouble that librdkafka reported. Later variants are more specific.
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
    /// Starts a producer, which connects in the background. Blocks for some milliseconds.
    ///
    /// # Errors
    ///
    /// librdkafka rejects the configuration as a whole. The text says why, with secrets masked.
    pub fn open(setup: &Setup) -> Result<Producer, String> {
        let callbacks =
            Callbacks { trouble: AtomicU8::new(0), lines: LogLines::new(&setup.secrets) };
        let producer = setup.client.create_with_context(callbacks);
        Ok(Producer { producer: Some(producer.map_err(|e| masked_text(e, setup))?) })
    }

    /// Checks that [`Producer::open`] would succeed. Removes the brokers, so that no connection is
    /// opened.
    pub fn rehearse(setup: &Setup) -> Result<(), String> {
        let mut client = setup.client.clone();
        client.remove("bootstrap.servers");
        let callbacks =
            Callbacks { trouble: AtomicU8::new(0), lines: LogLines::new(&setup.secrets) };
        let producer: Result<BaseProducer<Callbacks>, _> = client.create_with_context(callbacks);
        producer.map(drop).map_err(|e| masked_text(e, setup))
    }

    /// Queues one event. `handle` ends with its delivery report, or at once if it cannot be queued.
    ///
    /// # Errors
    ///
    /// The queue is full. The open handle is returned, and the caller tries again.
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
            // The name of the topic holds a null character, which the configuration does not allow.
            _ => record.delivery_opaque.end(End::Failed(RDKafkaErrorCode::InvalidTopic)),
        }
        Ok(())
    }

    /// The trouble reported since the last successful delivery or answer.
    pub fn trouble(&self) -> Trouble {
        self.producer.as_ref().map_or(Trouble::None, |p| p.client().context().trouble())
    }

    /// Whether a broker answers within `patience`. Blocks until then. An answer ends earlier
    /// trouble with connections.
    pub fn is_answered(&self, topic: &str, patience: Duration) -> bool {
        let Some(producer) = &self.producer else { return false };
        let answered = producer.client().fetch_metadata(Some(topic), patience).is_ok();
        if answered {
            let trouble = &producer.client().context().trouble;
            trouble.store(Trouble::None as u8, Ordering::Relaxed);
        }
        answered
    }

    /// Stops the producer and gives up the events in flight. Blocks until its threads have ended.
    pub fn close(mut self) {
        drop(self.producer.take());
    }

    /// The fatal error of the producer, if there was one.
    pub fn fatal_error(&self) -> Option<RDKafkaErrorCode> {
        Some(self.producer.as_ref()?.client().fatal_error()?.0)
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        // Stopping blocks, so it is done on a thread of its own. If no thread can be started, the
        // producer is dropped, and stopped, here.
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
        // librdkafka also logs the text of the error.
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

/// The message of librdkafka, which names the property at fault, with secrets masked.
fn masked_text(error: KafkaError, setup: &Setup) -> String {
    match error {
        KafkaError::ClientCreation(text) => log_lines::without(&setup.secrets, &text),
        _ => "librdkafka refuses the configuration".to_owned(),
    }
}
