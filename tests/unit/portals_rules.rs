//! What the rules of a list do to events, in each mode.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pixelgate::internals::clock::Clock;
use pixelgate::internals::event::Reason;
use pixelgate::internals::policy::portals::{
    Cause, Config, Format, Mode, Policy, PortalVerdict, Portals, RateLimited, RefreshMode,
    Refreshed,
};

/// A clock that stands still until it is moved. Begins at 2026-12-31T00:00:00Z.
#[derive(Default)]
struct HandClock(AtomicU64);

impl HandClock {
    fn forward(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn unix_ms(&self) -> u64 {
        1_798_675_200_000 + self.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

const DAY_MS: u64 = 86_400_000;

const LIST: &str = r#"
portals = [1]

[[portal]]
id = 2
events = ["000000001625", "signup*"]
drop_properties = ["ssn"]
rate = { per_second = 1, burst = 2 }
expires = 2027-01-01

[[portal]]
id = 3
drop_properties = []
events = ["*"]

[defaults]
events = ["common", "shared_*"]
drop_properties = ["iban"]
rate = { per_second = 10 }
"#;

fn portals(list: &str, mode: Mode) -> (Portals, Arc<HandClock>) {
    let clock = Arc::new(HandClock::default());
    (Portals::fixed(list, Format::Toml, mode, clock.clone()).unwrap(), clock)
}

#[track_caller]
fn check(
    portals: &Portals,
    portal: u64,
    name: &str,
    verdict: PortalVerdict,
    cause: Cause,
) -> Policy {
    let decision = portals.judge(portal, name);
    assert_eq!((decision.verdict, decision.cause), (verdict, cause), "{portal} {name}");
    decision.policy
}

const NOT_LISTED: PortalVerdict = PortalVerdict::Rejected(Reason::PortalNotAllowed);
const NOT_NAMED: PortalVerdict = PortalVerdict::Rejected(Reason::EventNotAllowed);

#[test]
fn a_portal_has_its_own_rules_or_else_the_defaults() {
    let (portals, _) = portals(LIST, Mode::Enforce);
    check(&portals, 1, "common", PortalVerdict::Allowed, Cause::Listed);
    check(&portals, 1, "shared_x", PortalVerdict::Allowed, Cause::Listed);
    check(&portals, 1, "signup", NOT_NAMED, Cause::NoPatternFits);
    check(&portals, 2, "signup", PortalVerdict::Allowed, Cause::Listed);
    check(&portals, 2, "000000001625", PortalVerdict::Allowed, Cause::Listed);
    check(&portals, 2, "1625", NOT_NAMED, Cause::NoPatternFits);
    check(&portals, 2, "common", NOT_NAMED, Cause::NoPatternFits);
    check(&portals, 3, "anything", PortalVerdict::Allowed, Cause::Listed);
    check(&portals, 4, "common", NOT_LISTED, Cause::NotListed);

    let drops = |portal, name| {
        let policy = portals.judge(portal, "x").policy;
        assert!(policy.drops_any() || !policy.drops(name));
        policy.drops(name)
    };
    assert!(drops(1, "iban") && !drops(1, "ssn"));
    assert!(drops(2, "ssn") && !drops(2, "iban"));
    assert!(!drops(3, "iban") && !portals.judge(3, "x").policy.drops_any());
}

#[test]
fn from_its_day_on_a_portal_has_expired() {
    let (portals, clock) = portals(LIST, Mode::Enforce);
    clock.forward(DAY_MS - 1);
    check(&portals, 2, "signup", PortalVerdict::Allowed, Cause::Listed);
    clock.forward(1);
    check(&portals, 2, "signup", NOT_LISTED, Cause::Expired);
    // The portal is refused before the event's name is looked at.
    check(&portals, 2, "no such", NOT_LISTED, Cause::Expired);
    check(&portals, 3, "x", PortalVerdict::Allowed, Cause::Listed);
}

#[test]
fn a_json_date_is_a_toml_date() {
    let list = r#"{"portal": [{"id": 1, "expires": "2027-01-01"}]}"#;
    let clock = Arc::new(HandClock::default());
    let portals = Portals::fixed(list, Format::Json, Mode::Enforce, clock.clone()).unwrap();
    clock.forward(DAY_MS - 1);
    check(&portals, 1, "x", PortalVerdict::Allowed, Cause::Listed);
    clock.forward(1);
    check(&portals, 1, "x", NOT_LISTED, Cause::Expired);
}

#[test]
fn a_default_day_holds_for_all() {
    let (portals, clock) = portals("portals = [1]\ndefaults.expires = 2027-01-01", Mode::Enforce);
    clock.forward(DAY_MS);
    check(&portals, 1, "x", NOT_LISTED, Cause::Expired);
    check(&portals, 2, "x", NOT_LISTED, Cause::NotListed);
}

#[test]
fn the_last_day_of_the_calendar_is_a_day_like_any_other() {
    for list in [
        "portals = [1]\ndefaults.expires = 9999-12-31",
        "[[portal]]\nid = 1\nexpires = \"9999-12-31\"",
    ] {
        let (portals, clock) = portals(list, Mode::Enforce);
        check(&portals, 1, "x", PortalVerdict::Allowed, Cause::Listed);
        let days = 1000 * 365;
        clock.forward(days * DAY_MS);
        check(&portals, 1, "x", PortalVerdict::Allowed, Cause::Listed);
        clock.forward(10_000 * 365 * DAY_MS);
        check(&portals, 1, "x", NOT_LISTED, Cause::Expired);
        assert_eq!(portals.judge(1, "x").explain("x"), "the portal has expired on 9999-12-31");
    }
}

fn limited(seconds: u32) -> Result<(), RateLimited> {
    Err(RateLimited { retry_after_seconds: seconds, enforced: true })
}

#[test]
fn a_rate_allows_its_burst_and_then_its_pace() {
    let (portals, clock) = portals(LIST, Mode::Enforce);
    let take = |portal| portals.judge(portal, "signup").policy.take_rate();
    assert_eq!([take(2), take(2), take(2)], [Ok(()), Ok(()), limited(1)]);
    clock.forward(999);
    assert_eq!(take(2), limited(1));
    clock.forward(1);
    assert_eq!([take(2), take(2)], [Ok(()), limited(1)]);
    clock.forward(60_000);
    assert_eq!([take(2), take(2), take(2)], [Ok(()), Ok(()), limited(1)]);

    // The default rate: ten events a second, and as many at once.
    let take = |portal| portals.judge(portal, "common").policy.take_rate();
    for _ in 0..10 {
        assert_eq!(take(1), Ok(()));
    }
    assert_eq!(take(1), limited(1));
    // Each portal has a rate of its own.
    let policy = portals.judge(3, "x").policy;
    assert_eq!(policy.take_rate(), Ok(()));
}

#[test]
fn only_taking_the_rate_uses_it_up() {
    let (portals, _) = portals(LIST, Mode::Enforce);
    for _ in 0..10 {
        check(&portals, 2, "signup", PortalVerdict::Allowed, Cause::Listed);
        // An event that is refused for its name uses none of the rate.
        assert_eq!(portals.judge(2, "no such").policy.take_rate(), Ok(()));
    }
    assert_eq!(portals.judge(2, "signup").policy.take_rate(), Ok(()));
}

#[test]
fn many_threads_share_one_rate_exactly() {
    let list = "[[portal]]\nid = 1\nrate = { per_second = 1, burst = 1000 }";
    let (portals, _) = portals(list, Mode::Enforce);
    let taken = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let took = portals.judge(1, "x").policy.take_rate().is_ok();
                    taken.fetch_add(u64::from(took), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 1000);
}

#[test]
fn dry_run_takes_everything_and_tells_what_it_would_refuse() {
    let (portals, clock) = portals(LIST, Mode::DryRun);
    let would = PortalVerdict::WouldReject;
    let policy = check(&portals, 4, "x", would(Reason::PortalNotAllowed), Cause::NotListed);
    // A portal that is not in the list has the defaults, but no rate of its own.
    assert!(policy.drops("iban"));
    assert_eq!(policy.take_rate(), Ok(()));
    check(&portals, 2, "no", would(Reason::EventNotAllowed), Cause::NoPatternFits);
    let take = || portals.judge(2, "signup").policy.take_rate();
    let limited = Err(RateLimited { retry_after_seconds: 1, enforced: false });
    assert_eq!([take(), take(), take()], [Ok(()), Ok(()), limited]);
    clock.forward(DAY_MS);
    check(&portals, 2, "signup", would(Reason::PortalNotAllowed), Cause::Expired);
}

#[test]
fn off_refuses_nothing_and_drops_all_the_same() {
    let (portals, clock) = portals(LIST, Mode::Off);
    clock.forward(DAY_MS);
    for portal in [1, 2, 3, 4] {
        let policy = check(&portals, portal, "no such", PortalVerdict::Allowed, Cause::Off);
        for _ in 0..20 {
            assert_eq!(policy.take_rate(), Ok(()));
        }
        assert_eq!(policy.drops("ssn"), portal == 2);
        assert_eq!(policy.drops("iban"), portal == 1 || portal == 4);
    }
}

#[test]
fn off_needs_no_list() {
    let config = Config { source: String::new(), mode: Mode::Off, ..Config::default() };
    let clock = Arc::new(HandClock::default());
    let portals = Portals::open(&config.validate().unwrap(), Path::new("unused"), clock).unwrap();
    let policy = check(&portals, 1, "x", PortalVerdict::Allowed, Cause::Off);
    assert!(!policy.drops("ssn"));
    assert!(portals.status().fresh);
    assert_eq!(portals.summary().to_string(), "portals: no list (mode off)");
}

/// Opens a list in a file, and gives the result of a refresh to another list.
struct Reload {
    path: std::path::PathBuf,
    clock: Arc<HandClock>,
    portals: Portals,
    _dir: tempfile::TempDir,
}

impl Reload {
    fn new(list: &str) -> Reload {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l.toml");
        fs::write(&path, list).unwrap();
        let source = path.to_str().unwrap().to_owned();
        let config = Config { source, ..Config::default() };
        let clock = Arc::new(HandClock::default());
        let portals =
            Portals::open(&config.validate().unwrap(), dir.path(), clock.clone()).unwrap();
        Reload { path, clock, portals, _dir: dir }
    }

    async fn to(&self, list: &str) {
        fs::write(&self.path, list).unwrap();
        assert_eq!(self.portals.refresh(RefreshMode::AtOnce).await, Refreshed::Swapped);
    }

    /// How many events of a portal are taken right now.
    fn takes(&self, portal: u64) -> usize {
        (0..100).filter(|_| self.portals.judge(portal, "x").policy.take_rate().is_ok()).count()
    }
}

#[tokio::test]
async fn a_reload_keeps_what_a_rate_has_used_unless_the_rate_is_another() {
    let rate = |burst| format!("rate = {{ per_second = 1, burst = {burst} }}");
    let ruled = |burst: u32| format!("[[portal]]\nid = 1\n{}\n", rate(burst));
    let reload = Reload::new(&format!("portals = [5]\n{}", ruled(9)));
    reload.clock.forward(5_000);
    assert_eq!(reload.takes(1), 9);

    // The rate has not changed: only the events that time has added are left.
    reload.clock.forward(2_000);
    reload.to(&format!("portals = [5, 6, 7]\n{}", ruled(9))).await;
    assert_eq!(reload.takes(1), 2);
    reload.clock.forward(1_000);
    reload.to(&format!("portals = [6]\n{}", ruled(9))).await;
    assert_eq!(reload.takes(1), 1);

    // The same rate, now from the defaults.
    reload.to(&format!("portals = [1, 2]\n[defaults]\n{}", rate(9))).await;
    assert_eq!((reload.takes(1), reload.takes(2)), (0, 9));
    reload.to(&format!("portals = [1, 2, 3]\n[defaults]\n{}", rate(9))).await;
    assert_eq!((reload.takes(1), reload.takes(2), reload.takes(3)), (0, 0, 9));

    // Another rate begins anew.
    reload.to(&ruled(5)).await;
    assert_eq!(reload.takes(1), 5);
    // A portal that was away begins anew.
    reload.to("portals = [2]").await;
    reload.to(&ruled(5)).await;
    assert_eq!(reload.takes(1), 5);
}

#[tokio::test]
async fn a_policy_in_hand_is_of_one_list() {
    let reload = Reload::new("[[portal]]\nid = 1\ndrop_properties = [\"a\"]\n");
    let before = reload.portals.judge(1, "x").policy;
    reload.to("[[portal]]\nid = 1\ndrop_properties = [\"b\"]\n").await;
    assert!(before.drops("a") && !before.drops("b"));
    let after = reload.portals.judge(1, "x").policy;
    assert!(!after.drops("a") && after.drops("b"));
}

#[test]
fn the_decision_is_explained() {
    let (portals, clock) = portals(LIST, Mode::Enforce);
    let explain = |portal, name| portals.judge(portal, name).explain(name);
    assert_eq!(explain(1, "shared_x"), "the event name fits `shared_*` of `events`");
    assert_eq!(explain(2, "signup"), "the event name fits `signup*` of `events`");
    assert_eq!(explain(2, "no"), "the event name fits none of `events`");
    assert_eq!(explain(9, "no"), "the portal is not in the list");
    clock.forward(DAY_MS);
    assert_eq!(explain(2, "signup"), "the portal has expired on 2027-01-01");
}

#[test]
fn the_summary_counts_rules_and_names_what_expires_soon() {
    let (portals, clock) = portals(LIST, Mode::Enforce);
    let expect = "portals: 3 (mode enforce), 2 with rules of their own\
        \n  events: 3\n  drop_properties: 2\n  rate: 3\n  expires: 1\
        \n  expiring within 30 days: 1\n    2 on 2027-01-01";
    assert_eq!(portals.summary().to_string(), expect);
    clock.forward(DAY_MS);
    let summary = portals.summary();
    assert_eq!((summary.expired, summary.expiring.len()), (1, 0));

    let far = |day| format!("[[portal]]\nid = 1\nexpires = {day}\n");
    assert_eq!(self::portals(&far("2027-01-30"), Mode::Enforce).0.summary().expiring.len(), 1);
    assert_eq!(self::portals(&far("2027-01-31"), Mode::Enforce).0.summary().expiring.len(), 0);
}
