//! The `hubspot` upstream against a server that is as strict as HubSpot is said to be, and fails
//! in every way there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::crm::{CONTACTS_PATH, EVENTS_PATH, Fault, Hubspot, PORTALS, Refusal};
use crate::delivery::Rig;
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::event::{Event, Properties, Revenue};
use pixelgate::internals::upstream::{self, BatchConfig};

/// The nth event: of one of three portals and one of forty persons.
fn event(n: usize) -> Event<'static> {
    let mut properties = Properties::new();
    properties.push(("n".into(), n.to_string().into()));
    properties.push((format!("step_{}", n % 4).into(), "done".into()));
    Event {
        portal: PORTALS[n % PORTALS.len()],
        name: if n.is_multiple_of(2) { "Signed Up".into() } else { "000000001625".into() },
        email: Some(format!("person{}@company.com", n % 40).into()),
        revenue: n.is_multiple_of(5).then(|| Revenue::parse("20.5").unwrap()),
        external_id: n.is_multiple_of(3).then(|| format!("ext-{n}").into()),
        properties,
    }
}

fn config(hubspot: &Hubspot, rest: &str) -> String {
    let names = "event_names = { \"000000001625\" = \"bought\" }";
    format!(
        "batch = {{ events_max = 60, linger_ms = 5 }}\n{}",
        hubspot.upstream(&format!("{names}\n{rest}"))
    )
}

fn dead_ids(rig: &Rig) -> BTreeSet<String> {
    rig.dead("crm").iter().map(|letter| letter.id().unwrap().to_string()).collect()
}

/// Accepts 300 events, and compares all of them with what arrived. Gives the repeats.
async fn check_all_arrive(hubspot: &Hubspot, rest: &str) -> usize {
    let mut rig = Rig::start(&config(hubspot, rest));
    rig.accept_all((0..300).map(event));
    rig.settled("crm").await;
    assert_eq!(rig.counts("crm").dead, 0);
    let repeats = hubspot.check(&rig.accepted, &BTreeSet::new());
    rig.stop().await;
    repeats
}

#[tokio::test]
async fn each_event_arrives_as_an_occurrence_of_its_contact() {
    let hubspot = Hubspot::start().await;
    assert_eq!(check_all_arrive(&hubspot, "concurrency_max = 4").await, 0);
    assert_eq!(hubspot.state().occurrences.len(), 300);
    assert_eq!(hubspot.state().contacts.len(), 3 * 40);
    assert!(hubspot.backend.connections() <= 4, "{}", hubspot.backend.connections());
}

#[tokio::test]
async fn without_contacts_none_is_written() {
    let hubspot = Hubspot::start().await;
    hubspot.state().wants_contacts = false;
    assert_eq!(check_all_arrive(&hubspot, "contacts = false").await, 0);
}

