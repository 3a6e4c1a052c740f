//! The `nats` upstream against a real server that is killed, frozen, filled up and locked.

use std::collections::BTreeSet;

use crate::authority::{Authority, write};
use crate::delivery::{Rig, sample};
use crate::nats_server::{Server, Stored, events};
use async_nats::ConnectOptions;
use async_nats::jetstream::stream;
use pixelgate::internals::delivery::dead_letters::Reason;
use pixelgate::internals::upstream::Config;
use rustix::process::Signal;

fn upstream(url: &str, rest: &str) -> String {
    format!(
        "batch = {{ events_max = 50, linger_ms = 5 }}\n\
         [[upstream]]\nname = 'log'\nkind = 'nats'\nurls = ['{url}']\nstream = 'EVENTS'\n{rest}\n"
    )
}

const SUBJECT: &str = "subject = 'events'";
const SUBJECT_IMPATIENT: &str = "subject = 'events'\ntimeout_seconds = 1";

/// The stream of most tests.
fn events_stream() -> stream::Config {
    let subjects = vec!["events".to_owned()];
    stream::Config { name: "EVENTS".to_owned(), subjects, ..stream::Config::default() }
}

/// Waits until everything has arrived, once, and nothing is a dead letter; gives the stream.
async fn check_all_arrive(server: &Server, rig: Rig) -> Vec<Stored> {
    rig.settled("log").await;
    assert_eq!(rig.counts("log").dead, 0);
    let stored = server.read_stream("EVENTS").await;
    assert_eq!(rig.check("log", &events(&stored)), 0, "the stream drops what it has already");
    rig.stop().await;
    stored
}

async fn check_error(rig: &Rig, state: &str, word: &str) {
    rig.until("log", |s| s.state.as_str() == state).await;
    rig.until("log", |s| s.last_error.as_ref().is_some_and(|e| e.contains(word))).await;
    assert_eq!(rig.counts("log").dead, 0);
}

#[tokio::test]
async fn an_event_is_a_message_with_its_id_on_its_portals_subject() {
    let server = Server::start("");
    server.create_stream("EVENTS", &["events.*"]).await;
    let mut rig = Rig::start(&upstream(&server.url(""), "subject = 'events.{portal}'"));
    rig.accept(3000);
    let stored = check_all_arrive(&server, rig).await;
    assert_eq!(stored.len(), 3000);
    for message in stored {
        assert_eq!(message.message_id, message.value["id"].as_str().unwrap());
        assert_eq!(message.subject, format!("events.{}", message.value["portal"]));
    }
}

#[tokio::test]
async fn a_batch_may_be_larger_than_what_may_be_unanswered() {
    let server = Server::start("");
    server.create_stream("EVENTS", &["events"]).await;
    let config = upstream(&server.url(""), SUBJECT);
    let mut rig = Rig::start(&config.replace("events_max = 50", "events_max = 5000"));
    rig.accept(12_000);
    check_all_arrive(&server, rig).await;
}

#[tokio::test]
async fn a_server_that_is_killed_under_load_costs_no_event_and_makes_no_duplicate() {
    let mut server = Server::start("");
    server.create_stream("EVENTS", &["events"]).await;
    let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT));
    for round in 1..=5 {
        rig.accept(1000);
        let enough = round * 500;
        rig.until_counts("log", |counts| counts.delivered >= enough).await;
        server.kill();
        rig.accept(100);
        rig.until("log", |s| s.state.as_str() != "ok").await;
        server.restart();
    }
    let stored = check_all_arrive(&server, rig).await;
    let ids: BTreeSet<_> = stored.iter().map(|message| &message.message_id).collect();
    assert_eq!((ids.len(), stored.len()), (5500, 5500));
}

#[tokio::test]
async fn a_server_that_freezes_is_given_up_on_and_gets_everything_when_it_wakes() {
    let server = Server::start("");
    server.create_stream("EVENTS", &["events"]).await;
    let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT_IMPATIENT));
    rig.accept(100);
    rig.settled("log").await;
    server.signal(Signal::STOP);
    rig.accept(100);
    rig.until("log", |s| s.state.as_str() != "ok").await;
    server.signal(Signal::CONT);
    check_all_arrive(&server, rig).await;
}

#[tokio::test]
async fn a_stream_that_is_not_there_is_waited_for() {
    let server = Server::start("");
    let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT));
    rig.accept(10);
    check_error(&rig, "misconfigured", "does not exist").await;
    server.create_stream("EVENTS", &["elsewhere"]).await;
    check_error(&rig, "misconfigured", "does not take the subject").await;
    let jetstream = server.jetstream(ConnectOptions::new()).await;
    jetstream.update_stream(events_stream()).await.unwrap();
    check_all_arrive(&server, rig).await;
}

