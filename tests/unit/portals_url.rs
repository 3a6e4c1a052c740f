//! A portal list behind a URL, from a server that behaves in every way it may.

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    io::Write,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pixelgate::config::Secret;
use pixelgate::internals::clock::Clock;
use pixelgate::internals::event::Reason;
use pixelgate::internals::policy::portals::{
    Config, LIST_BYTES_MAX, PortalVerdict, Portals, RefreshMode, Refreshed,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A clock that stands still until it is moved.
#[derive(Default)]
pub struct HandClock(AtomicU64);

impl Clock for HandClock {
    fn unix_ms(&self) -> u64 {
        1_798_675_200_000 + self.0.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// A server that gives the next answer of a script to each request, and keeps the requests.
pub struct Server {
    address: SocketAddr,
    script: Arc<Mutex<VecDeque<Vec<u8>>>>,
    requests: Arc<Mutex<Vec<String>>>,
    running: JoinHandle<()>,
}

impl Server {
    async fn start() -> Server {
        Server::listen("127.0.0.1:0".parse().unwrap()).await
    }

    async fn listen(address: SocketAddr) -> Server {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let script: Arc<Mutex<VecDeque<Vec<u8>>>> = Arc::default();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let (answers, heads) = (Arc::clone(&script), Arc::clone(&requests));
        let running = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else { return };
                let head = read_head(&mut stream).await;
                heads.lock().unwrap().push(head);
                let answer = answers.lock().unwrap().pop_front().unwrap_or_default();
                // A client may close the connection when it has read enough.
                let _ = stream.write_all(&answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Server { address, script, requests, running }
    }

    pub fn answers(&self, head: &str, body: impl AsRef<[u8]>) {
        let (head, body) = (head.replace('\n', "\r\n"), body.as_ref());
        let length = body.len();
        let head =
            format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        self.answers_raw([head.as_bytes(), body].concat());
    }

    fn answers_raw(&self, answer: impl Into<Vec<u8>>) {
        self.script.lock().unwrap().push_back(answer.into());
    }

    fn last_request(&self) -> String {
        self.requests.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// Closes the port.
    async fn go(self) -> SocketAddr {
        self.running.abort();
        let _ = self.running.await;
        self.address
    }
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

pub struct Rig {
    dir: tempfile::TempDir,
    pub server: Server,
    pub clock: Arc<HandClock>,
    config: Config,
    pub portals: Portals,
}

impl Rig {
    async fn new(path: &str) -> Rig {
        Rig::with(path, Config::default()).await
    }

    pub async fn with(path: &str, config: Config) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::start().await;
        let source = format!("http://{}{path}", server.address);
        let config = Config { source, ..config };
        let clock = Arc::new(HandClock::default());
        let portals =
            Portals::open(&config.validate().unwrap(), dir.path(), clock.clone()).unwrap();
        Rig { dir, server, clock, config, portals }
    }

    fn open_again(&self) -> Portals {
        Portals::open(&self.config.validate().unwrap(), self.dir.path(), self.clock.clone())
            .unwrap()
    }

    /// Waits until events of this portal are allowed. Panics after a minute.
    pub async fn until_allowed(&self, portal: u64) {
        let wait = async {
            while verdict(&self.portals, portal) != PortalVerdict::Allowed {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), wait).await;
        waited.unwrap_or_else(|_| panic!("{portal}: {:?}", self.portals.status().last_failure));
    }

    pub async fn look(&self) -> Refreshed {
        self.portals.refresh(RefreshMode::Routine).await
    }

    pub async fn fails(&self, what: &str) {
        let before = self.portals.status();
        assert_eq!(self.look().await, Refreshed::Failed, "{what}");
        let status = self.portals.status();
        let failure = status.last_failure.unwrap().what;
        assert!(failure.contains(what), "{failure}\n  {what}");
        assert!(!failure.contains("secret"), "{failure}");
        assert_eq!((status.fresh, status.failures), (false, before.failures + 1));
        assert_eq!((status.count, status.loaded_at_ms), (before.count, before.loaded_at_ms));
    }
}

fn verdict(portals: &Portals, portal: u64) -> PortalVerdict {
    portals.judge(portal, "e").verdict
}

const OVERLOADED: PortalVerdict = PortalVerdict::Rejected(Reason::Overloaded);
const NOT_LISTED: PortalVerdict = PortalVerdict::Rejected(Reason::PortalNotAllowed);

#[tokio::test]
async fn it_is_overloaded_until_the_first_list() {
    let rig = Rig::new("/l.toml").await;
    assert_eq!(verdict(&rig.portals, 11), OVERLOADED);
    assert!(!rig.portals.status().fresh);
    rig.server.answers("500 Oh", "");
    rig.fails("answered 500").await;
    assert_eq!(verdict(&rig.portals, 11), OVERLOADED);
    rig.server.answers("200 OK", "portals = [11]");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert_eq!(
        (verdict(&rig.portals, 11), verdict(&rig.portals, 22)),
        (PortalVerdict::Allowed, NOT_LISTED)
    );
    assert!(rig.portals.status().fresh);
}

#[tokio::test]
async fn the_server_is_asked_with_what_it_said_last() {
    let rig = Rig::new("/l.toml?key=1").await;
    let date = "Mon, 23 Nov 2026 03:00:00 GMT";
    rig.server.answers(&format!("200 OK\nETag: W/\"v1\"\nLast-Modified: {date}"), "portals = [11]");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    let request = rig.server.last_request();
    assert!(request.starts_with("get /l.toml?key=1 http/1.1\r\n"), "{request}");
    assert!(!request.contains("if-none-match") && !request.contains("if-modified-since"));

    rig.server.answers_raw("HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n");
    assert_eq!(rig.look().await, Refreshed::Same);
    let request = rig.server.last_request();
    assert!(request.contains("if-none-match: w/\"v1\"\r\n"), "{request}");
    let since = format!("if-modified-since: {}\r\n", date.to_ascii_lowercase());
    assert!(request.contains(&since), "{request}");
    assert_eq!(verdict(&rig.portals, 11), PortalVerdict::Allowed);
}

#[tokio::test]
async fn a_304_to_an_unconditional_request_is_a_failure() {
    let rig = Rig::new("/l.toml").await;
    rig.server.answers("304 Not Modified", "");
    rig.fails("answered 304").await;
}

#[tokio::test]
async fn a_server_that_fails_changes_nothing_and_may_come_back() {
    let mut rig = Rig::new("/l.txt?key=secret").await;
    let garbage = |rig: &Rig, body: &[u8]| rig.server.answers("200 OK\nETag: \"bad\"", body);
    rig.server.answers("200 OK\nETag: \"v1\"", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);

    rig.server.answers("500 Oh", "secret");
    rig.fails("/l.txt: answered 500 Internal Server Error").await;
    rig.server.answers("404 Oh", "22\n");
    rig.fails("answered 404").await;
    rig.server.answers("204 No", "");
    rig.fails("answered 204").await;
    garbage(&rig, b"11\n22\n<secret>\n");
    rig.fails("/l.txt:3:1: not a portal id").await;
    garbage(&rig, b"11\n22\n11\n");
    rig.fails("/l.txt:3:1: portal 11: this portal id is already in the list, also at line 1").await;
    garbage(&rig, b"");
    rig.fails("/l.txt: there is no portal in it").await;
    rig.server.answers("200 OK\nContent-Type: text/html; charset=utf-8", "22\n");
    rig.fails("neither Content-Type nor name").await;
    rig.server.answers("200 OK\nContent-Encoding: br", "22\n");
    rig.fails("Content-Encoding is not gzip").await;
    rig.server.answers("200 OK\nContent-Encoding: gzip", "22\n");
    rig.fails("/l.txt: ").await;
    rig.server.answers_raw("22\n");
    rig.fails("/l.txt: ").await;
    rig.server.answers_raw("");
    rig.fails("/l.txt: ").await;
    // Answers that are cut off before the announced length, within a chunk, and without any length.
    rig.server.answers_raw("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n22\n");
    rig.fails("/l.txt: ").await;
    rig.server.answers_raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n22\n\r\n");
    rig.fails("/l.txt: ").await;
    rig.server.answers_raw("HTTP/1.1 200 OK\r\n\r\n22\n");
    rig.fails("no length").await;

    let Rig { server, .. } = rig;
    let address = server.go().await;
    rig.server = Server::start().await;
    rig.fails("/l.txt: ").await;
    assert_eq!(verdict(&rig.portals, 11), PortalVerdict::Allowed);

    rig.server = Server::listen(address).await;
    rig.server.answers("200 OK\nETag: \"v2\"", "22\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    // A list that was not taken has left no `ETag` and no copy either.
    assert!(rig.server.last_request().contains("if-none-match: \"v1\"\r\n"));
    assert_eq!(
        (verdict(&rig.portals, 11), verdict(&rig.portals, 22)),
        (NOT_LISTED, PortalVerdict::Allowed)
    );
    assert!(rig.portals.status().fresh);
}

#[tokio::test]
async fn the_type_decides_the_format_where_it_says_one() {
    for (path, content_type, body) in [
        ("/l", "application/json", r#"{"portals": [11]}"#),
        ("/l", "application/json; charset=utf-8", r#"{"portals": [11]}"#),
        ("/l.txt", "Application/TOML", "portals = [11]"),
        ("/l", "text/plain", "11\n"),
        ("/l.toml", "text/plain; charset=utf-8", "portals = [11]"),
        ("/l.json?a=b.txt", "application/octet-stream", r#"{"portals": [11]}"#),
        ("/l.TXT", "", "11\n"),
    ] {
        let rig = Rig::new(path).await;
        rig.server.answers(&format!("200 OK\nContent-Type: {content_type}"), body);
        assert_eq!(rig.look().await, Refreshed::Swapped, "{path} {content_type}");
        assert_eq!(verdict(&rig.portals, 11), PortalVerdict::Allowed);
    }
    let rig = Rig::new("/list").await;
    rig.server.answers("200 OK\nContent-Type: application/octet-stream", "11\n");
    rig.fails("neither Content-Type nor name").await;
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn gzip_is_read() {
    let rig = Rig::new("/l.txt").await;
    let body = gzip(b"11\n22\n");
    rig.server.answers("200 OK\nContent-Encoding: GZIP", &body);
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert!(rig.server.last_request().contains("accept-encoding: gzip\r\n"));
    assert_eq!(rig.portals.status().count, 2);
    let members = [gzip(b"11\n22\n"), gzip(b"33\n")].concat();
    rig.server.answers("200 OK\nContent-Encoding: X-Gzip", &members);
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert_eq!(rig.portals.status().count, 3, "all members are read");
    // A copy without its checksum may be cut off.
    rig.server.answers("200 OK\nContent-Encoding: gzip", &body[..body.len() - 8]);
    rig.fails("/l.txt: ").await;
}

#[tokio::test]
async fn a_list_larger_than_the_limit_is_not_taken() {
    let limit = usize::try_from(LIST_BYTES_MAX).unwrap();
    let rig = Rig::new("/l.txt").await;
    let mut body = b"11\n".to_vec();
    body.resize(limit, b'#');
    rig.server.answers("200 OK\nContent-Encoding: gzip", gzip(&body));
    assert_eq!(rig.look().await, Refreshed::Swapped);
    body[1] = b'2';
    body.push(b'#');
    rig.server.answers("200 OK\nContent-Encoding: gzip", gzip(&body));
    rig.fails("larger than 64 MiB").await;
    rig.server.answers("200 OK", &body);
    rig.fails("larger than 64 MiB").await;
    assert_eq!(verdict(&rig.portals, 11), PortalVerdict::Allowed);
}

#[tokio::test]
async fn the_last_good_list_is_used_at_the_next_start() {
    let rig = Rig::new("/l.toml").await;
    rig.server.answers("200 OK\nETag: \"v1\"", "portals = [11]");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    rig.server.answers("200 OK\nETag: \"v2\"", "portals = [nonsense]");
    assert_eq!(rig.look().await, Refreshed::Failed);

    let portals = rig.open_again();
    assert_eq!(verdict(&portals, 11), PortalVerdict::Allowed);
    rig.server.answers("304 Not Modified", "");
    assert_eq!(portals.refresh(RefreshMode::Routine).await, Refreshed::Same);
    assert!(rig.server.last_request().contains("if-none-match: \"v1\"\r\n"));

    // The copy of another URL's list is not used.
    let source = format!("{}?other", rig.config.source);
    let other = Config { source, ..rig.config.clone() };
    let portals =
        Portals::open(&other.validate().unwrap(), rig.dir.path(), rig.clock.clone()).unwrap();
    assert_eq!(verdict(&portals, 11), OVERLOADED);

    // A damaged copy is not used, and does not prevent a start.
    let copy = rig.dir.path().join("portals.copy");
    let mut bytes = fs::read(&copy).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&copy, bytes).unwrap();
    assert_eq!(verdict(&rig.open_again(), 11), OVERLOADED);
}

#[tokio::test]
async fn a_copy_too_old_is_overloaded_until_it_is_confirmed() {
    let config = Config { stale_seconds_max: 60, ..Config::default() };
    let rig = Rig::with("/l.txt", config).await;
    rig.server.answers("200 OK\nETag: \"v1\"", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert_eq!(verdict(&rig.open_again(), 11), PortalVerdict::Allowed);

    let copy = fs::File::options().write(true).open(rig.dir.path().join("portals.copy")).unwrap();
    let long_ago = copy.metadata().unwrap().modified().unwrap() - Duration::from_secs(3600);
    copy.set_modified(long_ago).unwrap();
    let portals = rig.open_again();
    assert_eq!(verdict(&portals, 11), OVERLOADED);
    rig.server.answers("304 Not Modified", "");
    assert_eq!(portals.refresh(RefreshMode::Routine).await, Refreshed::Same);
    assert_eq!(verdict(&portals, 11), PortalVerdict::Allowed);
    // The time of the last confirmation outlives the process, too.
    assert_eq!(verdict(&rig.open_again(), 11), PortalVerdict::Allowed);
}

#[tokio::test]
async fn the_same_list_again_is_not_swapped_nor_written() {
    let rig = Rig::new("/l.txt").await;
    for expect in [Refreshed::Swapped, Refreshed::Same] {
        rig.server.answers("200 OK", "11\n");
        assert_eq!(rig.look().await, expect);
    }
    let inode = || {
        std::os::unix::fs::MetadataExt::ino(
            &rig.dir.path().join("portals.copy").metadata().unwrap(),
        )
    };
    let before = inode();
    rig.server.answers("200 OK", "11\n");
    assert_eq!(rig.look().await, Refreshed::Same);
    assert_eq!(inode(), before);
    rig.server.answers("200 OK\nETag: \"v1\"", "11\n");
    assert_eq!(rig.look().await, Refreshed::Same);
    assert_ne!(inode(), before);
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_written_costs_the_next_start_its_list_alone() {
    let mut rig = Rig::new("/l.txt").await;
    let file = rig.dir.path().join("file");
    fs::write(&file, "").unwrap();
    rig.portals = Portals::open(&rig.config.validate().unwrap(), &file, rig.clock.clone()).unwrap();
    rig.server.answers("200 OK\nETag: \"v1\"", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert!(matches!(verdict(&rig.portals, 11), PortalVerdict::Allowed));
    let next = || Portals::open(&rig.config.validate().unwrap(), &file, rig.clock.clone()).unwrap();
    assert_eq!(verdict(&next(), 11), OVERLOADED);
    assert!(rig.portals.status().unstored.is_some());

    // While the server has no other list, it need not send this one again.
    rig.server.answers("304 Not Modified", "");
    assert_eq!(rig.look().await, Refreshed::Same);
    assert!(rig.portals.status().unstored.is_some());
    fs::remove_file(&file).unwrap();
    rig.server.answers("304 Not Modified", "");
    assert_eq!(rig.look().await, Refreshed::Same);
    assert!(rig.server.last_request().contains("if-none-match: \"v1\""));
    assert_eq!(rig.portals.status().unstored, None);
    assert!(matches!(verdict(&next(), 11), PortalVerdict::Allowed));
}

#[tokio::test]
async fn a_cache_of_an_older_list_is_not_confirmed_while_the_newer_one_cannot_be_stored() {
    let rig = Rig::new("/l.txt").await;
    rig.server.answers("200 OK\nETag: \"v1\"", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    let cache = rig.dir.path().join("portals.copy");
    let written = fs::metadata(&cache).unwrap().modified().unwrap();
    fs::create_dir(rig.dir.path().join("portals.copy.new")).unwrap();
    rig.server.answers("200 OK\nETag: \"v2\"", "22\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    rig.server.answers("304 Not Modified", "");
    assert_eq!(rig.look().await, Refreshed::Same);
    assert_eq!(fs::metadata(&cache).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn headers_are_sent_with_the_environment_in_them() {
    let headers = "headers = { Authorization = 'Bearer ${CARGO_PKG_NAME}-${CARGO_PKG_NAME}' }";
    let rig = Rig::with("/l.txt", toml::from_str(headers).unwrap()).await;
    rig.server.answers("200 OK", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    let request = rig.server.last_request();
    assert!(request.contains("authorization: bearer pixelgate-pixelgate\r\n"), "{request}");
}

#[test]
fn a_header_that_cannot_be_sent_is_an_error_at_start() {
    for (name, value, what) in
        [("x-key", "a\nb", "cannot be the value"), ("x key", "a", "is not the name")]
    {
        let headers = BTreeMap::from([(name.to_owned(), Secret::new(value))]);
        let source = "http://127.0.0.1/l.txt".to_owned();
        let config = Config { source, headers, ..Config::default() };
        let error = config.validate().expect_err(value);
        assert_eq!(error.key(), format!("portals.headers.{name}"));
        assert!(error.reason().contains(what), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_is_followed_on_the_same_origin_only() {
    let rig = Rig::new("/l.txt").await;
    rig.server.answers("302 Found\nLocation: /other.txt", "");
    rig.server.answers("200 OK", "11\n");
    assert_eq!(rig.look().await, Refreshed::Swapped);
    assert!(rig.server.last_request().starts_with("get /other.txt "));

    let other = Server::start().await;
    rig.server.answers(&format!("302 Found\nLocation: http://{}/", other.address), "");
    rig.fails("redirected to another origin").await;
    assert_eq!(other.last_request(), "");
}

#[tokio::test]
async fn watching_fetches_at_once_and_ends_when_stopped() {
    let rig = Rig::new("/l.txt").await;
    rig.server.answers("200 OK", "11\n");
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let watching = tokio::spawn(rig.portals.clone().watch(stopped));
    rig.until_allowed(11).await;
    // A refresh that is asked for happens at once.
    rig.server.answers("200 OK", "22\n");
    rig.portals.reload();
    rig.until_allowed(22).await;
    stop.send(true).unwrap();
    watching.await.unwrap();
}