#[tokio::test]
async fn no_request_holds_more_than_is_allowed() {
    for contacts in [true, false] {
        let hubspot = Hubspot::start().await;
        hubspot.state().wants_contacts = contacts;
        let rest = format!(
            "contacts = {contacts}\nbatch = {{ events_max = 1201, bytes_max = '8MiB', \
             linger_ms = 60000 }}"
        );
        let mut rig = Rig::start(&config(&hubspot, &rest));
        let of_portal_1 = |n: usize| Event {
            portal: 1,
            email: Some(format!("person{n}@company.com").into()),
            ..event(n)
        };
        rig.accept_all((0..1201).map(of_portal_1));
        rig.settled("crm").await;
        hubspot.check(&rig.accepted, &BTreeSet::new());
        let sizes = |path: &str| {
            let state = hubspot.state();
            let calls = state.calls.iter().filter(|(_, _, target, _)| target == path);
            calls.map(|(.., inputs)| *inputs).collect::<Vec<usize>>()
        };
        if contacts {
            assert_eq!(sizes(CONTACTS_PATH), [vec![100; 12], vec![1]].concat());
            assert_eq!(sizes(EVENTS_PATH), [vec![100; 12], vec![1]].concat());
        } else {
            assert_eq!(sizes(EVENTS_PATH), [500, 500, 201]);
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn what_several_events_say_of_one_person_is_merged_in_their_order() {
    let hubspot = Hubspot::start().await;
    let rest = "batch = { events_max = 40, linger_ms = 60000 }";
    let mut rig = Rig::start(&config(&hubspot, rest));
    let of_one =
        |n: usize| Event { portal: 2, email: Some("person@company.com".into()), ..event(n) };
    rig.accept_all((0..40).map(of_one));
    rig.settled("crm").await;
    assert_eq!(hubspot.check(&rig.accepted, &BTreeSet::new()), 0);
    {
        let state = hubspot.state();
        let calls: Vec<_> = state.calls.iter().map(|(.., inputs)| *inputs).collect();
        assert_eq!(calls, [1, 40]);
        let contact = &state.contacts[&(2, "person@company.com".to_owned())];
        assert_eq!(contact["n"], "39", "the latest value stays");
        assert_eq!(contact.len(), 2 + 4, "{contact:?}");
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_answer_that_got_lost_costs_repeats_that_are_known_by_their_uuid() {
    for fault in [Fault::LoseAnswer, Fault::TakeAndFail(500), Fault::TakeAndFail(504)] {
        let mut sent = 0;
        let hubspot = Hubspot::failing(move |call| {
            sent += usize::from(!call.is_contacts);
            match sent {
                1 | 3 if !call.is_contacts => fault.clone(),
                _ => Fault::None,
            }
        })
        .await;
        assert!(check_all_arrive(&hubspot, "").await > 0);
        assert_eq!(hubspot.state().occurrences.len(), 300);
    }
}

#[tokio::test]
async fn a_failure_between_contact_and_event_loses_and_doubles_nothing() {
    for status in [500, 408, 503] {
        let mut failures = 0;
        let hubspot = Hubspot::failing(move |call| {
            failures += usize::from(!call.is_contacts);
            match call.is_contacts || failures > 4 {
                true => Fault::None,
                false => Fault::Refuse(status, Vec::new()),
            }
        })
        .await;
        assert_eq!(check_all_arrive(&hubspot, "").await, 0);
    }
}

/// Accepts events while portal 1 meets `fault` at every request: the others arrive meanwhile.
async fn others_arrive(hubspot: &Hubspot, rig: &mut Rig, fault: Fault) {
    hubspot.script(move |call| match call.portal {
        1 => fault.clone(),
        _ => Fault::None,
    });
    rig.accept_all((0..600).map(event));
    hubspot
        .backend
        .until("the others to arrive", |_| hubspot.state().occurrences.len() == 400)
        .await;
    assert!(hubspot.state().occurrences.values().all(|(portal, _)| *portal != 1));
    // Acknowledged is what arrived, a little later.
    let wait = async {
        while rig.counts("crm").pending != 200 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(crate::delivery::HANGS_AFTER, wait).await.unwrap();
    assert_eq!(rig.counts("crm").dead, 0);
}

#[tokio::test]
async fn a_portal_that_is_limited_is_left_alone_and_holds_back_no_other() {
    let hubspot = Hubspot::start().await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    let limited = Fault::Refuse(429, vec![("Retry-After", "3000".into())]);
    others_arrive(&hubspot, &mut rig, limited).await;
    let asked = hubspot.state().calls.iter().filter(|(portal, ..)| *portal == 1).count();
    // The pause begins with the first answer; what was on its way by then may have met it, too.
    assert!(asked <= upstream_concurrency(), "{asked}");
    let error = rig.status("crm").last_error.unwrap();
    assert_eq!(error, "portal 1: answered 429");
    rig.stop().await;
}

fn upstream_concurrency() -> usize {
    upstream::hubspot::Config::default().concurrency_max
}

#[tokio::test]
async fn a_limited_portal_gets_on_after_the_pause_and_not_before() {
    let hubspot = Hubspot::failing(|call| match (call.portal, call.before) {
        (1, 0) => Fault::Refuse(429, vec![("Retry-After", "1".into())]),
        _ => Fault::None,
    })
    .await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_all((0..30).map(event));
    rig.settled("crm").await;
    assert_eq!(hubspot.check(&rig.accepted, &BTreeSet::new()), 0);
    let of_1 = |(portal, at, ..): &(u64, Instant, String, usize)| (*portal == 1).then_some(*at);
    let times: Vec<Instant> = hubspot.state().calls.iter().filter_map(of_1).collect();
    let waited = times[1] - times[0];
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    rig.stop().await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_one_portals_fault_until_it_is_set_right() {
    for status in [401, 403] {
        let hubspot = Hubspot::start().await;
        let mut rig = Rig::start(&config(&hubspot, ""));
        others_arrive(&hubspot, &mut rig, Fault::Refuse(status, Vec::new())).await;
        let error = rig.status("crm").last_error.unwrap();
        assert_eq!(error, format!("portal 1: answered {status}"));
        rig.until("crm", |s| s.state.as_str() == "misconfigured").await;
        let accepted = rig.accepted.clone();
        let dir = rig.stop().await;
        hubspot.script(|_| Fault::None);
        let mut rig = Rig::start_in(dir, &config(&hubspot, ""), Vec::new());
        rig.accepted = accepted;
        rig.settled("crm").await;
        // What came after the first event that waited is sent again after a restart.
        assert!(hubspot.check(&rig.accepted, &BTreeSet::new()) <= 400);
        assert_eq!(hubspot.state().occurrences.len(), 600);
        rig.stop().await;
    }
}

#[tokio::test]
async fn events_of_a_portal_without_a_token_wait_for_one() {
    let hubspot = Hubspot::start().await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    let unknown = |n: usize| Event { portal: 9, ..event(n) };
    rig.accept_all((0..3).map(unknown));
    rig.accept_all((0..300).map(event));
    hubspot.backend.until("the others", |_| hubspot.state().occurrences.len() == 300).await;
    rig.until("crm", |s| s.state.as_str() == "misconfigured").await;
    assert_eq!(rig.status("crm").last_error.unwrap(), "there is no token for portal 9");
    let accepted = rig.accepted.clone();
    let dir = rig.stop().await;

    let with_it = config(&hubspot, "").replace("tokens = {", "tokens = { \"9\" = \"token-9\",");
    let mut rig = Rig::start_in(dir, &with_it, Vec::new());
    rig.accepted = accepted;
    rig.settled("crm").await;
    assert_eq!(rig.counts("crm").dead, 0);
    hubspot.check(&rig.accepted, &BTreeSet::new());
    rig.stop().await;
}

#[tokio::test]
async fn a_fault_that_lasts_longer_than_it_may_ends_in_dead_letters_that_can_be_replayed() {
    let hubspot = Hubspot::failing(|call| match call.portal {
        1 => Fault::Refuse(401, Vec::new()),
        _ => Fault::None,
    })
    .await;
    let mut rig = Rig::start(&config(&hubspot, "fault_seconds_max = 1"));
    let unknown = |n: usize| Event { portal: 9, ..event(n) };
    rig.accept_all((0..3).map(unknown).chain((0..60).map(event)));
    rig.settled("crm").await;
    assert_eq!(rig.counts("crm").dead, 3 + 20);
    hubspot.check(&rig.accepted, &dead_ids(&rig));
    let mut why: Vec<String> = rig.dead("crm").into_iter().map(|letter| letter.detail).collect();
    why.sort_unstable();
    why.dedup();
    let longer = "for longer than fault_seconds_max";
    let expect = ["portal 1: answered 401", "there is no token for portal 9"];
    assert_eq!(why, expect.map(|what| format!("{what}, {longer}")));

    hubspot.script(|_| Fault::None);
    let right: toml::Table = config(&hubspot, "").parse().unwrap();
    let right: upstream::Config = right["upstream"][0].clone().try_into().unwrap();
    let right = right.validate().unwrap().build().unwrap();
    let batch = BatchConfig::default();
    let done = rig.replay("crm", &*right, &batch).await;
    assert_eq!((done.delivered, done.refused, done.undelivered), (20, 0, 3));
    hubspot.check(&rig.accepted, &dead_ids(&rig));
    rig.stop().await;
}

#[tokio::test]
async fn a_contact_that_is_refused_keeps_its_event_back_and_no_other() {
    for refusal in [Refusal::Named, Refusal::Unnamed, Refusal::Whole] {
        let hubspot = Hubspot::start().await;
        let bad = |properties: &std::collections::BTreeMap<String, String>| {
            matches!(properties.get("n").map(String::as_str), Some("7" | "100" | "299"))
        };
        hubspot.state().is_bad_contact = bad;
        hubspot.state().refusal = refusal;
        let mut rig = Rig::start(&config(&hubspot, ""));
        rig.accept_all((0..300).map(event));
        rig.settled("crm").await;
        let dead = dead_ids(&rig);
        hubspot.check(&rig.accepted, &dead);
        assert_eq!((dead.len(), hubspot.state().occurrences.len()), (3, 297), "{refusal:?}");
        for letter in rig.dead("crm") {
            assert_eq!(letter.reason, Reason::Rejected);
            assert!(letter.detail.starts_with("its contact is refused: answered "), "{letter:?}");
        }
        rig.stop().await;
    }
}

#[tokio::test]
async fn of_one_persons_events_only_the_one_that_says_the_wrong_thing_dies() {
    let hubspot = Hubspot::start().await;
    hubspot.state().is_bad_contact = |properties| properties.contains_key("no_such_property");
    let rest = "batch = { events_max = 10, linger_ms = 60000 }";
    let mut rig = Rig::start(&config(&hubspot, rest));
    let of_one = |n: usize| {
        let mut event = Event { portal: 3, email: Some("a@b.example".into()), ..event(n) };
        if n == 4 {
            event.properties = Properties::new();
            event.properties.push(("no_such_property".into(), "x".into()));
        }
        event
    };
    rig.accept_all((0..10).map(of_one));
    rig.settled("crm").await;
    let dead = dead_ids(&rig);
    hubspot.check(&rig.accepted, &dead);
    assert_eq!((dead.len(), hubspot.state().occurrences.len()), (1, 9));
    rig.stop().await;
}

#[tokio::test]
async fn poison_events_are_found_and_everything_else_arrives() {
    let hubspot = Hubspot::start().await;
    hubspot.state().is_bad_event =
        |input| matches!(input["properties"]["external_id"].as_str(), Some("ext-0" | "ext-150"));
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_all((0..300).map(event));
    rig.settled("crm").await;
    let dead = dead_ids(&rig);
    assert_eq!(hubspot.check(&rig.accepted, &dead), 0);
    assert_eq!((dead.len(), hubspot.state().occurrences.len()), (2, 298));
    for letter in rig.dead("crm") {
        assert_eq!(letter.status, Some(400));
        assert_eq!(letter.detail, "the event is refused: answered 400 (VALIDATION_ERROR)");
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_conflict_ends_as_a_dead_letter_and_blocks_nothing() {
    let hubspot = Hubspot::failing(|call| match call.portal == 1 && !call.is_contacts {
        true => Fault::Refuse(409, Vec::new()),
        false => Fault::None,
    })
    .await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_all((0..30).map(event));
    rig.settled("crm").await;
    assert_eq!(rig.counts("crm").dead, 10);
    hubspot.check(&rig.accepted, &dead_ids(&rig));
    rig.stop().await;
}

#[tokio::test]
async fn a_contact_that_somebody_else_creates_at_the_same_time_is_asked_about_again() {
    let hubspot = Hubspot::failing(|call| match call.before == 0 && call.is_contacts {
        true => Fault::Refuse(409, Vec::new()),
        false => Fault::None,
    })
    .await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_all([event(0)]);
    rig.settled("crm").await;
    assert_eq!(rig.counts("crm").dead, 0);
    assert_eq!(hubspot.check(&rig.accepted, &BTreeSet::new()), 0);
    rig.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_is_a_dead_letter_with_its_reason_and_can_be_replayed() {
    let hubspot = Hubspot::start().await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    let nameless = Event { name: "0042".into(), ..event(1) };
    let anonymous = Event { email: None, ..event(2) };
    rig.accept_all([nameless, anonymous, event(3)]);
    rig.settled("crm").await;
    let letters = rig.dead("crm");
    let mut details: Vec<&str> = letters.iter().map(|letter| letter.detail.as_str()).collect();
    details.sort_unstable();
    assert!(details[0].contains("no email address"), "{details:?}");
    assert!(details[1].contains("does not begin with a letter"), "{details:?}");
    assert!(letters.iter().all(|letter| letter.reason == Reason::Undeliverable));
    hubspot.check(&rig.accepted, &dead_ids(&rig));

    // The operator maps the name.
    let names = "event_names = { \"0042\" = \"0042_is_no_name\" }";
    let wrong: toml::Table = hubspot.upstream(names).parse().unwrap();
    let wrong: upstream::Config = wrong["upstream"][0].clone().try_into().unwrap();
    assert_eq!(wrong.validate().unwrap_err().key(), "upstream.crm.event_names.0042");
    let right: toml::Table =
        hubspot.upstream("event_names = { \"0042\" = \"answered\" }").parse().unwrap();
    let right: upstream::Config = right["upstream"][0].clone().try_into().unwrap();
    let right = right.validate().unwrap().build().unwrap();
    let batch = BatchConfig::default();
    let done = rig.replay("crm", &*right, &batch).await;
    assert_eq!((done.delivered, done.refused, done.undelivered), (1, 1, 0));
    assert_eq!(hubspot.state().occurrences.len(), 2);
    rig.stop().await;
}

/// Numbers that look random and are the same in every run.
fn scatter(seed: u64, n: u64) -> u64 {
    let mixed = (seed << 32 | n).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33
}

/// Fails in a way that depends on `seed`, until it has been asked often enough.
async fn erratic(seed: u64) -> Hubspot {
    let mut n = 0;
    let hubspot = Hubspot::failing(move |_| {
        n += 1;
        match scatter(seed, n) % 12 {
            _ if n > 20 => Fault::None,
            0 => Fault::Refuse(500, Vec::new()),
            1 => Fault::Refuse(429, vec![("Retry-After", "0".into())]),
            2 => Fault::LoseAnswer,
            3 => Fault::TakeAndFail(502),
            4 => Fault::Refuse(413, Vec::new()),
            _ => Fault::None,
        }
    })
    .await;
    {
        let mut state = hubspot.state();
        state.refusal = [Refusal::Named, Refusal::Unnamed, Refusal::Whole][seed as usize % 3];
        state.is_bad_contact = |of| of.get("n").is_some_and(|n| n.ends_with('7'));
        state.is_bad_event = |input| input["properties"]["external_id"] == "ext-33";
    }
    hubspot
}

async fn check_erratic(seed: u64) {
    let hubspot = erratic(seed).await;
    let mut rig = Rig::start(&config(&hubspot, "batch = { events_max = 17, linger_ms = 5 }"));
    let anonymous = |n: usize| Event { email: None, ..event(n) };
    rig.accept_all((0..60).map(event).chain([anonymous(1), anonymous(2)]));
    rig.settled("crm").await;
    let dead = dead_ids(&rig);
    hubspot.check(&rig.accepted, &dead);
    // Six contacts, one event and two events without an address are dead letters. An event that was
    // sent alone may have been found too large, too.
    assert!(dead.len() >= 9, "{seed}: {}", dead.len());
    let wrongly = rig.dead("crm").into_iter().filter(|letter| match letter.reason {
        Reason::TooLarge => letter.status != Some(413),
        Reason::Rejected => {
            let event = letter.event.as_ref().unwrap().get();
            !event.contains("7\"") && !event.contains("ext-33")
        }
        _ => !letter.detail.contains("address"),
    });
    assert_eq!(wrongly.count(), 0, "{seed}");
    rig.stop().await;
}

#[tokio::test]
async fn whatever_fails_in_whichever_order_each_event_is_delivered_or_dead() {
    // Side by side, because most of the time they wait.
    let side_by_side = tokio::task::LocalSet::new();
    let all: Vec<_> = (0..24).map(|seed| side_by_side.spawn_local(check_erratic(seed))).collect();
    side_by_side.await;
    for ended in all {
        ended.await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_is_down_for_all_is_not_flooded_and_loses_nothing() {
    let hubspot = Hubspot::failing(|_| Fault::Refuse(503, Vec::new())).await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_all((0..300).map(event));
    rig.until("crm", |s| s.state.as_str() == "down").await;
    let accepted = rig.accepted.clone();
    let dir = rig.stop().await;
    hubspot.script(|_| Fault::None);
    let mut rig = Rig::start_in(dir, &config(&hubspot, ""), Vec::new());
    rig.accepted = accepted;
    rig.settled("crm").await;
    assert_eq!(hubspot.check(&rig.accepted, &BTreeSet::new()), 0);
    rig.stop().await;
}