#[tokio::test]
async fn a_stream_that_goes_away_under_way_is_missed() {
    let server = Server::start("");
    server.create_stream("EVENTS", &["events"]).await;
    let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT));
    rig.accept(10);
    rig.settled("log").await;
    server.jetstream(ConnectOptions::new()).await.delete_stream("EVENTS").await.unwrap();
    rig.accept(10);
    check_error(&rig, "misconfigured", "does not exist").await;
    server.create_stream("OTHER", &["events"]).await;
    server.create_stream("EVENTS", &["elsewhere"]).await;
    check_error(&rig, "misconfigured", "does not take the subject").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_full_stream_is_waited_for() {
    let server = Server::start("");
    let discard = stream::DiscardPolicy::New;
    let config = stream::Config { max_messages: 50, discard, ..events_stream() };
    server.create(config.clone()).await;
    let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT));
    rig.accept(70);
    rig.until("log", |s| s.last_error.as_ref().is_some_and(|e| e.contains("full"))).await;
    let jetstream = server.jetstream(ConnectOptions::new()).await;
    jetstream.update_stream(stream::Config { max_messages: 1000, ..config }).await.unwrap();
    check_all_arrive(&server, rig).await;
}

#[tokio::test]
async fn an_event_that_is_too_large_is_a_dead_letter_and_the_others_arrive() {
    // For the server as a whole, and for the stream alone.
    for (lines, max_message_size) in [("max_payload: 2000", -1), ("", 2000)] {
        let server = Server::start(lines);
        server.create(stream::Config { max_message_size, ..events_stream() }).await;
        let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT));
        rig.accept(30);
        let mut large = sample(30);
        large.properties.push(("note".into(), "x".repeat(3000).into()));
        rig.accept_event(&large);
        rig.accept(30);
        rig.settled("log").await;
        let stored = server.read_stream("EVENTS").await;
        assert_eq!((stored.len(), rig.check("log", &events(&stored))), (60, 0));
        let dead = rig.dead("log");
        assert_eq!(dead.len(), 1);
        assert_eq!(dead[0].reason, Reason::TooLarge);
        rig.stop().await;
    }
}

#[tokio::test]
async fn who_we_are_is_in_the_url() {
    let user = "authorization {\n  user: edge\n  password: \"p@ss:word\"\n}";
    let token = "authorization {\n  token: \"t0ken/x\"\n}";
    let as_user = ConnectOptions::with_user_and_password("edge".into(), "p@ss:word".into());
    let as_token = ConnectOptions::with_token("t0ken/x".into());
    for (lines, login, wrong, options) in
        [(user, "edge:p%40ss%3Aword@", "edge:wrong@", as_user), (token, "t0ken%2Fx@", "", as_token)]
    {
        let server = Server::start(lines);
        let jetstream = server.jetstream(options).await;
        jetstream.create_stream(events_stream()).await.unwrap();
        let mut rig = Rig::start(&upstream(&server.url(wrong), SUBJECT));
        rig.accept(10);
        check_error(&rig, "misconfigured", "credentials").await;
        let dir = rig.stop().await;
        let rig = Rig::start_in(dir, &upstream(&server.url(login), SUBJECT), Vec::new());
        rig.until_counts("log", |counts| counts.delivered >= 10).await;
        assert_eq!(crate::nats_server::read_stream(&jetstream, "EVENTS").await.len(), 10);
        rig.stop().await;
    }
}

