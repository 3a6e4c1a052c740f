//! A portal list in a file: every kind of change, and every kind of bad edit.
//!
//! Real files in a folder of their own. The looks that `watch` takes in the course of time are
//! taken here one by one, so nothing waits.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pixelgate::internals::clock::Clock;
use pixelgate::internals::event::Reason;
use pixelgate::internals::policy::portals::{
    Bounds, Config, Mode, OpenError, PortalVerdict, Portals, RefreshMode, Refreshed,
};

/// A clock that stands still until it is moved.
#[derive(Default)]
struct HandClock(AtomicU64);

impl HandClock {
    fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds * 1000, Ordering::Relaxed);
    }
}

/// 2026-12-31T00:00:00Z.
const BEGIN_MS: u64 = 1_798_675_200_000;

impl Clock for HandClock {
    fn unix_ms(&self) -> u64 {
        BEGIN_MS + self.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A list in a file that a test changes, and the portals that opened it.
struct Rig {
    dir: tempfile::TempDir,
    path: PathBuf,
    clock: Arc<HandClock>,
    portals: Portals,
}

impl Rig {
    fn new(name: &str, list: &str) -> Rig {
        Rig::with(name, list, Config::default())
    }

    fn with(name: &str, list: &str, config: Config) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        fs::write(&path, list).unwrap();
        let clock = Arc::new(HandClock::default());
        let portals = open(&path, config, &clock).unwrap();
        Rig { dir, path, clock, portals }
    }

    /// Looks at the file as often as `watch` may look within `refresh_seconds`.
    async fn refresh(&self) -> Refreshed {
        for _ in 0..2 {
            match self.portals.refresh(RefreshMode::Routine).await {
                Refreshed::Unsettled => {}
                refreshed => return refreshed,
            }
        }
        Refreshed::Unsettled
    }

    #[track_caller]
    fn allows(&self, portals: &[u64]) {
        for portal in [11, 22, 33, 44] {
            let verdict = self.portals.judge(portal, "e").verdict;
            let expect = match portals.contains(&portal) {
                true => PortalVerdict::Allowed,
                false => PortalVerdict::Rejected(Reason::PortalNotAllowed),
            };
            assert_eq!(verdict, expect, "portal {portal}");
        }
    }

    fn failure(&self) -> String {
        self.portals.status().last_failure.map(|failure| failure.what).unwrap_or_default()
    }
}

fn open(path: &Path, config: Config, clock: &Arc<HandClock>) -> Result<Portals, OpenError> {
    let config = Config { source: path.to_str().unwrap().to_owned(), ..config };
    let bounds = Bounds { upstreams: vec!["eu".to_owned()], ..Bounds::default() };
    let config = config.validate().unwrap().bounded(bounds);
    Portals::open(&config, Path::new("unused"), clock.clone())
}

/// The error of opening a list, without the path of its folder.
fn complaint(name: &str, list: impl AsRef<[u8]>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, list).unwrap();
    match open(&path, Config::default(), &Arc::default()) {
        Ok(portals) => format!("taken: {}", portals.status().count),
        Err(error) => error.to_string().replace(&format!("{}/", dir.path().display()), ""),
    }
}

