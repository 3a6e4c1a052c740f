//! The link to a server: one connection, through which a stream has been seen.
//!
//! A link is used until something goes wrong with it: its connection breaks, an acknowledgement
//! does not come, the server denies a right. What was on its way then has no answer to hope for,
//! and is given up at once; the next attempt makes a new link, and so learns why if there can be
//! none. The client's own way of connecting again could not tell.

use std::future::Future;
use std::time::Duration;

use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture};
use async_nats::jetstream::message::PublishMessage;
use async_nats::{Client, ConnectOptions, Event, ServerError, jetstream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::{BATCHES_MAX, Login, Setup, UNANSWERED_MAX, outcome};
use crate::upstream::{Failure, Outcome};

/// Longest time to wait for a connection to one server; the whole attempt's where that is less.
const CONNECT_SECONDS_MAX: u64 = 5;
/// How often a silent connection is probed.
const PING_SECONDS: u64 = 15;

/// See the module.
pub struct Link {
    /// Kept, because the connection lives as long as it.
    _client: Client,
    jetstream: jetstream::Context,
    word: watch::Receiver<Word>,
}

/// The last word from the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Fine,
    Broken,
    Denied,
}

impl Link {
    /// Connects and looks whether the stream is there and takes the subject.
    pub async fn open(setup: &Setup, deadline: Instant) -> Result<Link, Outcome> {
        let (say, word) = watch::channel(Word::Fine);
        let options = options(setup, say).await?;
        let connecting = timeout_at(deadline, options.connect(&setup.servers[..])).await;
        let connected =
            connecting.map_err(|_| Outcome::Retry(Failure::new("connecting timed out")))?;
        let client = connected.map_err(|e| outcome::of_connect(&e))?;
        let jetstream = ContextBuilder::new()
            .timeout(setup.timeout)
            .max_ack_inflight(UNANSWERED_MAX * BATCHES_MAX)
            .build(client.clone());
        let link = Link { _client: client, jetstream, word };
        link.check_stream(setup, deadline).await?;
        Ok(link)
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

    /// Sends one event; its acknowledgement is still to come.
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

    /// Waits for an acknowledgement. The outer error is the link's: no other will come.
    pub async fn acknowledged(
        &self,
        ack: PublishAckFuture,
        deadline: Instant,
    ) -> Result<Outcome, Outcome> {
        let acknowledged = self.unless_broken(deadline, ack.into_future()).await?;
        Ok(ended(acknowledged))
    }

    /// Whether nothing has gone wrong with it yet.
    pub fn is_sound(&self) -> bool {
        *self.word.borrow() == Word::Fine
    }

    /// The future's value, unless the link fails it first.
    async fn unless_broken<F: Future>(
        &self,
        deadline: Instant,
        future: F,
    ) -> Result<F::Output, Outcome> {
        let mut word = self.word.clone();
        let failed = async {
            // An error: the client is gone altogether.
            word.wait_for(|word| *word != Word::Fine).await.map_or(Word::Broken, |word| *word)
        };
        tokio::select! {
            biased;
            value = future => Ok(value),
            word = failed => Err(match word {
                Word::Denied => Outcome::Fault(Failure::new("the server denies us the right")),
                Word::Fine | Word::Broken => Outcome::Retry(Failure::new("the connection broke")),
            }),
            () = tokio::time::sleep_until(deadline) => {
                Err(Outcome::Retry(Failure::new("no answer in time")))
            }
        }
    }
}

/// An acknowledgement that is there already, of an event whose link has failed.
pub async fn already_acknowledged(ack: PublishAckFuture) -> Option<Outcome> {
    timeout(Duration::ZERO, ack.into_future()).await.ok().map(ended)
}

fn ended(
    acknowledged: Result<jetstream::publish::PublishAck, jetstream::context::PublishError>,
) -> Outcome {
    match acknowledged {
        // One that the stream had already counts as well: it has it.
        Ok(_) => Outcome::Delivered,
        Err(error) => outcome::of_publish(&error),
    }
}

async fn options(setup: &Setup, say: watch::Sender<Word>) -> Result<ConnectOptions, Outcome> {
    let options = match &setup.login {
        Login::Nobody => ConnectOptions::new(),
        Login::Token(token) => ConnectOptions::with_token(token.clone()),
        Login::User(user, password) => {
            ConnectOptions::with_user_and_password(user.clone(), password.clone())
        }
    };
    let options = match &setup.credentials {
        Some(path) => options
            .credentials_file(path)
            .await
            .map_err(|_| Outcome::Fault(Failure::new("the credentials file cannot be read")))?,
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
        // Once over the list, when it connects; and once more when the connection has broken, so
        // that a client nobody uses any more ends.
        .max_reconnects(setup.servers.len())
        .ignore_discovered_servers()
        .event_callback(move |event| {
            let word = match event {
                Event::Disconnected | Event::Closed => Some(Word::Broken),
                Event::ServerError(ServerError::AuthorizationViolation) => Some(Word::Denied),
                Event::ServerError(ServerError::Other(text)) if is_denial(&text) => {
                    Some(Word::Denied)
                }
                _ => None,
            };
            if let Some(word) = word {
                say.send_if_modified(|last| {
                    let first = *last == Word::Fine;
                    if first {
                        *last = word;
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
