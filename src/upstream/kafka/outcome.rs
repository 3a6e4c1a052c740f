//! Maps librdkafka's error codes to the outcome of an event (SPEC 7).

use std::borrow::Cow;

use rdkafka::error::RDKafkaErrorCode as Code;

use super::producer::Trouble;
use crate::upstream::outcome::{Failure, Outcome};

/// The outcome of an event whose delivery failed with `code` while the connections were in
/// `trouble`.
///
/// The texts are those of librdkafka, one for each code. No text of a broker is shown.
pub fn of(code: Code, trouble: Trouble) -> Outcome {
    match code {
        // An event whose broker is unreachable fails with a timeout. `trouble` is the cause.
        Code::MessageTimedOut | Code::TimedOutQueue | Code::BrokerTransportFailure => match trouble
        {
            Trouble::None => Outcome::Retry(Failure::new("no acknowledgement in time")),
            Trouble::Unreachable => Outcome::Retry(Failure::new("no broker can be reached")),
            Trouble::Unresolved => Outcome::Retry(Failure::new(
                "no broker can be reached, and a name cannot be resolved",
            )),
            Trouble::Tls => Outcome::Fault(Failure::new("the TLS handshake fails")),
            Trouble::Authentication => Outcome::Fault(Failure::new("authentication fails")),
        },
        // librdkafka reports this about one event, or a broker about a whole request: splitting the
        // batch finds the event.
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            Outcome::TooLarge(failure(code))
        }
        Code::InvalidRecord => Outcome::Rejected(failure(code)),
        // The topic limits timestamps. Its configuration or a clock is wrong, and not the event.
        Code::InvalidTimestamp => Outcome::Fault(failure(code)),
        Code::Authentication
        | Code::ClusterAuthorizationFailed
        | Code::IllegalSASLState
        | Code::InvalidArgument
        | Code::InvalidRequiredAcks
        | Code::InvalidTopic
        | Code::NotImplemented
        | Code::PolicyViolation
        | Code::SSL
        | Code::SaslAuthenticationFailed
        | Code::SecurityDisabled
        | Code::TopicAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::UnknownPartition
        | Code::UnknownTopic
        | Code::UnknownTopicOrPartition
        | Code::UnsupportedCompressionType
        | Code::UnsupportedFeature
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedSASLMechanism
        | Code::UnsupportedVersion => Outcome::Fault(failure(code)),
        _ => Outcome::Retry(failure(code)),
    }
}

fn failure(code: Code) -> Failure {
    Failure::new(Cow::Owned(code.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: Code, trouble: Trouble, label: &str, word: &str) {
        let outcome = of(code, trouble);
        assert_eq!(outcome.label(), label, "{code:?}");
        assert!(format!("{outcome:?}").contains(word), "{outcome:?}");
    }

    #[test]
    fn what_passes_is_tried_again_and_what_must_be_set_right_is_a_fault() {
        check(Code::MessageTimedOut, Trouble::None, "retry", "in time");
        check(Code::MessageTimedOut, Trouble::Unreachable, "retry", "reached");
        check(Code::MessageTimedOut, Trouble::Authentication, "fault", "authentication");
        check(Code::MessageTimedOut, Trouble::Tls, "fault", "TLS");
        check(Code::NotEnoughReplicas, Trouble::None, "retry", "NotEnoughReplicas");
        check(Code::QueueFull, Trouble::None, "retry", "QueueFull");
        check(Code::Fatal, Trouble::None, "retry", "Fatal");
        check(Code::UnknownTopicOrPartition, Trouble::None, "fault", "topic");
        check(Code::TopicAuthorizationFailed, Trouble::None, "fault", "uthorization");
        check(Code::InvalidTimestamp, Trouble::None, "fault", "imestamp");
    }

    #[test]
    fn what_is_wrong_with_an_event_is_said_of_it_alone() {
        check(Code::MessageSizeTooLarge, Trouble::Tls, "too_large", "TooLarge");
        check(Code::InvalidRecord, Trouble::None, "rejected", "InvalidRecord");
    }
}
