//! The `hubspot` upstream: what ties an event to a contact beside its address, what goes along with
//! it, and what HubSpot refuses of that.

use std::collections::BTreeSet;

use crate::crm::{Fault, Hubspot, MATCHED, Repeat};
use crate::delivery::{Rig, context};
use pixelgate::internals::delivery::dead_letters::{Letter, Reason};
use pixelgate::internals::event::{Context, Event, FurtherContext, Properties};
use pixelgate::internals::upstream::{self, BatchConfig};

const MATCHING: &str = "match_external_id = true\nexternal_id_contact_property = \"legacy_id\"";

fn config(hubspot: &Hubspot, rest: &str) -> String {
    format!("batch = {{ events_max = 10, linger_ms = 5 }}\n{}", hubspot.upstream(rest))
}

/// An event of portal 1.
fn event(email: Option<&'static str>, id: Option<&'static str>) -> Event<'static> {
    let mut properties = Properties::new();
    properties.push(("plan".into(), "pro".into()));
    Event {
        portal: 1,
        name: "buy".into(),
        email: email.map(Into::into),
        revenue: None,
        external_id: id.map(Into::into),
        properties,
    }
}

fn with_cookie(utk: &'static str) -> Context<'static> {
    let further = FurtherContext { utk: Some(utk.into()), ..Default::default() };
    Context { further: Some(further.into()), ..context() }
}

fn dead_ids(letters: &[Letter]) -> BTreeSet<String> {
    letters.iter().map(|letter| letter.id().unwrap().to_string()).collect()
}

/// Replays the dead letters with other settings. Gives how many were delivered.
async fn replay(rig: &Rig, hubspot: &Hubspot, rest: &str) -> u64 {
    let config: toml::Table = hubspot.upstream(rest).parse().unwrap();
    let config: upstream::Config = config["upstream"][0].clone().try_into().unwrap();
    let built = config.validate().unwrap().build().unwrap();
    rig.replay("crm", &*built, &BatchConfig::default()).await.delivered
}

#[tokio::test]
async fn an_id_finds_the_contact_that_an_earlier_event_tied_to_an_address() {
    let hubspot = Hubspot::start().await;
    hubspot.state().matches_ids = true;
    let mut rig = Rig::start(&config(&hubspot, MATCHING));
    rig.accept_event(&event(Some("a@b.example"), Some("ext-7")));
    rig.settled("crm").await;
    for _ in 0..3 {
        rig.accept_event(&event(None, Some("ext-7")));
    }
    rig.settled("crm").await;
    assert_eq!(rig.counts("crm").dead, 0);
    assert_eq!(hubspot.check(&rig.accepted, &BTreeSet::new()), 0);
    let contacts = hubspot.state().contacts.clone();
    assert_eq!(contacts.len(), 1, "an event without an address writes no contact");
    let contact = &contacts[&(1, "a@b.example".to_owned())];
    assert_eq!((&*contact[MATCHED.1], &*contact["plan"]), ("ext-7", "pro"));
    rig.stop().await;
}

#[tokio::test]
async fn an_id_that_matches_no_contact_is_a_dead_letter_until_it_does() {
    let hubspot = Hubspot::start().await;
    hubspot.state().matches_ids = true;
    let mut rig = Rig::start(&config(&hubspot, MATCHING));
    rig.accept_event(&event(None, Some("ext-7")));
    rig.accept_event(&event(Some("c@d.example"), Some("ext-8")));
    rig.accept_event(&event(None, None));
    rig.settled("crm").await;
    let letters = rig.dead("crm");
    hubspot.check(&rig.accepted, &dead_ids(&letters));
    let mut why: Vec<(Reason, String)> =
        letters.into_iter().map(|letter| (letter.reason, letter.detail)).collect();
    why.sort_by(|a, b| b.1.cmp(&a.1));
    let refused = "the event is refused: answered 207 (OBJECT_NOT_FOUND)";
    assert_eq!(why[0], (Reason::Rejected, refused.to_owned()));
    assert!(why[1].0 == Reason::Undeliverable && why[1].1.contains("no email address"), "{why:?}");

    rig.accept_event(&event(Some("a@b.example"), Some("ext-7")));
    rig.settled("crm").await;
    assert_eq!(replay(&rig, &hubspot, MATCHING).await, 1);
    assert_eq!(hubspot.state().occurrences.len(), 3);
    rig.stop().await;
}

#[tokio::test]
async fn without_a_definition_that_matches_an_id_alone_is_a_dead_letter_and_sends_nothing() {
    let hubspot = Hubspot::start().await;
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_event(&event(None, Some("ext-7")));
    rig.settled("crm").await;
    let letters = rig.dead("crm");
    assert!(letters[0].detail.contains("match_external_id"), "{letters:?}");
    assert_eq!(hubspot.state().calls.len(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_cookie_finds_its_visitor_with_an_address_and_without() {
    let hubspot = Hubspot::start().await;
    hubspot.state().utks.insert("1f".to_owned());
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_event_in(&event(Some("a@b.example"), None), &with_cookie("1f"));
    rig.accept_event_in(&event(None, Some("ext-7")), &with_cookie("1f"));
    rig.accept_event_in(&event(None, None), &with_cookie("unknown"));
    rig.settled("crm").await;
    let letters = rig.dead("crm");
    hubspot.check(&rig.accepted, &dead_ids(&letters));
    assert_eq!((letters.len(), hubspot.state().occurrences.len()), (1, 2));
    assert_eq!(letters[0].status, Some(207));
    rig.stop().await;
}

#[tokio::test]
async fn the_default_properties_go_along_and_a_definition_without_them_refuses_the_event() {
    let hubspot = Hubspot::start().await;
    hubspot.state().has_default_properties = true;
    let mut rig = Rig::start(&config(&hubspot, "context_properties = true"));
    rig.accept_event(&event(Some("a@b.example"), None));
    rig.settled("crm").await;
    assert_eq!(hubspot.check(&rig.accepted, &BTreeSet::new()), 0);
    let (_, occurrence) = hubspot.state().occurrences.values().next().unwrap().clone();
    assert_eq!(occurrence["properties"]["hs_user_agent"], context().user_agent.unwrap().as_ref());
    assert_eq!(occurrence["properties"]["hs_referrer"], context().referer.unwrap().as_ref());

    hubspot.state().has_default_properties = false;
    rig.accept_event(&event(Some("a@b.example"), None));
    rig.settled("crm").await;
    let detail = &rig.dead("crm")[0].detail;
    assert_eq!(detail, "the event is refused: answered 400 (PROPERTY_DOESNT_EXIST)");
    assert_eq!(replay(&rig, &hubspot, "").await, 1, "without them it is taken");
    rig.stop().await;
}

#[tokio::test]
async fn a_repeat_that_is_answered_with_an_error_counts_once_and_is_a_dead_letter() {
    // The answer to the first occurrences gets lost; by then they are written.
    let hubspot = Hubspot::failing(|call| match call.before == 1 {
        true => Fault::LoseAnswer,
        false => Fault::None,
    })
    .await;
    hubspot.state().repeat = Repeat::Named;
    let mut rig = Rig::start(&config(&hubspot, ""));
    rig.accept_event(&event(Some("a@b.example"), None));
    rig.settled("crm").await;
    let letters = rig.dead("crm");
    assert_eq!(letters[0].detail, "the event is refused: answered 207 (CONFLICT)");
    assert_eq!(hubspot.state().occurrences.len(), 1);
    assert_eq!(hubspot.state().repeats, 1);
    rig.stop().await;
}

#[tokio::test]
async fn an_answer_that_says_who_was_refused_and_breaks_off_is_asked_for_again() {
    for is_contacts in [true, false] {
        let hubspot = Hubspot::failing(move |call| {
            match call.is_contacts == is_contacts && call.before < 2 {
                true => Fault::CutAnswer,
                false => Fault::None,
            }
        })
        .await;
        let mut rig = Rig::start(&config(&hubspot, ""));
        rig.accept_event(&event(Some("a@b.example"), None));
        rig.settled("crm").await;
        assert_eq!(rig.counts("crm").dead, 0, "{:?}", rig.dead("crm"));
        let error = rig.status("crm").last_error;
        assert_eq!(error.as_deref(), Some("answered 207 with a body that cannot be read"));
        assert_eq!(hubspot.state().occurrences.len(), 1);
        rig.stop().await;
    }
}
