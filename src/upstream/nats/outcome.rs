//! Maps errors of NATS to the outcome of an event or of an attempt (SPEC 7).
//!
//! The message of a server may repeat a subject or a name, so it is not shown. Each error has a
//! fixed text.

use std::io;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind, RequestError,
    RequestErrorKind,
};
use async_nats::{ConnectError, ConnectErrorKind, ServerError};

use crate::tls_error::{cause, words};
use crate::upstream::outcome::{Failure, Outcome};

/// The outcome of a failed connection attempt.
pub fn of_connect(error: &ConnectError) -> Outcome {
    if let Some(tls) = cause::<rustls::Error>(error) {
        return match tls {
            rustls::Error::InvalidCertificate(_) | rustls::Error::AlertReceived(_) => {
                fault(format!("the TLS handshake fails: {}", words(tls)))
            }
            _ => retry(format!("the TLS handshake fails: {}", words(tls))),
        };
    }
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            fault("the server refuses the credentials")
        }
        ConnectErrorKind::Tls => fault("TLS cannot be set up"),
        ConnectErrorKind::ServerParse => fault("a server's address cannot be used"),
        ConnectErrorKind::Dns => retry("cannot connect: the server's name is not known"),
        ConnectErrorKind::TimedOut => retry("connecting timed out"),
        ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => match cause(error) {
            Some(ServerError::Other(text)) if is_about_login(text) => {
                fault("the server refuses the credentials")
            }
            Some(_) => retry("the server refuses the connection"),
            None => match cause::<io::Error>(error) {
                // The text is that of the operating system. Other errors may hold text of the
                // server.
                Some(e) if e.raw_os_error().is_some() => retry(format!("cannot connect: {e}")),
                _ => retry("cannot connect"),
            },
        },
    }
}

/// The outcome if the stream cannot be looked up or does not exist.
pub fn of_stream(error: &GetStreamError) -> Outcome {
    match error.kind() {
        GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName => {
            fault("the stream's name cannot be used")
        }
        GetStreamErrorKind::JetStream(answer) => of_code(answer.error_code()),
        GetStreamErrorKind::Request => match cause::<RequestError>(error).map(|e| e.kind()) {
            Some(RequestErrorKind::NoResponders) => fault("the server has no JetStream"),
            _ => retry("no answer about the stream"),
        },
    }
}

/// The outcome of an event that was not acknowledged.
pub fn of_publish(error: &PublishError) -> Outcome {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Outcome::TooLarge(Failure::new("larger than the server's max_payload"))
        }
        // This may mean that the stream has no leader now. The next attempt checks whether the
        // stream exists.
        PublishErrorKind::StreamNotFound => retry("no stream takes the subject"),
        PublishErrorKind::TimedOut => retry("no answer in time"),
        PublishErrorKind::BrokenPipe => retry("the connection broke"),
        PublishErrorKind::MaxAckPending => retry("too many events wait for an acknowledgement"),
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence => {
            retry("the stream expects another last message")
        }
        PublishErrorKind::Other => match cause::<async_nats::jetstream::Error>(error) {
            Some(answer) => of_code(answer.error_code()),
            None => retry("the answer cannot be understood"),
        },
    }
}

/// The outcome of an error code of JetStream.
fn of_code(code: ErrorCode) -> Outcome {
    match code {
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            Outcome::TooLarge(Failure::new("larger than the stream's max_msg_size"))
        }
        ErrorCode::STREAM_NOT_FOUND => fault("the stream does not exist"),
        ErrorCode::STREAM_NOT_MATCH => fault("another stream takes the subject"),
        ErrorCode::STREAM_SEALED => fault("the stream is sealed"),
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            fault("JetStream is not enabled")
        }
        ErrorCode::NO_ACCOUNT => fault("the account does not exist"),
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => retry("the stream is full, or its storage is"),
        other => retry(format!("JetStream answered {}", other.0)),
    }
}

/// Whether a server's error is about authentication.
fn is_about_login(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["authentication", "authorization", "credentials"].iter().any(|word| text.contains(word))
}

fn retry(what: impl Into<std::borrow::Cow<'static, str>>) -> Outcome {
    Outcome::Retry(Failure::new(what))
}

fn fault(what: impl Into<std::borrow::Cow<'static, str>>) -> Outcome {
    Outcome::Fault(Failure::new(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outcome: &Outcome, label: &str, word: &str) {
        assert_eq!(outcome.label(), label, "{outcome:?}");
        assert!(format!("{outcome:?}").contains(word), "{outcome:?}");
    }

    #[test]
    fn why_there_is_no_connection_is_told_apart() {
        let of = |kind| of_connect(&ConnectError::new(kind));
        check(&of(ConnectErrorKind::AuthorizationViolation), "fault", "credentials");
        check(&of(ConnectErrorKind::TimedOut), "retry", "timed out");
        check(&of(ConnectErrorKind::Dns), "retry", "name");
        let refused = io::Error::from_raw_os_error(111);
        let refused = ConnectError::with_source(ConnectErrorKind::Io, refused);
        check(&of_connect(&refused), "retry", "refused");
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_a_fault() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, tls);
        let error = ConnectError::with_source(ConnectErrorKind::Io, wrapped);
        check(&of_connect(&error), "fault", "UnknownIssuer");
    }

    #[test]
    fn the_servers_words_are_not_repeated() {
        for (text, label) in
            [("User Authentication Expired", "fault"), ("maximum connections exceeded", "retry")]
        {
            let error = ServerError::Other(text.to_owned());
            let error = ConnectError::with_source(ConnectErrorKind::Io, error);
            let outcome = of_connect(&error);
            check(&outcome, label, "refuses");
            assert!(!format!("{outcome:?}").contains(text));
        }
    }

    #[test]
    fn an_event_that_was_not_taken_is_tried_again_unless_it_is_too_large() {
        let of = |kind| of_publish(&PublishError::new(kind));
        check(&of(PublishErrorKind::MaxPayloadExceeded), "too_large", "max_payload");
        check(&of(PublishErrorKind::StreamNotFound), "retry", "no stream");
        check(&of(PublishErrorKind::TimedOut), "retry", "in time");
        check(&of_code(ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM), "too_large", "max_msg_size");
        check(&of_code(ErrorCode::STREAM_NOT_FOUND), "fault", "exist");
        check(&of_code(ErrorCode::STREAM_STORE_FAILED), "retry", "full");
        check(&of_code(ErrorCode::CLUSTER_NOT_AVAILABLE), "retry", "10008");
    }
}
