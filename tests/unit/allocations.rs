//! How often an event allocates on its way through the gate: a ceiling.
//!
//! What is counted is the thread that serves the request: reading the path, gathering the context,
//! judging, encoding, appending, and asking once whether the event is safe. The committer's
//! allocations are per group and not per event, and a connection's are the HTTP server's.

use crate::counting::allocations;
use http::{HeaderMap, HeaderValue, Method, header};
use pixelgate::internals::clock::{Clock, SystemClock};
use pixelgate::internals::event::Rules;
use pixelgate::internals::policy::gate::{AcceptedEvent, Decision, EventRequest, Gate};
use pixelgate::internals::policy::portals::{Format, Mode, Portals};
use pixelgate::internals::policy::privacy;
use pixelgate::internals::request::client::TrustedProxies;
use pixelgate::internals::request::context::context;
use pixelgate::internals::request::path::Guard;
use pixelgate::internals::request::target::Target;
use pixelgate::internals::spool::{Config, Durability, Env, Spool};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Events that are counted together.
const EVENTS: u64 = 1000;
/// Most allocations for [`EVENTS`] accepted events: none is an event's own, but they share buffers
/// that double until they fit, anew for each group that the committer takes.
const ACCEPTED_MAX: u64 = EVENTS / 10;
/// Most allocations for a value that is not in the query as it is: decoded, cased or joined.
const PER_DECODED_VALUE_MAX: u64 = 1;

const TYPICAL: &str = "/v1/event/?_a=62515&_n=000000001625&email=person@company.com&_m=20.5\
    &id=ext-77&favorite_color=orange&lifecycle=customer&t=1763866713123";
/// The same with four values that have to be decoded.
const ENCODED: &str = "/v1/event/?_a=62515&_n=Bought+Item&email=person%40company.com&_m=20.5\
    &id=ext-77&favorite_color=dark%20orange&lifecycle=cust%C3%B6mer&t=1763866713123";
const ENCODED_VALUES: u64 = 4;

/// What a worker holds.
struct Worker {
    gate: Gate,
    trusted: TrustedProxies,
    headers: HeaderMap,
    spool: Spool,
    _dir: tempfile::TempDir,
}

impl Worker {
    fn new(durability: Durability) -> Worker {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let list = "portals = [62515]\n";
        let portals = Portals::fixed(list, Format::Toml, Mode::Enforce, clock.clone()).unwrap();
        let guard = Guard::new("/v1/event/").unwrap();
        let rules = Rules::default();
        let gate = Gate::new(guard, rules, privacy::Config::default(), portals, clock);
        let dir = tempfile::tempdir().unwrap();
        // The longest linger: what is counted is appending, and not how often the committer comes.
        let linger_ms = 1000;
        let at = dir.path().to_owned();
        let config = Config { dir: at, durability, linger_ms, ..Config::default() };
        let spool = Spool::open(&config, &["up".to_owned()], Env::system()).unwrap();
        let headers = [
            (header::USER_AGENT, "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0"),
            (header::ACCEPT, "image/avif,image/webp,*/*;q=0.5"),
            (header::REFERER, "https://shop.example.com/thank-you"),
        ];
        let headers =
            headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value)));
        let trusted = TrustedProxies::default();
        Worker { gate, trusted, headers: headers.collect(), spool, _dir: dir }
    }

    /// Takes a request as far as its answer, or its wait for the disk; returns whether it was
    /// accepted.
    fn serve(&self, target: &str) -> bool {
        let peer: IpAddr = [203, 0, 113, 7].into();
        let target = Target::split(target.as_bytes());
        let request = EventRequest {
            method: &Method::GET,
            reading: self.gate.read(target.path),
            query: target.query,
        };
        let names = self.gate.rules().context_names();
        let context = || context(&self.headers, Some(peer), &self.trusted, names);
        let mut accepted = AcceptedEvent::blank();
        if self.gate.judge(request, context, &mut accepted) != Decision::Accept {
            return false;
        }
        let commit = self.spool.append(|out| _ = self.gate.encode(&accepted, out)).unwrap();
        let polled = pin!(commit).poll(&mut Context::from_waker(Waker::noop()));
        assert!(!matches!(polled, Poll::Ready(Err(_))), "the spool is overloaded");
        true
    }

    fn allocations(&self, target: &str, accepted: bool) -> u64 {
        // What is made once, the thread's random numbers among it.
        assert_eq!(self.serve(target), accepted, "{target}");
        allocations(|| (0..EVENTS).for_each(|_| assert_eq!(self.serve(target), accepted)))
    }
}

#[test]
fn an_accepted_event_allocates_nothing_of_its_own() {
    for durability in [Durability::Memory, Durability::Interval, Durability::Power] {
        let made = Worker::new(durability).allocations(TYPICAL, true);
        assert!(made <= ACCEPTED_MAX, "{durability:?}: {made} allocations for {EVENTS} events");
    }
}

#[test]
fn a_value_that_must_be_decoded_allocates_once() {
    let made = Worker::new(Durability::Memory).allocations(ENCODED, true);
    let most = ACCEPTED_MAX + EVENTS * ENCODED_VALUES * PER_DECODED_VALUE_MAX;
    assert!(made <= most, "{made} allocations for {EVENTS} events, at most {most}");
}

#[test]
fn a_refused_event_allocates_nothing() {
    let worker = Worker::new(Durability::Memory);
    let portal_not_allowed = TYPICAL.replace("_a=62515", "_a=1");
    let invalid_revenue = TYPICAL.replace("_m=20.5", "_m=much");
    let missing_event = TYPICAL.replace("_n=000000001625", "_n=");
    let unknown_path = TYPICAL.replace("/event/", "/event/below");
    for target in [portal_not_allowed, invalid_revenue, missing_event, unknown_path] {
        assert_eq!(worker.allocations(&target, false), 0, "{target}");
    }
}
