//! The judge: from a hit to a verdict.
//!
//! [`Gate::judge`] puts the pure rules (path, parameters, privacy) and the portal policy into the
//! one order that SPEC section 3 gives the rejections. It is synchronous, knows no connection and
//! records nothing, so that a request, `explain` and a test all ask the same judge. Making an
//! accepted event durable is the caller's next step: [`Gate::encode`] into the spool.

use super::portals::{Policy, PortalVerdict, Portals, RateLimited};
use super::privacy;
use crate::clock::Clock;
use crate::event;
use crate::event::{Context, Event, Reason, Reject, Rules};
use crate::request::path::{Guard, Reading};
use http::Method;
use rand::Rng;
use std::sync::Arc;

/// A request for the event path, as it came.
#[derive(Debug)]
pub struct EventRequest<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// What [`Gate::read`] says of its path.
    pub reading: Reading,
    /// The target's query, undecoded, without `?`.
    pub query: &'a [u8],
    /// What the request says beside its query.
    pub context: Context<'a>,
}

/// What became of an event request. Returned to the host, which may log it and cannot change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The event counts: it is as durable as `spool.durability` promises.
    Accepted,
    /// The event does not count.
    Rejected(Reject),
    /// There was no event to judge: `HEAD` or `OPTIONS`.
    NotJudged,
}

/// What the judge says of a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// An event that counts once it is durable; it is in the place that was given for it.
    Keep,
    /// An event that does not count.
    Refuse(Refusal),
    /// `HEAD`: the headers of a pixel, and nothing recorded.
    Head,
    /// `OPTIONS`: what a browser asks before it sends.
    Preflight,
}

/// Why an event does not count, and when it might.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The first check that failed.
    pub reject: Reject,
    /// After how many seconds the same event would be taken, where that is known.
    pub retry_after_seconds: Option<u32>,
}

impl Refusal {
    pub(crate) fn of(reason: Reason) -> Self {
        Self { reject: Reject::of(reason), retry_after_seconds: None }
    }
}

/// An event that passed every check.
#[derive(Debug)]
pub struct AcceptedEvent<'a> {
    /// The canonical event.
    pub event: Event<'a>,
    /// What the request said beside it, as far as privacy lets it be kept.
    pub context: Context<'a>,
    /// The parameters that were dropped, and why.
    pub ignored: event::IgnoredParams<'a>,
    /// What `enforce` would have refused it for, in `dry_run`.
    pub would_refuse: Option<Reason>,
}

impl AcceptedEvent<'_> {
    /// Nothing yet: a place for an event that passes. It has one because it is large, and moving it
    /// about costs more than some checks.
    pub fn blank() -> Self {
        AcceptedEvent {
            event: Event::blank(),
            context: Context::default(),
            ignored: event::IgnoredParams::new(),
            would_refuse: None,
        }
    }
}

/// What a portal's rate says.
type Rate = Result<(), RateLimited>;

/// The judge of one configuration.
pub struct Gate {
    guard: Guard,
    rules: Rules,
    privacy: privacy::Config,
    portals: Portals,
    clock: Arc<dyn Clock>,
}

impl Gate {
    /// Puts a judge together from parts that have passed their own checks.
    pub fn new(
        guard: Guard,
        rules: Rules,
        privacy: privacy::Config,
        portals: Portals,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { guard, rules, privacy, portals, clock }
    }

    /// Whether a path is the event path in any spelling, or below it (SPEC 2). Anything else is
    /// not ours and must reach the origin untouched.
    pub fn read(&self, path: &[u8]) -> Reading {
        self.guard.read(path)
    }

    /// The portal policy that is in force.
    pub fn portals(&self) -> &Portals {
        &self.portals
    }

    /// The rules by which queries are read.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Judges a hit, and leaves what is kept in `kept`, which is blank: unless it is kept, what is
    /// there afterwards means nothing. A hit whose path is not ours is refused like one below the
    /// event path.
    pub fn judge<'a>(&self, hit: EventRequest<'a>, kept: &mut AcceptedEvent<'a>) -> Decision {
        self.judge_by(hit, kept, |policy| policy.take_rate())
    }

    /// What [`Gate::judge`] would say, without using up a place in a portal's rate.
    pub fn consider<'a>(&self, hit: EventRequest<'a>, kept: &mut AcceptedEvent<'a>) -> Decision {
        self.judge_by(hit, kept, |_| Ok(()))
    }

    fn judge_by<'a>(
        &self,
        hit: EventRequest<'a>,
        kept: &mut AcceptedEvent<'a>,
        take_rate: impl FnOnce(&Policy) -> Rate,
    ) -> Decision {
        if hit.reading != Reading::Event {
            return Decision::Refuse(Refusal::of(Reason::UnknownPath));
        }
        match *hit.method {
            Method::GET => {}
            Method::POST if self.rules.judges_post() => {}
            Method::HEAD => return Decision::Head,
            Method::OPTIONS => return Decision::Preflight,
            _ => return Decision::Refuse(Refusal::of(Reason::MethodNotAllowed)),
        }
        kept.context = hit.context;
        match self.admit(hit.query, kept, take_rate) {
            Ok(()) => Decision::Keep,
            Err(refusal) => Decision::Refuse(refusal),
        }
    }

    /// Reads an event and makes the checks that follow once its parameters are in order.
    fn admit<'a>(
        &self,
        query: &'a [u8],
        kept: &mut AcceptedEvent<'a>,
        take_rate: impl FnOnce(&Policy) -> Rate,
    ) -> Result<(), Refusal> {
        event::parse_into(query, &self.rules, &mut kept.event, &mut kept.ignored)
            .map_err(|reject| Refusal { reject, retry_after_seconds: None })?;
        let decision = self.portals.judge(kept.event.portal, &kept.event.name);
        match decision.ruling {
            PortalVerdict::Allowed => {}
            PortalVerdict::WouldRefuse(reason) => kept.would_refuse = Some(reason),
            PortalVerdict::Refused(reason) => return Err(Refusal::of(reason)),
        }
        if self.privacy.refuses(&kept.context) {
            return Err(Refusal::of(Reason::PrivacyOptOut));
        }
        // Last, because asking uses up a place.
        if let Err(limited) = take_rate(&decision.policy) {
            if limited.enforced {
                let retry_after_seconds = Some(limited.retry_after_seconds);
                return Err(Refusal {
                    reject: Reject::of(Reason::RateLimited),
                    retry_after_seconds,
                });
            }
            kept.would_refuse = kept.would_refuse.or(Some(Reason::RateLimited));
        }
        if decision.policy.drops_any() {
            kept.event.properties.retain(|(name, _)| !decision.policy.drops(name));
        }
        self.privacy.apply(&mut kept.event, &mut kept.context);
        Ok(())
    }

    /// Writes a kept event as a spool record, and gives it its id and its time.
    pub fn encode(&self, kept: &AcceptedEvent<'_>, out: &mut Vec<u8>) {
        let received_at_ms = self.clock.unix_ms();
        let mut random = [0; 10];
        rand::rng().fill_bytes(&mut random);
        let id = uuid::Builder::from_unix_timestamp_millis(received_at_ms, &random).into_uuid();
        event::encode_record(out, id.as_bytes(), received_at_ms, &kept.event, &kept.context);
    }
}
