//! A backend for pixelgate: it receives batches, checks their signature, drops events that it has
//! already received, and prints each new event as a line of JSON.
//!
//!     export SECRET="whsec_$(openssl rand -base64 32)"
//!     cargo run --example receiver -- 127.0.0.1:9000
//!
//! with this in the edge's configuration:
//!
//!     [[upstream]]
//!     name = "collector"
//!     kind = "http"
//!     url = "http://127.0.0.1:9000/events"
//!     secret = "${SECRET}"
//!
//! A production backend takes the same steps in the same order, but stores the ids in a database
//! with the events, and uses an HTTP library.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest body, compressed or not; a larger one is answered 413, and the edge splits the batch.
const BODY_BYTES_MAX: u64 = 8 << 20;
/// How many seconds a signature's time may differ from now: the tolerance of Standard Webhooks.
const AGE_SECONDS_MAX: u64 = 300;
type Head = HashMap<String, String>; // Names in lower case.

struct Receiver {
    key: Option<hmac::Key>,
    seen_ids: Mutex<HashSet<Value>>,
}

fn main() -> io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".into());
    let secret = std::env::var_os("SECRET").filter(|secret| !secret.is_empty());
    let key = secret.map(|secret| read_key(&secret.to_string_lossy())).transpose()?;
    let listener = TcpListener::bind(address)?;
    let what = if key.is_some() { "signed batches" } else { "batches, signed or not," };
    eprintln!("receiving {what} on {}", listener.local_addr()?);
    let receiver = Arc::new(Receiver { key, seen_ids: Mutex::default() });
    for stream in listener.incoming() {
        let (receiver, stream) = (Arc::clone(&receiver), stream?);
        std::thread::spawn(move || receiver.serve(stream).unwrap_or_else(|e| eprintln!("{e}")));
    }
    Ok(())
}

fn read_key(secret: &str) -> io::Result<hmac::Key> {
    let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap_or(secret));
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &key.map_err(io::Error::other)?))
}

/// Reads up to the empty line; `None` where the connection has ended.
fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut head = Head::new();
    for line in reader.take(BODY_BYTES_MAX).lines() {
        match line?.split_once(':') {
            Some((name, value)) => head.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None if head.is_empty() => continue, // The request line.
            None => return Ok(Some(head)),
        };
    }
    Ok(None)
}

impl Receiver {
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader)? {
            let length: u64 = header(&head, "content-length").parse().map_err(io::Error::other)?;
            let status = if length > BODY_BYTES_MAX {
                io::copy(&mut reader.by_ref().take(length), &mut io::sink())?;
                "413 Content Too Large"
            } else {
                let mut body = vec![0; length as usize];
                reader.read_exact(&mut body)?;
                self.take(&head, &body)
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            reader.get_mut().write_all(answer.as_bytes())?;
        }
        Ok(())
    }

    /// The status of the answer. On 401 and 415 the edge retries the batch and reports the upstream
    /// as misconfigured, on 413 it splits the batch, and on 400 it searches for the faulty event.
    fn take(&self, head: &Head, body: &[u8]) -> &'static str {
        if self.key.as_ref().is_some_and(|key| !is_signed(head, body, key)) {
            return "401 Unauthorized";
        }
        let Some(plain) = decompress(head, body) else { return "400 Bad Request" };
        let events: Result<Vec<Value>, _> = match header(head, "content-type") {
            _ if plain.len() as u64 > BODY_BYTES_MAX => return "413 Content Too Large",
            "application/json" => serde_json::from_slice(&plain),
            "application/x-ndjson" => {
                serde_json::Deserializer::from_slice(&plain).into_iter().collect()
            }
            _ => return "415 Unsupported Media Type",
        };
        let has_ids = |events: &Vec<Value>| events.iter().all(|event| event["id"].is_string());
        let Some(events) = events.ok().filter(has_ids) else { return "400 Bad Request" };
        self.store(&events).map_or("503 Service Unavailable", |()| "200 OK")
    }

    /// Prints the events that are new.
    fn store(&self, events: &[Value]) -> io::Result<()> {
        let mut seen_ids = self.seen_ids.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if !seen_ids.contains(&event["id"]) {
                writeln!(io::stdout(), "{event}")?;
                seen_ids.insert(event["id"].clone());
            }
        }
        Ok(())
    }
}

fn header<'a>(head: &'a Head, name: &str) -> &'a str {
    head.get(name).map_or("", String::as_str)
}

/// Whether one of the signatures is valid: there are several while a key is being replaced.
fn is_signed(head: &Head, body: &[u8], key: &hmac::Key) -> bool {
    let (id, time) = (header(head, "webhook-id"), header(head, "webhook-timestamp"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let fresh = time.parse().is_ok_and(|time: u64| now.abs_diff(time) <= AGE_SECONDS_MAX);
    let signed = [format!("{id}.{time}.").as_bytes(), body].concat();
    let fits = |signature: &str| {
        let tag = signature.strip_prefix("v1,").and_then(|tag| STANDARD.decode(tag).ok());
        tag.is_some_and(|tag| hmac::verify(key, &signed, &tag).is_ok())
    };
    fresh && header(head, "webhook-signature").split(' ').any(fits)
}

fn decompress(head: &Head, body: &[u8]) -> Option<Vec<u8>> {
    let reader: Box<dyn Read> = match header(head, "content-encoding") {
        "gzip" => Box::new(flate2::read::GzDecoder::new(body)),
        "zstd" => Box::new(zstd::stream::read::Decoder::new(body).ok()?),
        _ => Box::new(body),
    };
    let mut plain = Vec::new();
    // Limited, because a small body may decompress to a very large one.
    reader.take(BODY_BYTES_MAX + 1).read_to_end(&mut plain).ok().map(|_| plain)
}
