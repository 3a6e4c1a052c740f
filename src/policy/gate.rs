//! The judge: turns an event request into a decision.
//!
//! [`Gate::judge`] applies the rules for paths and parameters, the portal policy and privacy, in
//! the order of the rejections in SPEC 3. It is synchronous, knows no connection, and counts
//! nothing but rates and quotas, so that requests, `explain` and tests use the same judge. It does
//! not make an accepted event durable: the caller writes the event into the spool with
//! [`Gate::encode`].

use super::inspect::{Addition, Inspector};
use super::portals::{Policy, PortalVerdict, Portals, RateLimited};
use super::privacy;
use crate::clock::{Clock, UNIX_MS_MAX};
use crate::event;
use crate::event::{Context, Event, EventId, Reason, Rejection, Route, Rules};
use crate::request::path::{Guard, Reading};
use http::Method;
use rand::RngCore;
use std::sync::Arc;

/// A request for the event path, as received.
#[derive(Debug)]
pub struct EventRequest<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// What [`Gate::read`] says about the request's path.
    pub reading: Reading,
    /// The target's query, undecoded, without `?`.
    pub query: &'a [u8],
}

/// What the judge decides about an event request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The event counts once it is durable. The judge has filled in the [`AcceptedEvent`].
    Accept,
    /// The event does not count.
    Reject(Rejection),
    /// The method is `HEAD`: the answer is the header of a pixel, and nothing is recorded.
    Head,
    /// The method is `OPTIONS`: a CORS preflight, which a browser sends before the event.
    Preflight,
}

/// An event that passed every check.
#[derive(Debug)]
pub struct AcceptedEvent<'a> {
    /// The canonical event.
    pub event: Event<'a>,
    /// The request's context, reduced as `[privacy]` says.
    pub context: Context<'a>,
    /// The parameters that were dropped, each with the cause.
    pub ignored: event::IgnoredParams<'a>,
    /// The upstreams that the event is meant for. `None`: all.
    pub route: Option<Route>,
    /// Whether the portal is in the portal list. `None`: the judge has not come so far.
    pub is_listed: Option<bool>,
    /// Mode `dry_run` only: the reason for which `enforce` would have rejected the event.
    pub would_reject: Option<Reason>,
}

impl AcceptedEvent<'_> {
    /// An empty event for [`Gate::judge`] to fill in. The caller provides it because an event is
    /// large, and moving one costs more than some checks.
    pub fn blank() -> Self {
        AcceptedEvent {
            event: Event::blank(),
            context: Context::default(),
            ignored: event::IgnoredParams::new(),
            route: None,
            is_listed: None,
            would_reject: None,
        }
    }
}

/// Whether a portal's rate and quota allow one more event.
type Rate = Result<(), RateLimited>;

/// The judge of one configuration.
pub struct Gate {
    guard: Guard,
    rules: Rules,
    privacy: privacy::Config,
    portals: Portals,
    clock: Arc<dyn Clock>,
    /// The host's inspector, if it has one.
    inspector: Option<Inspector>,
}

impl Gate {
    /// Builds a judge from parts that are already validated.
    pub fn new(
        guard: Guard,
        rules: Rules,
        privacy: privacy::Config,
        portals: Portals,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { guard, rules, privacy, portals, clock, inspector: None }
    }

    /// The same judge, which asks `inspector` about each event before it counts the event against
    /// the portal's rate.
    pub fn with_inspector(self, inspector: Option<Inspector>) -> Self {
        Self { inspector, ..self }
    }

    /// Whether a path is the event path in any reading, or continues below it (SPEC 2). A request
    /// for any other path must reach the origin unchanged.
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