#[tokio::test]
async fn the_three_formats_say_the_same() {
    Rig::new("l.toml", "portals = [11, 22] # two\n[[portal]]\nid = 33\n").allows(&[11, 22, 33]);
    Rig::new("l.json", r#"{"portals": [11, 22], "portal": [{"id": 33}]}"#).allows(&[11, 22, 33]);
    Rig::new("l.txt", "# three\r\n11\n\n  22 # two\n33").allows(&[11, 22, 33]);
    Rig::new("l.toml", "\u{feff}portals = [\n  11, # one\n  22,\n]\n").allows(&[11, 22]);
    Rig::new("l.json", "\u{feff}{\"portals\": [11]}\n").allows(&[11]);
    Rig::new("l.txt", "\u{feff}11\n").allows(&[11]);
    Rig::new("l.toml", "[[portal]]\nid = 44").allows(&[44]);
    Rig::new("l.toml", "portal = [{ id = 11 }]\nportals = [22]\n").allows(&[11, 22]);
}

#[test]
fn a_list_of_none_must_say_so() {
    assert_eq!(complaint("l.toml", "portals = []"), "taken: 0");
    assert_eq!(complaint("l.json", r#"{"portals": []}"#), "taken: 0");
    for (name, list) in [
        ("l.toml", ""),
        ("l.toml", "# portals = []\n"),
        ("l.toml", "[defaults]\nevents = [\"a\"]\n"),
        ("l.json", "{}"),
        ("l.json", r#"{"portal": []}"#),
        ("l.txt", ""),
        ("l.txt", "# no portal\n"),
    ] {
        let complaint = complaint(name, list);
        assert!(complaint.contains("there is no portal in it"), "{list}: {complaint}");
    }
    assert!(complaint("l.json", "").contains("l.json:1:"));
}

#[test]
fn what_is_not_understood_is_named_with_its_place() {
    for (name, list, place, what) in [
        // Ids that are none.
        ("l.toml", "portals = [11,\n  0]", "l.toml:2:3: ", "begins at 1"),
        ("l.json", "{\"portals\": [11,\n  0]}", "l.json:2:", "begins at 1"),
        ("l.txt", "11\n 0\n", "l.txt:2:2: ", "begins at 1"),
        ("l.toml", "portals = [1000000000000000]", "l.toml:1:12: ", "15 digits"),
        ("l.toml", "portal = []\nportals = [1000000000000000]", "l.toml:2:12: ", "15 digits"),
        ("l.json", "{\"portals\": [1000000000000000]}", "l.json:1:", "15 digits"),
        ("l.txt", "1000000000000000", "l.txt:1:1: ", "15 digits"),
        ("l.toml", "portals = [\"11\"]", "l.toml:1:12: ", "plain digits"),
        ("l.json", "{\"portals\": [\"11\"]}", "l.json:1:", "invalid type: string"),
        ("l.txt", "11\nAcme\n", "l.txt:2:1: ", "plain digits"),
        ("l.txt", "11 22\n", "l.txt:1:1: ", "plain digits"),
        ("l.txt", "11,\n", "l.txt:1:1: ", "plain digits"),
        ("l.toml", "portals = [-11]", "l.toml:1:12: ", "plain digits"),
        ("l.toml", "portals = [11.5]", "l.toml:1:12: ", "plain digits"),
        ("l.toml", "portals = [011]", "l.toml:1:12: ", "leading zero"),
        ("l.txt", "011", "l.txt:1:1: ", "leading zero"),
        ("l.toml", "portals = [11]\n[[portal]]\nid = 0\n", "l.toml:3:6: ", "begins at 1"),
        ("l.toml", "portals = [11]\n[[portal]]\nid = \"22\"\n", "l.toml:3:6: ", "a portal id"),
        // An id that stands twice.
        ("l.toml", "portals = [11,\n 22,\n 11]", "l.toml:3:2: ", "portal 11: this portal id is"),
        ("l.json", "{\"portals\": [11,\n22,\n11]}", "l.json:3:", "portal 11: this portal id is"),
        ("l.txt", "11\n22\n11\n", "l.txt:3:1: ", "portal 11: this portal id is"),
        ("l.toml", "portals = [11]\n\n[[portal]]\nid = 11", "l.toml:3:1: ", "portal 11: "),
        ("l.json", "{\"portal\": [{\"id\": 1},\n{\"id\": 1}]}", "l.json:2:", "portal 1: "),
        // Lists that are cut off.
        ("l.toml", "portals = [11,\n 22", "l.toml:2:4: ", "not closed"),
        ("l.toml", "portals = [11,\n 22,\n", "l.toml:3:1: ", "not closed"),
        ("l.toml", "portals = [11]\n[[portal", "l.toml:2:", "unclosed"),
        ("l.json", "{\"portals\": [11,\n 22", "l.json:2:3: ", "EOF"),
        ("l.json", "{\"portals\": [11, 22]", "l.json:1:", "EOF"),
        // Mistakes of syntax.
        ("l.toml", "portals = [11 22]", "l.toml:1:15: ", "expected `,` or `]`"),
        ("l.toml", "portals = [11,, 22]", "l.toml:1:15: ", "expected a portal id"),
        ("l.toml", "portals = [11,\n 22] x\n", "l.toml:2: ", "expected"),
        ("l.toml", "portals = [11] x\n", "l.toml:1: ", "expected"),
        ("l.toml", "portals = [11]\nportals = [22]", "l.toml:2:1: ", "duplicate key"),
        ("l.json", "{\"portals\": [11],\n\"portals\": [22]}", "l.json:2:", "already in the list"),
        ("l.json", "{\"portals\": [11]}\n{}", "l.json:2:1: ", "trailing"),
        ("l.json", "[11]", "l.json:1:", "expected `portals`"),
        ("l.toml", "portals = 11", "l.toml:1:11: ", "an array of portal ids"),
        ("l.toml", "portals = [11]\n\nevents = []", "l.toml:3:1: ", "unknown field `events`"),
        ("l.json", "{\"portals\": [11],\n\"x\": 1}", "l.json:2:", "unknown field `x`"),
        ("l.toml", "<html>", "l.toml:1:", ""),
        ("l.txt", "<html>", "l.txt:1:1: ", "plain digits"),
    ] {
        let complaint = complaint(name, list);
        let expect = format!("portals.source: {place}");
        assert!(complaint.starts_with(&expect), "{list}\n  {complaint}\n  {expect}");
        assert!(complaint.contains(what), "{list}\n  {complaint}\n  {what}");
    }
    assert!(complaint("l.toml", b"portals = [11]\n#\xff\n").contains("l.toml:2:2: not UTF-8"));
    assert!(complaint("l.txt", b"1\x001\n").contains("l.txt:1:1: "));
}

#[test]
fn rules_that_cannot_be_meant_are_named_with_their_place() {
    let long = format!("events = [{}]", "\"a\",".repeat(1001));
    for (rule, what) in [
        ("event = [\"a\"]", "unknown field `event`"),
        ("events = []", "`events` names none"),
        ("events = [\"\"]", "1 to 255 characters"),
        ("events = \"a\"", "expected"),
        ("events = [\"a\\tb\"]", "control characters"),
        (&long, "at most 1000"),
        ("drop_properties = [\"SSN\"]", "no property's name"),
        ("upstreams = [\"ue\"]", "`upstreams` names \"ue\", which is no upstream; there are `eu`"),
        ("upstreams = \"eu\"", "expected"),
        ("privacy = { ip = \"half\" }", "unknown variant `half`"),
        ("privacy = { agent = \"none\" }", "unknown field `agent`"),
        ("privacy = { referer = \"full\" }", "`privacy.referer` is looser"),
        ("privacy = { referer_query = true }", "`privacy.referer_query` is looser"),
        ("rate = { per_second = 0 }", "`rate.per_second` must be"),
        ("rate = { per_second = 1000001 }", "`rate.per_second` must be"),
        ("rate = { per_second = 1, burst = 0 }", "`rate.burst` must be"),
        ("rate = { per_second = 1.5 }", "expected"),
        ("rate = { burst = 1 }", "missing field `per_second`"),
        ("rate = { per_second = 1, per_minute = 1 }", "unknown field `per_minute`"),
        ("rate = 10", "expected"),
        ("quota = { per_day = 0 }", "`quota.per_day` must be"),
        ("quota = { per_day = 1000000001 }", "`quota.per_day` must be"),
        ("quota = { per_day = -1 }", "expected"),
        ("quota = { per_hour = 1 }", "unknown field `per_hour`"),
        ("quota = {}", "missing field `per_day`"),
        ("quota = 10", "expected"),
        ("expires = 2027-01-01T00:00:00Z", "without a time"),
        ("expires = 2027-01-01T00:00:00", "without a time"),
        ("expires = \"tomorrow\"", "without a time"),
        ("expires = 2027-02-30", ""),
        ("expires = 1", "expected a date"),
    ] {
        let complaint = complaint("l.toml", format!("[[portal]]\nid = 11\n{rule}\n"));
        assert!(complaint.starts_with("portals.source: l.toml:3:"), "{rule}\n  {complaint}");
        assert!(complaint.contains(what), "{rule}\n  {complaint}\n  {what}");
    }
    let complaint = complaint("l.toml", "portals = [11]\n[defaults]\nid = 5\n");
    assert!(complaint.contains("l.toml:3:1: unknown field `id`"), "{complaint}");
}

#[tokio::test]
async fn a_rewrite_in_place_is_picked_up() {
    let rig = Rig::new("l.toml", "portals = [11]");
    fs::write(&rig.path, "portals = [22]").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
    assert_eq!(rig.refresh().await, Refreshed::Same);
}

#[tokio::test]
async fn a_rename_over_the_file_is_picked_up() {
    let rig = Rig::new("l.json", r#"{"portals":[11]}"#);
    let other = rig.dir.path().join("l.json.tmp");
    fs::write(&other, r#"{"portals":[22]}"#).unwrap();
    fs::rename(&other, &rig.path).unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
}

#[tokio::test]
async fn an_editor_that_moves_the_old_file_away_first_is_no_failure() {
    let rig = Rig::new("l.txt", "11\n");
    fs::rename(&rig.path, rig.dir.path().join("l.txt~")).unwrap();
    assert_eq!(rig.portals.refresh(RefreshMode::Routine).await, Refreshed::Unsettled);
    fs::write(&rig.path, "22\n").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
    assert_eq!(rig.portals.status().failures, 0);
}

#[tokio::test]
async fn a_swapped_symlink_is_picked_up() {
    // As Kubernetes mounts a ConfigMap: the file leads through `..data` to a dated folder.
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (folder, list) in [("2026_1", "portals = [11]"), ("2026_2", "portals = [22]")] {
        fs::create_dir(at(folder)).unwrap();
        fs::write(at(folder).join("l.toml"), list).unwrap();
    }
    symlink("2026_1", at("..data")).unwrap();
    symlink("..data/l.toml", at("l.toml")).unwrap();
    let clock = Arc::new(HandClock::default());
    let portals = open(&at("l.toml"), Config::default(), &clock).unwrap();
    let rig = Rig { path: at("l.toml"), dir, clock, portals };
    rig.allows(&[11]);

    symlink("2026_2", rig.dir.path().join("..data_tmp")).unwrap();
    fs::rename(rig.dir.path().join("..data_tmp"), rig.dir.path().join("..data")).unwrap();
    fs::remove_dir_all(rig.dir.path().join("2026_1")).unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
}

#[tokio::test]
async fn a_change_that_keeps_size_and_time_is_picked_up() {
    let rig = Rig::new("l.txt", "11\n");
    let stamp = fs::metadata(&rig.path).unwrap().modified().unwrap();
    fs::write(&rig.path, "22\n").unwrap();
    fs::File::options().write(true).open(&rig.path).unwrap().set_modified(stamp).unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
}

#[tokio::test]
async fn a_touched_file_is_the_same_list() {
    let rig = Rig::new("l.txt", "11\n");
    fs::write(&rig.path, "11\n").unwrap();
    let loaded_at = rig.portals.status().loaded_at_ms;
    rig.clock.forward(10);
    assert_eq!(rig.refresh().await, Refreshed::Same);
    assert_eq!(rig.portals.status().loaded_at_ms, loaded_at);
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_read() {
    let rig = Rig::new("l.txt", "11\n22\n33\n");
    // Each of these texts is a list by itself.
    for written in ["", "1", "11", "11\n22\n", "11\n22\n44\n"] {
        fs::write(&rig.path, written).unwrap();
        assert_eq!(rig.portals.refresh(RefreshMode::Routine).await, Refreshed::Unsettled);
        rig.allows(&[11, 22, 33]);
    }
    assert_eq!(rig.portals.refresh(RefreshMode::Routine).await, Refreshed::Swapped);
    rig.allows(&[11, 22, 44]);
}

#[tokio::test]
async fn a_reload_reads_at_once() {
    let rig = Rig::new("l.txt", "11\n");
    fs::write(&rig.path, "22\n").unwrap();
    assert_eq!(rig.portals.refresh(RefreshMode::AtOnce).await, Refreshed::Swapped);
    rig.allows(&[22]);
    assert_eq!(rig.portals.refresh(RefreshMode::AtOnce).await, Refreshed::Same);
}

#[tokio::test]
async fn a_bad_edit_changes_nothing_and_is_told_once() {
    let rig = Rig::new("l.toml", "portals = [11]");
    for (edit, place) in [
        ("portals = [11, 11]", "l.toml:1:16: "),
        ("portals = [0]", "l.toml:1:12: "),
        ("portals = [x]", "l.toml:1:12: "),
        ("portals = [11, 2", "l.toml:1:17: "),
        ("portal = [11]", "l.toml:1:11: "),
        ("", "l.toml: there is no portal in it"),
    ] {
        fs::write(&rig.path, edit).unwrap();
        assert_eq!(rig.refresh().await, Refreshed::Failed, "{edit}");
        assert!(rig.failure().contains(place), "{edit}: {}", rig.failure());
        assert!(!rig.portals.status().fresh);
        rig.allows(&[11]);
        let failures = rig.portals.status().failures;
        assert_eq!(rig.portals.refresh(RefreshMode::Routine).await, Refreshed::Failed);
        assert_eq!(rig.portals.status().failures, failures + 1);
    }
    fs::write(&rig.path, "portals = [22]").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    assert!(rig.portals.status().fresh);
    assert!(rig.portals.status().last_failure.is_some());
    rig.allows(&[22]);
}

#[tokio::test]
async fn taking_a_bad_edit_back_is_well_again() {
    let rig = Rig::new("l.txt", "11\n");
    fs::write(&rig.path, "11\noops\n").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Failed);
    fs::write(&rig.path, "11\n").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Same);
    assert!(rig.portals.status().fresh);
}

#[tokio::test]
async fn a_file_that_is_gone_or_not_a_file_changes_nothing() {
    let rig = Rig::new("l.txt", "11\n");
    fs::remove_file(&rig.path).unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Failed);
    assert!(rig.failure().contains("l.txt: No such file"), "{}", rig.failure());
    rig.allows(&[11]);
    fs::create_dir(&rig.path).unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Failed);
    rig.allows(&[11]);
    fs::remove_dir(&rig.path).unwrap();
    fs::write(&rig.path, "22\n").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
}

#[tokio::test]
async fn a_file_that_may_not_be_read_changes_nothing_until_it_may() {
    let rig = Rig::new("l.txt", "11\n");
    fs::write(&rig.path, "22\n").unwrap();
    fs::set_permissions(&rig.path, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::File::open(&rig.path).is_ok() {
        return; // Root may read everything, so there is nothing to see.
    }
    assert_eq!(rig.refresh().await, Refreshed::Failed);
    rig.allows(&[11]);
    fs::set_permissions(&rig.path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Swapped);
    rig.allows(&[22]);
}

#[tokio::test]
async fn a_list_too_old_is_overloaded_and_recovers() {
    let config = Config { stale_seconds_max: 60, ..Config::default() };
    let rig = Rig::with("l.txt", "11\n", config);
    rig.clock.forward(60);
    rig.allows(&[11]);
    assert_eq!(rig.refresh().await, Refreshed::Same);
    fs::write(&rig.path, "oops\n").unwrap();
    rig.clock.forward(60);
    assert_eq!(rig.refresh().await, Refreshed::Failed);
    rig.allows(&[11]);
    rig.clock.forward(1);
    assert_eq!(rig.portals.judge(11, "e").verdict, PortalVerdict::Rejected(Reason::Overloaded));
    assert!(rig.portals.status().stale);
    fs::write(&rig.path, "11\n").unwrap();
    assert_eq!(rig.refresh().await, Refreshed::Same);
    rig.allows(&[11]);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_at_start() {
    let missing = Path::new("/nonexistent/l.toml");
    let error = open(missing, Config::default(), &Arc::default()).unwrap_err();
    assert!(error.to_string().starts_with("portals.source: /nonexistent/l.toml: "), "{error}");
    let config = Config { mode: Mode::Off, ..Config::default() };
    assert!(open(missing, config, &Arc::default()).is_err());
}

#[tokio::test]
async fn only_a_regular_file_is_a_list() {
    let mut rig = Rig::new("l.txt", "11\n");
    fs::remove_file(&rig.path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&rig.path).status().unwrap();
    assert!(made.success());
    assert_eq!(rig.refresh().await, Refreshed::Failed);
    assert!(rig.failure().ends_with("l.txt: is not a regular file"), "{}", rig.failure());
    rig.allows(&[11]);
    let error = open(&rig.path, Config::default(), &rig.clock).unwrap_err();
    assert!(error.to_string().ends_with("is not a regular file"), "{error}");
    fs::remove_file(&rig.path).unwrap();
    fs::write(&rig.path, "22\n").unwrap();
    rig.portals = open(&rig.path, Config::default(), &rig.clock).unwrap();
    rig.allows(&[22]);
}

#[test]
fn the_sample_list_is_one() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/portals.toml");
    let text = fs::read_to_string(&sample).unwrap();
    let portals = open(&sample, Config::default(), &Arc::default()).unwrap();
    assert_eq!(portals.status().count, 2);
    assert_eq!(portals.judge(62515, "000000001625").verdict, PortalVerdict::Allowed);
    assert_eq!(portals.judge(56043, "x").verdict, PortalVerdict::Allowed);

    // The rules in it are commented out, and are meant to be uncommented.
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| {
            line.strip_prefix("# ").filter(|rule| rule.contains(['[', '='])).unwrap_or(line)
        })
        .collect();
    assert_eq!(complaint("l.toml", uncommented.join("\n")), "taken: 3");
}

#[test]
fn a_list_larger_than_the_limit_is_not_read() {
    let limit = usize::try_from(pixelgate::internals::policy::portals::LIST_BYTES_MAX).unwrap();
    let mut list = b"11\n".to_vec();
    list.resize(limit, b'#');
    assert_eq!(complaint("l.txt", &list), "taken: 1");
    list.push(b'#');
    assert!(complaint("l.txt", &list).contains("larger than 64 MiB"));

    let limit = pixelgate::internals::policy::portals::RULES_BYTES_MAX;
    let mut list = b"portals=[\n11]\n".to_vec();
    // The id is not counted.
    list.resize(limit + 2, b'#');
    assert_eq!(complaint("l.toml", &list), "taken: 1");
    list.push(b'#');
    assert!(complaint("l.toml", &list).contains("more than 16 MiB beside the ids"));
}
