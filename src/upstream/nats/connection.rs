//! A connection to a server, whose stream was checked when it was opened.
//!
//! A connection is used until it breaks, an acknowledgement is missing at the deadline, or the
//! server denies a permission. Publishes in flight then fail at once, because their
//! acknowledgements cannot arrive any more, and the next attempt opens a new connection. If that
//! fails, its error says why. The client could reconnect by itself, but it would not report why it
//! fails.

use std::future::Future;
use std::time::Duration;

use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, ConnectOptions, Event, ServerError, jetstream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::outcome;
use super::setup::{BATCHES_MAX, Login, Setup, UNANSWERED_MAX};
use crate::upstream::outcome::{Failure, Outcome};

/// Limit for connecting to one server, in seconds; `timeout_seconds` if that is less.
const CONNECT_SECONDS_MAX: u64 = 5;
/// Interval of pings, in seconds.
const PING_SECONDS: u64 = 15;

/// A connection whose stream was checked.
pub struct Connection {
    /// Stored here, because dropping the client closes the connection.
    _client: Client,
    jetstream: jetstream::Context,
    health: watch::Receiver<Health>,
}

/// The last state reported by the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Fine,
    Broken,
    Denied,
}

impl Connection {
    /// Connects, and checks that the stream exists and takes the subject.
    pub async fn open(setup: &Setup, deadline: Instant) -> Result<Connection, Outcome> {
        let (report, health) = watch::channel(Health::Fine);
        let options = options(setup, report).await?;
        let connecting = timeout_at(deadline, options.connect(&setup.servers[..])).await;
        let connected =
            connecting.map_err(|_| Outcome::Retry(Failure::new("connecting timed out")))?;
        let client = connected.map_err(|e| outcome::of_connect(&e))?;
        let jetstream = ContextBuilder::new()
            .timeout(setup.timeout)
            .max_ack_inflight(UNANSWERED_MAX * BATCHES_MAX)
            .build(client.clone());
        let connection = Connection { _client: client, jetstream, health };
        connection.check_stream(setup, deadline).await?;
        Ok(connection)
    }

    async fn check_stream(&self, setup: &Setup, deadline: Instant) -> Result<(), Outcome> {
        let asking = self.unless_broken(deadline, self.jetstream.get_stream(&setup.stream));
        let stream = asking.await?.map_err(|e| outcome::of_stream(&e))?;
        let filters = &stream.cached_info().config.subjects;
        if filters.iter().any(|filter| setup.subject.is_taken_by(filter)) {
            return Ok(());
        }
        Err(Outcome::Fault(Failure::new("the stream does not take the subject")))
    }

    /// Publishes one event. The inner future waits for its acknowledgement.
    pub async fn publish(
        &self,
        subject: String,
        message: PublishMessage,
        deadline: Instant,
    ) -> Result<Result<PublishAckFuture, Outcome>, Outcome> {
        let sending = self.jetstream.send_publish(subject, message);
        let sent = self.unless_broken(deadline, sending).await?;
        Ok(sent.map_err(|e| outcome::of_publish(&e)))
    }

    /// Waits for an acknowledgement. An error means that the connection failed or the deadline has
    /// passed: no further acknowledgement will arrive.
    pub async fn acknowledged(
        &self,
        ack: PublishAckFuture,
        deadline: Instant,
    ) -> Result<Outcome, Outcome> {
        let acknowledged = self.unless_broken(deadline, ack.into_future()).await?;
        Ok(ended(acknowledged))
    }

    /// Whether the connection has reported no failure.
    pub fn is_sound(&self) -> bool {
        *self.health.borrow() == Health::Fine
    }

    /// Waits for `future`. An error means that the connection failed first or the deadline passed.
    async fn unless_broken<F: Future>(
        &self,
        deadline: Instant,
        future: F,
    ) -> Result<F::Output, Outcome> {
        let mut health = self.health.clone();
        let failed = async {
            // `wait_for` fails if the client has ended.
            health
                .wait_for(|health| *health != Health::Fine)
                .await
                .map_or(Health::Broken, |health| *health)
        };
        tokio::select! {
            biased;
            value = future => Ok(value),
            health = failed => Err(match health {
                Health::Denied => Outcome::Fault(Failure::new("the server denies a permission")),
                Health::Fine | Health::Broken => {
                    Outcome::Retry(Failure::new("the connection broke"))
                }
            }),
            () = tokio::time::sleep_until(deadline) => {
                Err(Outcome::Retry(Failure::new("no answer in time")))
            }
        }
    }
}

/// The outcome of an event whose acknowledgement arrived before its connection failed.
pub async fn already_acknowledged(ack: PublishAckFuture) -> Option<Outcome> {
    timeout(Duration::ZERO, ack.into_future()).await.ok().map(ended)
}

fn ended(
    acknowledged: Result<jetstream::publish::PublishAck, jetstream::context::PublishError>,
) -> Outcome {
    match acknowledged {
        // A duplicate counts as delivered, too, because the stream has the event.
        Ok(_) => Outcome::Delivered,
        Err(error) => outcome::of_publish(&error),
    }
}

async fn options(setup: &Setup, report: watch::Sender<Health>) -> Result<ConnectOptions, Outcome> {
    let options = match &setup.login {
        Login::Anonymous => ConnectOptions::new(),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::User(user, password) => {
            ConnectOptions::with_user_and_password(user.clone(), password.clone())
        }
    };
    let options = match &setup.credentials {
        Some(path) => options.credentials_file(path).await.map_err(|_| {
            let what = format!("the credentials file {} cannot be read", path.display());
            Outcome::Fault(Failure::new(what))
        })?,
        None => options,
    };
    let connect = setup.timeout.min(Duration::from_secs(CONNECT_SECONDS_MAX));
    Ok(options
        .name("pixelgate")
        .tls_client_config(setup.tls.clone())
        .require_tls(setup.tls_required)
        .connection_timeout(connect)
        .request_timeout(Some(setup.timeout))
        .ping_interval(Duration::from_secs(PING_SECONDS))
        // The client tries each server once to connect, and once after the connection broke. Then
        // it ends, even if it is abandoned.
        .max_reconnects(setup.servers.len())
        .ignore_discovered_servers()
        .event_callback(move |event| {
            let health = match event {
                Event::Disconnected | Event::Closed => Some(Health::Broken),
                Event::ServerError(ServerError::AuthorizationViolation) => Some(Health::Denied),
                Event::ServerError(ServerError::Other(text)) if is_denial(&text) => {
                    Some(Health::Denied)
                }
                _ => None,
            };
            if let Some(health) = health {
                report.send_if_modified(|last| {
                    let first = *last == Health::Fine;
                    if first {
                        *last = health;
                    }
                    first
                });
            }
            async {}
        }))
}

fn is_denial(text: &str) -> bool {
    text.to_ascii_lowercase().contains("permissions violation")
}