    /// Judges a request, and fills in `accepted`, which must be blank. `context` gives the data of
    /// the request's headers and of its connection. It is called only for an event that the portal
    /// policy takes, because most rejected events have failed before, and the context costs as much
    /// as many checks.
    ///
    /// If the decision is not [`Decision::Accept`], `accepted` holds the portal and the name of the
    /// event if they are valid, and whether the portal is listed if that is known; everything else
    /// in it is meaningless. A request for a path that is not the event path is rejected as
    /// `unknown_path`.
    pub fn judge<'a>(
        &self,
        request: EventRequest<'a>,
        context: impl FnOnce() -> Context<'a>,
        accepted: &mut AcceptedEvent<'a>,
    ) -> Decision {
        self.judge_by(request, context, accepted, |policy| policy.take_rate())
    }

    /// Judges as [`Gate::judge`] does, without a context, and does not count the event against the
    /// portal's rate and quota.
    pub fn consider<'a>(
        &self,
        request: EventRequest<'a>,
        accepted: &mut AcceptedEvent<'a>,
    ) -> Decision {
        self.judge_by(request, Context::default, accepted, |_| Ok(()))
    }

    fn judge_by<'a>(
        &self,
        request: EventRequest<'a>,
        context: impl FnOnce() -> Context<'a>,
        accepted: &mut AcceptedEvent<'a>,
        take_rate: impl FnOnce(&Policy) -> Rate,
    ) -> Decision {
        if request.reading != Reading::Event {
            return Decision::Reject(Rejection::of(Reason::UnknownPath));
        }
        match *request.method {
            Method::GET => {}
            Method::POST if self.rules.judges_post() => {}
            Method::HEAD => return Decision::Head,
            Method::OPTIONS => return Decision::Preflight,
            _ => return Decision::Reject(Rejection::of(Reason::MethodNotAllowed)),
        }
        match self.admit(request.query, context, accepted, take_rate) {
            Ok(()) => Decision::Accept,
            Err(rejection) => Decision::Reject(rejection),
        }
    }

    /// Reads an event, then applies the checks that need valid parameters.
    fn admit<'a>(
        &self,
        query: &'a [u8],
        context: impl FnOnce() -> Context<'a>,
        accepted: &mut AcceptedEvent<'a>,
        take_rate: impl FnOnce(&Policy) -> Rate,
    ) -> Result<(), Rejection> {
        event::parse_into(query, &self.rules, &mut accepted.event, &mut accepted.ignored)?;
        let portal = self.portals.judge(accepted.event.portal, &accepted.event.name);
        accepted.is_listed = Some(portal.policy.is_listed());
        match portal.verdict {
            PortalVerdict::Allowed => {}
            PortalVerdict::WouldReject(reason) => accepted.would_reject = Some(reason),
            PortalVerdict::Rejected(reason) => return Err(Rejection::of(reason)),
        }
        accepted.context = context();
        if self.privacy.rejects(&accepted.context) {
            return Err(Rejection::of(Reason::PrivacyOptOut));
        }
        let privacy = portal.policy.privacy(self.privacy);
        if privacy.rejects(&accepted.context) {
            match portal.policy.refusal(Reason::PrivacyOptOut) {
                PortalVerdict::Allowed => {}
                PortalVerdict::WouldReject(reason) => accepted.would_reject = Some(reason),
                PortalVerdict::Rejected(reason) => return Err(Rejection::of(reason)),
            }
        }
        if portal.policy.drops_any() {
            drop_fields(&portal.policy, &mut accepted.event);
        }
        accepted.route = portal.policy.route().cloned();
        privacy.apply(&mut accepted.event, &mut accepted.context);
        if let Some(inspector) = &self.inspector {
            inspect(inspector, &privacy, accepted)?;
        }
        // The rate is last, because checking it counts the event against it.
        if let Err(limited) = take_rate(&portal.policy) {
            if limited.enforced {
                return Err(Rejection {
                    retry_after_seconds: Some(limited.retry_after_seconds),
                    ..Rejection::of(Reason::RateLimited)
                });
            }
            accepted.would_reject = accepted.would_reject.or(Some(Reason::RateLimited));
        }
        Ok(())
    }

    /// Reduces the context of a request as `[privacy]` says. Does not change a reduced context.
    pub fn reduced<'a>(&self, mut context: Context<'a>) -> Context<'a> {
        self.privacy.apply(&mut Event::blank(), &mut context);
        context
    }

    /// Reduces the context of a request that is not judged, or not yet. If its path is the event
    /// path or below it, the `privacy` of each portal that the query names applies as well.
    pub fn reduced_unjudged<'a>(
        &self,
        reading: Reading,
        query: &[u8],
        context: Context<'a>,
    ) -> Context<'a> {
        match reading {
            Reading::Other => self.reduced(context),
            Reading::Event | Reading::Unknown => self.reduced_for(0, query, context),
        }
    }

    /// Reduces the context of an event request that was not accepted, as `[privacy]` and the
    /// portal's own `privacy` say. `portal` is 0 if it is not known: then the `privacy` of each
    /// portal that the query names applies.
    pub fn reduced_for<'a>(&self, portal: u64, query: &[u8], context: Context<'a>) -> Context<'a> {
        let mut reduced = self.reduced(context);
        let named = match portal {
            0 => event::named_portals(query, &self.rules),
            known => vec![known],
        };
        for portal in named {
            let privacy = self.portals.judge(portal, "").policy.privacy(self.privacy);
            privacy.apply(&mut Event::blank(), &mut reduced);
        }
        reduced
    }

    /// Appends an accepted event to `out` as a spool record with a new id and the current time.
    /// Returns the id.
    pub fn encode(&self, accepted: &AcceptedEvent<'_>, out: &mut Vec<u8>) -> EventId {
        let received_at_ms = self.clock.unix_ms().min(UNIX_MS_MAX);
        let mut random = [0; 10];
        rand::thread_rng().fill_bytes(&mut random);
        let id = EventId::new(received_at_ms, &random);
        let AcceptedEvent { event, context, route, .. } = accepted;
        if let Some(route) = route {
            route.write(out);
        }
        event::encode_record(out, id.as_bytes(), received_at_ms, event, context);
        id
    }
}

/// Removes the properties, the `email` and the `id` that the portal's `drop_properties` names.
fn drop_fields(policy: &Policy, event: &mut Event<'_>) {
    event.properties.retain(|(name, _)| !policy.drops(name));
    if policy.drops("email") {
        event.email = None;
    }
    if policy.drops("id") {
        event.external_id = None;
    }
}

/// Asks the host's inspector, which sees the event and the context as they would be stored.
#[inline(never)]
fn inspect(
    inspector: &Inspector,
    privacy: &privacy::Config,
    accepted: &mut AcceptedEvent<'_>,
) -> Result<(), Rejection> {
    let AcceptedEvent { event, context, .. } = accepted;
    inspector(event, &mut Addition::to(context)).map_err(|refusal| Rejection {
        host_reason: Some(refusal.reason()),
        ..Rejection::of(Reason::RefusedByHost)
    })?;
    // Applied a second time: the additions of the host must not identify a visitor that `[privacy]`
    // has made anonymous.
    privacy.apply(event, context);
    Ok(())
}
