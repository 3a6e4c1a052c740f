//! A spool on the file system in memory, and short words for what a test does with it.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use pixelgate::internals::spool::{
    Ack, Commit, Config, Env, Metered, Metering, Overloaded, Reader, RecordId, Routing, Spool,
    UpstreamStatus,
};

use super::SimFs;

pub fn config() -> Config {
    Config {
        dir: "/spool".into(),
        linger_ms: 0,
        segment_bytes: ByteSize::kib(4),
        bytes_max: ByteSize::mib(1),
        ..Config::default()
    }
}

pub fn open(fs: &SimFs, config: &Config, upstreams: &[&str]) -> Spool {
    let names: Vec<String> = upstreams.iter().map(|name| (*name).to_owned()).collect();
    let env =
        Env { fs: Arc::new(fs.clone()), routing: ROUTING, metering: METERING, ..Env::system() };
    Spool::open(config, &names, env).expect("opens")
}

/// A text such as `>near>far>x` is meant for the upstreams that it names.
pub const ROUTING: Routing = Routing {
    is_routed: |record| record.starts_with(b">"),
    names: |record, upstream| {
        let text = String::from_utf8_lossy(record);
        text.split('>').skip(1).any(|name| name == upstream)
    },
};

/// A text is counted under the portal that is its first byte.
pub const METERING: Metering = Metering {
    read: |record| record.first().map(|byte| Metered { portal: (*byte).into(), day: 20_000 }),
};

pub fn wait(commit: Commit) -> Result<(), Overloaded> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(commit)
}

pub fn append(spool: &Spool, text: &str) -> Result<(), Overloaded> {
    wait(spool.append(|out| out.extend_from_slice(text.as_bytes()))?)
}

pub fn append_all(spool: &Spool, texts: &[&str]) {
    texts.iter().for_each(|text| append(spool, text).expect("there is room"));
}

/// Reads what is readable now.
pub fn read(reader: &mut Reader) -> (Vec<String>, Vec<RecordId>) {
    let entries = reader.try_read(1_000, 1 << 20);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("as written");
    entries.iter().map(|entry| (text(&entry.payload), entry.record_id)).unzip()
}

pub fn drain(spool: &Spool, upstream: &str) -> Vec<String> {
    let mut reader = spool.reader(upstream).expect("configured");
    let (texts, record_ids) = read(&mut reader);
    reader.acknowledger().acknowledge(&record_ids, Ack::Delivered);
    texts
}

pub fn of(spool: &Spool, name: &str) -> UpstreamStatus {
    let status = spool.status();
    status.upstreams.into_iter().find(|upstream| upstream.name == name).expect("configured")
}

pub fn close(spool: &Spool) {
    spool.close(Duration::from_secs(60)).expect("closes");
}
