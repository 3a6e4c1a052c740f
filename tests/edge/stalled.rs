//! Clients that stop reading a download, and go on later: meanwhile no more is read from the
//! origin, and in the end all of it arrives.

use crate::delivery::RUNTIME;
use crate::h2::{connect, over, start_with};
use crate::harness::{PATIENCE, Setup, wait_for};
use crate::wire::read_head;
use http::Request;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Far more than all buffers on the way hold.
const BYTES: usize = 50_000_000;

/// An origin that answers each request with [`BYTES`] bytes, and counts those that were taken.
struct Origin {
    address: SocketAddr,
    sent: Arc<AtomicUsize>,
}

fn file() -> Vec<u8> {
    (0..BYTES).map(|n| (n % 251) as u8).collect()
}

impl Origin {
    fn start() -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::<AtomicUsize>::default();
        let (file, counted) = (Arc::new(file()), sent.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (file, counted) = (file.clone(), counted.clone());
                std::thread::spawn(move || answer(stream, &file, &counted));
            }
        });
        Origin { address, sent }
    }

    /// Waits until the edge takes no more of an answer.
    fn wait_stalled(&self) {
        let (mut last, mut same) = (0, 0);
        wait_for("the edge to take no more", || {
            let sent = self.sent.load(Relaxed);
            same = if sent > 0 && sent == last { same + 1 } else { 0 };
            last = sent;
            same > 50
        });
        assert!(last < BYTES, "all was taken");
    }
}

fn answer(mut stream: TcpStream, file: &[u8], sent: &AtomicUsize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while read_head(&mut reader).is_some() {
        sent.store(0, Relaxed);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        for piece in file.chunks(1 << 16) {
            if stream.write_all(piece).is_err() {
                return;
            }
            sent.fetch_add(piece.len(), Relaxed);
        }
    }
}

#[test]
fn a_client_of_http1_that_stalls_gets_all_when_it_goes_on() {
    let origin = Origin::start();
    let edge = Setup::default().origin(origin.address).start();
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let mut stream = TcpStream::connect(edge.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET /large {version}\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(read_head(&mut reader).unwrap().status(), 200);
        let mut body = Vec::new();
        for part in [1, 5_000_000, 10_000_000] {
            origin.wait_stalled();
            reader.by_ref().take(part).read_to_end(&mut body).unwrap();
        }
        reader.read_to_end(&mut body).unwrap();
        assert!(body == file(), "{version}");
    }
}

#[test]
fn a_client_of_http2_that_stalls_gets_all_when_it_goes_on() {
    let origin = Origin::start();
    let (edge, secure) = start_with(Setup::default().origin(origin.address));
    for is_secure in [false, true] {
        RUNTIME.block_on(async {
            let mut client = match is_secure {
                true => connect(secure).await,
                false => over(tokio::net::TcpStream::connect(edge.address).await.unwrap()).await,
            };
            let request = Request::get("https://edge.test/large");
            let response = client.ask(request, None).await.await.unwrap();
            let (mut stream, mut body) = (response.into_body(), Vec::new());
            let mut unreleased = 0;
            for stalls in [3, 2, 1, 0] {
                // The client opens its flow-control windows only after it has stalled.
                stream.flow_control().release_capacity(std::mem::take(&mut unreleased)).unwrap();
                let part = if stalls == 0 { BYTES } else { body.len() + 1_000_000 };
                while body.len() < part {
                    let data = stream.data().await.unwrap().unwrap();
                    body.extend_from_slice(&data);
                    match stalls {
                        0 => stream.flow_control().release_capacity(data.len()).unwrap(),
                        _ => unreleased += data.len(),
                    }
                }
                if stalls > 0 {
                    origin.wait_stalled();
                }
            }
            assert!(body == file(), "secure: {is_secure}");
        });
    }
}
