//! A model of an HTTP/2 client for the tests of the rewriter, and a decoder of what it sends, both
//! written for nothing but to be right.

#[cfg(test)]
use super::frame::{Frame, PREFACE};
use super::huffman::{self, encoder};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};

/// RFC 7541, appendix A: names and values.
const STATIC: &str = ":authority\n:method GET\n:method POST\n:path /\n:path /index.html\n\
    :scheme http\n:scheme https\n:status 200\n:status 204\n:status 206\n:status 304\n\
    :status 400\n:status 404\n:status 500\naccept-charset\naccept-encoding gzip, deflate\n\
    accept-language\naccept-ranges\naccept\naccess-control-allow-origin\nage\nallow\n\
    authorization\ncache-control\ncontent-disposition\ncontent-encoding\ncontent-language\n\
    content-length\ncontent-location\ncontent-range\ncontent-type\ncookie\ndate\netag\nexpect\n\
    expires\nfrom\nhost\nif-match\nif-modified-since\nif-none-match\nif-range\n\
    if-unmodified-since\nlast-modified\nlink\nlocation\nmax-forwards\nproxy-authenticate\n\
    proxy-authorization\nrange\nreferer\nrefresh\nretry-after\nserver\nset-cookie\n\
    strict-transport-security\ntransfer-encoding\nuser-agent\nvary\nvia\nwww-authenticate";

pub type Field = (Vec<u8>, Vec<u8>);

pub fn field(name: &str, value: &str) -> Field {
    // Latin-1: a character is a byte.
    (name.into(), value.chars().map(|c| c as u8).collect())
}

/// Both tables, as the RFC describes them.
struct Tables {
    dynamic: VecDeque<Field>,
    bytes_max: usize,
}

impl Tables {
    fn new() -> Tables {
        Tables { dynamic: VecDeque::new(), bytes_max: 4096 }
    }

    fn entries(&self) -> impl Iterator<Item = Field> {
        let split = |line: &str| {
            let (name, value) = line.split_once(' ').unwrap_or((line, ""));
            field(name, value)
        };
        STATIC.lines().map(split).chain(self.dynamic.iter().cloned())
    }

    fn entry(&self, index: usize) -> Option<Field> {
        self.entries().nth(index.checked_sub(1)?)
    }

    fn resize(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        let size = |(name, value): &Field| name.len() + value.len() + 32;
        while self.dynamic.iter().map(size).sum::<usize>() > bytes_max {
            self.dynamic.pop_back();
        }
    }

    fn insert(&mut self, field: Field) {
        self.dynamic.push_front(field);
        self.resize(self.bytes_max);
    }
}

/// A client that chooses among all ways to send a field.
pub struct Client {
    pub random: StdRng,
    tables: Tables,
    pub bytes: Vec<u8>,
}

impl Client {
    pub fn new(seed: u64) -> Client {
        let bytes = [PREFACE, &Frame { kind: 4, flags: 0, stream: 0, length: 0 }.head()].concat();
        Client { random: StdRng::seed_from_u64(seed), tables: Tables::new(), bytes }
    }

    pub fn integer(block: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
        let most = (1 << prefix) - 1;
        if value < most {
            return block.push(first | value as u8);
        }
        block.push(first | most as u8);
        let mut left = value - most;
        while left >= 128 {
            block.push(left as u8 | 128);
            left /= 128;
        }
        block.push(left as u8);
    }

    fn string(&mut self, block: &mut Vec<u8>, text: &[u8]) {
        let (first, text) = match self.random.gen_bool(0.7) {
            true => (0x80, encoder::encode(text)),
            false => (0, text.to_vec()),
        };
        Client::integer(block, first, 7, text.len());
        block.extend(text);
    }

    fn block(&mut self, fields: &[Field]) -> Vec<u8> {
        let mut block = Vec::new();
        if self.random.gen_bool(0.1) {
            let sizes = [0, 100, 1000, 4096];
            for size in sizes.choose_multiple(&mut self.random, 2).copied().collect::<Vec<_>>() {
                Client::integer(&mut block, 0x20, 5, size);
                self.tables.resize(size);
            }
        }
        for (name, value) in fields {
            let entries: Vec<Field> = self.tables.entries().collect();
            let same = entries.iter().position(|entry| (&entry.0, &entry.1) == (name, value));
            if let Some(at) = same.filter(|_| self.random.gen_bool(0.8)) {
                Client::integer(&mut block, 0x80, 7, at + 1);
                continue;
            }
            let named: Vec<usize> =
                (0..entries.len()).filter(|at| entries[*at].0 == *name).collect();
            let named = named.choose(&mut self.random).filter(|_| self.random.gen_bool(0.8));
            let index = named.map_or(0, |at| at + 1);
            let (first, prefix) =
                *[(0x40, 6), (0x40, 6), (0, 4), (0x10, 4)].choose(&mut self.random).unwrap();
            Client::integer(&mut block, first, prefix, index);
            if index == 0 {
                self.string(&mut block, name);
            }
            self.string(&mut block, value);
            if first == 0x40 {
                self.tables.insert((name.clone(), value.clone()));
            }
        }
        block
    }

