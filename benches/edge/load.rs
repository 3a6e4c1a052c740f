//! A load generator that costs little: one thread, one runtime, requests written as they are.

use crate::peers::Server;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections at once.
const CONNECTIONS: usize = 64;

/// What is asked, and what must be answered.
#[derive(Clone)]
pub struct Load {
    pub request: String,
    pub status: u16,
    /// Whether each request has a connection of its own.
    pub reconnect: bool,
}

/// One round's figures.
#[derive(Clone)]
pub struct Sample {
    pub per_second: f64,
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl Load {
    /// `GET target` as a browser sends it.
    pub fn new(target: &str, status: u16) -> Load {
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: track.example.com\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
             Accept: image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5\r\n\
             Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
             Referer: https://shop.example.com/thank-you\r\nConnection: keep-alive\r\n\r\n"
        );
        Load { request, status, reconnect: false }
    }

    /// Loads `server` for `time`.
    pub fn run(&self, server: &Server, time: Duration) -> Sample {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut request = self.request.clone();
        if self.reconnect {
            request = request.replace("keep-alive", "close");
        }
        let cpu_before = server.cpu();
        let began = Instant::now();
        let mut latencies = runtime.block_on(async {
            let tasks = (0..CONNECTIONS).map(|_| {
                let request = request.clone();
                let (address, status, reconnect) = (server.address, self.status, self.reconnect);
                tokio::spawn(async move {
                    ask(address, &request, status, reconnect, began + time).await
                })
            });
            let mut all = Vec::new();
            for task in tasks.collect::<Vec<_>>() {
                all.extend(task.await.unwrap());
            }
            all
        });
        let elapsed = began.elapsed().as_secs_f64();
        let cpu = server.cpu() - cpu_before;
        latencies.sort_unstable();
        let at = |share: f64| f64::from(latencies[(latencies.len() as f64 * share) as usize]);
        Sample {
            per_second: latencies.len() as f64 / elapsed,
            cpu_us: cpu * 1e6 / latencies.len() as f64,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}

/// Asks again and again until `end`; gives the latencies in microseconds.
async fn ask(
    address: std::net::SocketAddr,
    request: &str,
    status: u16,
    reconnect: bool,
    end: Instant,
) -> Vec<u32> {
    let mut latencies = Vec::with_capacity(100_000);
    let mut buffer = vec![0; 256 << 10];
    let mut stream = None;
    while Instant::now() < end {
        let asked = Instant::now();
        let mut connection = match stream.take() {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(address).await.unwrap();
                connection.set_nodelay(true).unwrap();
                connection
            }
        };
        connection.write_all(request.as_bytes()).await.unwrap();
        read_response(&mut connection, &mut buffer, status).await;
        latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
        if !reconnect {
            stream = Some(connection);
        }
    }
    latencies
}

/// Reads one response to its end and checks its status.
async fn read_response(stream: &mut TcpStream, buffer: &mut [u8], status: u16) {
    let mut length = 0;
    let mut whole = None;
    loop {
        let read = stream.read(&mut buffer[length..]).await.unwrap();
        assert!(read > 0, "the server closed in the middle of a response");
        length += read;
        if whole.is_none() {
            let head = buffer[..length].windows(4).position(|w| w == b"\r\n\r\n");
            whole = head.map(|at| at + 4 + content_length(&buffer[..at]));
        }
        if whole.is_some_and(|whole| length >= whole) {
            break;
        }
    }
    let answered = std::str::from_utf8(&buffer[9..12]).unwrap();
    assert_eq!(answered, status.to_string(), "the wrong answer");
}

fn content_length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).unwrap();
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let found = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    found.map_or(0, |(_, length)| length.trim().parse().unwrap())
}

/// Opens connections that ask once and then stay.
pub fn hold(server: &Server, count: usize) -> Vec<std::net::TcpStream> {
    use std::io::{Read, Write};
    let request = "GET /v1/event/?_a=62515&_n=idle HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..count {
        let Ok(mut stream) = std::net::TcpStream::connect(server.address) else { break };
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = [0; 2048];
        assert!(stream.read(&mut response).unwrap() > 0);
        held.push(stream);
    }
    held
}

/// The middle of some figures.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
