//! curl and nghttp2's clients.

use super::{Field, Peer, Results};
use std::io::Write;
use std::process::{Command, Stdio};

const EVENT: &str = "/v1/event/?_a=62515&_n=a";
/// More than any window or buffer on the way.
const LARGE_BYTES: usize = 50_000_000;

/// Standard output of a command that gets `input`; the error is what a failed command prints.
fn run(command: &mut Command, input: &[u8]) -> Result<String, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // A command that does not read its input closes it.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap()
    });
    let [said, complaint] = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    if output.status.success() { Ok(said) } else { Err(format!("{} {complaint}", output.status)) }
}

/// Whether a command is installed. If it is not, prints a line that says so.
fn is_installed(name: &str) -> bool {
    let is_installed = Command::new(name).arg("--version").output().is_ok();
    if !is_installed {
        println!("{name} is not installed: left out");
    }
    is_installed
}

/// `ok` where the output holds `expect`.
fn verdict(output: Result<String, String>, expect: &str) -> String {
    match output {
        Ok(text) if text.contains(expect) => "ok".to_owned(),
        Ok(text) => format!("no {expect:?} in {:?}", text.chars().take(300).collect::<String>()),
        Err(complaint) => complaint.replace('\n', " "),
    }
}

/// The same checks by each protocol that curl speaks.
fn curl(field: &Field, peer: &Peer) -> Results {
    let large = vec![7; LARGE_BYTES];
    let uploaded = format!("\"length\":{LARGE_BYTES}");
    let (clear, tls) = (format!("http://{}", peer.clear), format!("https://{}", peer.tls));
    let code = "\n%{http_code} %{size_download}";
    let mut results = Vec::new();
    for (protocol, base) in [
        ("--http1.0", &clear),
        ("--http1.1", &clear),
        ("--http1.1", &tls),
        ("--http2", &tls),
        ("--http2-prior-knowledge", &clear),
    ] {
        let mut check = |name: &str, arguments: &[&str], path: &str, input: &[u8], expect: &str| {
            let mut command = Command::new("curl");
            command.args(["-sS", "-m", "60", "-w", code, protocol, "--cacert"]);
            command.arg(&field.certificate).args(arguments).arg(format!("{base}{path}"));
            let scheme = base.split(':').next().unwrap();
            let name = format!("curl {protocol}, {scheme}, {name}");
            results.push((name, verdict(run(&mut command, input), expect)));
        };
        if peer.judges {
            check("an event", &["-D", "-", "-o", "/dev/null"], EVENT, b"", "200 43");
            check("an event by HEAD", &["-I"], EVENT, b"", "200 0");
            let refused = "/v1/event/?_a=62515";
            check("a refusal", &["-H", "Accept: text/plain"], refused, b"", "missing_event");
        }
        // HTTP/1.0 has no chunks: curl refuses to send without a length.
        if protocol != "--http1.0" {
            check("-T - of 50 MB", &["-T", "-"], "/echo", &large, &uploaded);
            check("-T - of nothing", &["-T", "-"], "/echo", b"", "\"length\":0");
        }
        let sized = ["--data-binary", "@-"];
        check("50 MB with 100-continue", &sized, "/echo", &large, &uploaded);
        check("a form", &["-F", "a=b", "-F", "c=@-"], "/echo", b"file", "\"method\":\"POST\"");
        check("a download of 50 MB", &["-o", "/dev/null"], "/large", b"", "200 50000000");
        check("HEAD", &["-I"], "/range", b"", "ength: 100");
        check("a range", &["-r", "5-9"], "/range", b"", "56789\n206 5");
        check("early hints", &["-i"], "/hints", b"", "page\n200 4");
        check("a call with trailers", &["-i", "-d", "call"], "/grpc", b"", "200 4");
    }
    results
}

#[test]
fn curl_is_served() {
    if !is_installed("curl") {
        return;
    }
    let Some(field) = Field::start() else { return };
    field.compare(|peer| curl(&field, peer), 50);
}

fn nghttp(peer: &Peer) -> Results {
    let (clear, tls) = (format!("http://{}", peer.clear), format!("https://{}", peer.tls));
    let body = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(body.path(), vec![7; 300_000]).unwrap();
    let body = body.path().to_str().unwrap();
    let mut results = Vec::new();
    for base in [&clear, &tls] {
        let scheme = base.split(':').next().unwrap();
        let mut check =
            |name: &str, program: &str, arguments: &[&str], path: &str, expect: &str| {
                let mut command = Command::new(program);
                command.args(arguments).arg(format!("{base}{path}"));
                let name = format!("{program}, {scheme}, {name}");
                results.push((name, verdict(run(&mut command, b""), expect)));
            };
        if peer.judges {
            check("an event", "nghttp", &["-v"], EVENT, "x-event-verdict: accepted");
            check("fifty events", "nghttp", &["-v", "-m", "50"], EVENT, ":status: 200");
            check("events", "h2load", &["-n", "2000", "-c", "4", "-m", "50"], EVENT, "2000 2xx");
        }
        let upload = ["-v", "-d", body];
        check("an upload", "nghttp", &upload, "/echo", "\"length\":300000");
        let trailers = ["-v", "-d", body, "--trailer", "x-sum: 1"];
        check("an upload with trailers", "nghttp", &trailers, "/echo", "\"length\":300000");
        let expect = ["-v", "-d", body, "--expect-continue"];
        check("100-continue", "nghttp", &expect, "/echo", "\"length\":300000");
        let padded = ["-v", "-b", "200", "-d", body];
        check("padded frames", "nghttp", &padded, "/echo", "\"length\":300000");
        check("a small window", "nghttp", &["-v", "-w", "10", "-W", "12"], "/range", "0123456789");
        check("early hints", "nghttp", &["-v"], "/hints", ":status: 103");
        check("pages", "h2load", &["-n", "2000", "-c", "4", "-m", "50"], "/range", "2000 2xx");
        check("over HTTP/1", "h2load", &["--h1", "-n", "500", "-c", "4"], "/range", "500 2xx");
    }
    results
}

#[test]
fn nghttp2s_clients_are_served() {
    if !(is_installed("nghttp") && is_installed("h2load")) {
        return;
    }
    let Some(field) = Field::start() else { return };
    field.compare(nghttp, 20);
}