#[tokio::test]
async fn who_we_are_is_in_a_credentials_file() {
    let server = Server::start(include_str!("../data/nats/server.conf"));
    let creds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/nats/edge.creds");
    let options =
        ConnectOptions::with_credentials(include_str!("../data/nats/edge.creds")).unwrap();
    let jetstream = server.jetstream(options).await;
    jetstream.create_stream(events_stream()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("edge.creds");
    std::fs::copy(creds, &copy).unwrap();
    let rest = format!("{SUBJECT}\ncredentials = '{}'", copy.display());
    let mut rig = Rig::start(&upstream(&server.url(""), &rest));
    std::fs::remove_file(&copy).unwrap();
    rig.accept(10);
    check_error(&rig, "misconfigured", "credentials file").await;
    std::fs::copy(creds, &copy).unwrap();
    rig.settled("log").await;
    assert_eq!(crate::nats_server::read_stream(&jetstream, "EVENTS").await.len(), 10);
    rig.stop().await;

    let mut rig = Rig::start(&upstream(&server.url(""), SUBJECT));
    rig.accept(10);
    check_error(&rig, "misconfigured", "credentials").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_right_that_is_missing_is_a_wrong_configuration() {
    let server = Server::start(
        "authorization {\n  users = [\n    { user: all, password: pw }\n    { user: edge, \
         password: pw, permissions: { publish: [\"$JS.API.>\"], subscribe: \"_INBOX.>\" } }\n  \
         ]\n}",
    );
    let options = ConnectOptions::with_user_and_password("all".into(), "pw".into());
    let jetstream = server.jetstream(options).await;
    jetstream.create_stream(events_stream()).await.unwrap();
    let mut rig = Rig::start(&upstream(&server.url("edge:pw@"), SUBJECT));
    rig.accept(10);
    check_error(&rig, "misconfigured", "permission").await;
    rig.stop().await;
}

#[tokio::test]
async fn tls_is_spoken_with_whom_we_trust_and_we_show_ourselves() {
    let (ours, clients, other) = (Authority::new(), Authority::new(), Authority::new());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| write(dir.path(), name, text);
    let (certificate, key) = ours.sign("localhost");
    let lines = format!(
        "tls {{\n  cert_file: \"{}\"\n  key_file: \"{}\"\n  ca_file: \"{}\"\n  verify: true\n}}",
        file("server.pem", &certificate.pem()),
        file("server.key", &key.serialize_pem()),
        file("clients.pem", &clients.pem),
    );
    let server = Server::start(&lines);
    let (certificate, key) = clients.sign("edge");
    let ca = file("ca.pem", &ours.pem);
    let cert = file("edge.pem", &certificate.pem());
    let key = file("edge.key", &key.serialize_pem());
    let url = format!("tls://localhost:{}", server.port());
    let options = ConnectOptions::new()
        .add_root_certificates(ca.clone().into())
        .add_client_certificate(cert.clone().into(), key.clone().into());
    let client = options.connect(url.clone()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    jetstream.create_stream(events_stream()).await.unwrap();

    let other = file("other.pem", &other.pem);
    let shown = format!("{SUBJECT}\ncert = '{cert}'\nkey = '{key}'");
    let mut rig = Rig::start(&upstream(&url, &format!("{shown}\nca = '{other}'")));
    rig.accept(10);
    check_error(&rig, "misconfigured", "TLS").await;
    let folder = rig.stop().await;
    let config = upstream(&url, &format!("{SUBJECT}\nca = '{ca}'"));
    let rig = Rig::start_in(folder, &config, Vec::new());
    rig.until("log", |s| s.last_error.is_some()).await;
    assert_eq!(rig.counts("log").delivered, 0, "it has seen no certificate of ours");
    let folder = rig.stop().await;
    let config = upstream(&url, &format!("{shown}\nca = '{ca}'"));
    let rig = Rig::start_in(folder, &config, Vec::new());
    rig.until_counts("log", |counts| counts.delivered >= 10).await;
    assert_eq!(crate::nats_server::read_stream(&jetstream, "EVENTS").await.len(), 10);
    rig.stop().await;
}

#[test]
fn what_is_wrong_with_the_configuration_is_named_by_its_key() {
    #[track_caller]
    fn check(text: &str, key: &str, word: &str) {
        let config: Config =
            toml::from_str(&format!("name = 'log'\nkind = 'nats'\n{text}")).unwrap();
        let error = config.validate().and_then(|valid| valid.build()).map(drop).unwrap_err();
        assert_eq!(error.key(), format!("upstream.log.{key}"), "{error}");
        assert!(error.reason().contains(word), "{error}");
        assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
    }
    let whole = "subject = 'events'\nstream = 'EVENTS'\n";
    let url = "urls = ['nats://127.0.0.1']\n";
    check(&format!("{url}stream = 'E'"), "subject", "missing");
    check(&format!("{url}stream = 'E'\nsubject = 'a.*'"), "subject", "wildcard");
    check(&format!("{url}subject = 'a'"), "stream", "missing");
    check(&format!("{url}subject = 'a'\nstream = 'a.b'"), "stream", "`.`");
    check(whole, "urls", "missing");
    check(&format!("{whole}urls = ['127.0.0.1:s3cret']"), "urls", "URL");
    check(&format!("{whole}urls = ['http://s3cret']"), "urls", "nats://");
    check(&format!("{whole}urls = ['nats://u:s3cret@a', 'nats://b']"), "urls", "same");
    check(&format!("{whole}{url}timeout_seconds = 0"), "timeout_seconds", "must be 1 to 300");
    check(&format!("{whole}{url}timeout_seconds = 301"), "timeout_seconds", "must be 1 to 300");
    check(&format!("{whole}{url}credentials = '/no/such'"), "credentials", "read");
    check(&format!("{whole}{url}ca = '/no/such'"), "ca", "read");
    check(&format!("{whole}{url}cert = '/no/such'"), "key", "missing");
    // Expanded while the file is read, so the error comes before the section's own.
    let unset = format!("name = 'log'\nkind = 'nats'\n{whole}urls = ['nats://${{NO_SUCH}}']");
    let error = toml::from_str::<Config>(&unset).unwrap_err();
    assert!(error.message().contains("urls[0]: ${NO_SUCH}"), "{error}");
    let many = vec!["'nats://a'"; 17].join(",");
    check(&format!("{whole}urls = [{many}]"), "urls", "at most");
    let dir = tempfile::tempdir().unwrap();
    let creds = write(dir.path(), "x.creds", "s3cret");
    check(&format!("{whole}{url}credentials = '{creds}'"), "credentials", "JWT");
    let both = format!("{whole}urls = ['nats://s3cret@a']\ncredentials = '{creds}'");
    check(&both, "credentials", "beside");
}