    /// Sends fields in one or several frames, with or without padding and priority.
    pub fn send(
        &mut self,
        stream: u32,
        ends_stream: bool,
        fields: &[Field],
        depends_on: Option<u32>,
    ) {
        let mut block = self.block(fields);
        let mut flags = if ends_stream { Frame::END_STREAM } else { 0 };
        let mut payload = Vec::new();
        let padding = if self.random.gen_bool(0.2) { self.random.gen_range(0..20) } else { 0 };
        if padding > 0 {
            flags |= Frame::PADDED;
            payload.push(padding);
        }
        if let Some(other) = depends_on {
            flags |= Frame::PRIORITY;
            payload.extend(other.to_be_bytes());
            payload.push(7);
        }
        let pieces = if self.random.gen_bool(0.2) { self.random.gen_range(2..4) } else { 1 };
        let mut kind = Frame::HEADERS;
        for left in (0..pieces).rev() {
            let cut = if left == 0 { block.len() } else { self.random.gen_range(0..=block.len()) };
            payload.extend(block.drain(..cut));
            if kind == Frame::HEADERS {
                payload.extend(vec![0; padding.into()]);
            }
            flags |= if left == 0 { Frame::END_HEADERS } else { 0 };
            self.bytes.extend(Frame { kind, flags, stream, length: payload.len() }.head());
            self.bytes.append(&mut payload);
            (kind, flags) = (Frame::CONTINUATION, 0);
        }
        if self.random.gen_bool(0.1) {
            self.bytes.extend(Frame { kind: 6, flags: 0, stream: 0, length: 8 }.head());
            self.bytes.extend([0; 8]);
        }
    }
}

/// The fields of the first block of each stream, up to the first error.
pub fn decoded(bytes: &[u8]) -> BTreeMap<u32, Vec<Field>> {
    let mut blocks: Vec<(u32, Vec<u8>, bool)> = Vec::new();
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or_default();
    while let Some((head, after)) = rest.split_first_chunk() {
        let frame = Frame::of(*head);
        let Some((mut payload, after)) = after.split_at_checked(frame.length) else { break };
        rest = after;
        let open = blocks.last_mut().filter(|(_, _, ended)| !ended);
        match (frame.kind, open) {
            (Frame::HEADERS, None) => {
                let mut padding = 0;
                if frame.flags & Frame::PADDED != 0 {
                    let Some((length, fields)) = payload.split_first() else { break };
                    (padding, payload) = (usize::from(*length), fields);
                }
                if frame.flags & Frame::PRIORITY != 0 {
                    let Some(fields) = payload.get(5..) else { break };
                    payload = fields;
                }
                let Some(end) = payload.len().checked_sub(padding) else { break };
                blocks.push((frame.stream, payload[..end].to_vec(), false));
            }
            (Frame::CONTINUATION, Some((stream, block, _))) if *stream == frame.stream => {
                block.extend(payload);
            }
            (Frame::HEADERS | Frame::CONTINUATION, _) | (_, Some(_)) => break,
            _ => continue,
        }
        if let Some((_, _, ended)) = blocks.last_mut() {
            *ended = frame.flags & Frame::END_HEADERS != 0;
        }
    }
    let mut tables = Tables::new();
    let mut lists = BTreeMap::new();
    for (stream, block, _) in blocks.into_iter().filter(|(_, _, ended)| *ended) {
        let Some(list) = list(&mut tables, &block) else { break };
        lists.entry(stream).or_insert(list);
    }
    lists
}

fn list(tables: &mut Tables, block: &[u8]) -> Option<Vec<Field>> {
    let mut rest = block;
    let mut list = Vec::new();
    while let Some(&first) = rest.first() {
        match first {
            0x80.. => list.push(tables.entry(integer(&mut rest, 7)?)?),
            0x20..0x40 => {
                let size = integer(&mut rest, 5)?;
                (list.is_empty() && size <= 4096).then(|| tables.resize(size))?;
            }
            _ => {
                let name = match integer(&mut rest, if first & 0x40 != 0 { 6 } else { 4 })? {
                    0 => string(&mut rest)?,
                    index => tables.entry(index)?.0,
                };
                let field = (name, string(&mut rest)?);
                if first & 0x40 != 0 {
                    tables.insert(field.clone());
                }
                list.push(field);
            }
        }
    }
    Some(list)
}

fn integer(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let mut next = || {
        let (first, others) = rest.split_first()?;
        *rest = others;
        Some(usize::from(*first))
    };
    let most = (1 << prefix) - 1;
    let mut value = next()? & most;
    let mut unit = 1;
    if value == most {
        loop {
            let byte = next()?;
            value += (byte & 127) * unit;
            unit *= 128;
            if byte & 128 == 0 {
                break;
            }
            if unit > 1 << 40 {
                return None;
            }
        }
    }
    Some(value)
}

fn string(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let is_huffman = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, others) = rest.split_at_checked(length)?;
    *rest = others;
    if is_huffman { huffman::decode(text) } else { Some(text.to_vec()) }
}
