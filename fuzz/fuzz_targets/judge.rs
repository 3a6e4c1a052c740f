//! Any bytes as a query: the fast judge says what the naive one says, and an event that passes
//! survives every form in which it is written down. The same bytes as a record: refused, or good.

#![no_main]

#[path = "../../tests/unit/naive/mod.rs"]
mod naive;

use libfuzzer_sys::fuzz_target;
use naive::compare;
use pixelgate::event::{Context, Record, Rules, hints};

fuzz_target!(|bytes: &[u8]| {
    let fast = compare::fast(bytes);
    assert_eq!(fast, naive::judge(bytes));
    if fast.is_ok() {
        compare::check_forms(bytes, &Context::default());
    }
    hints(bytes, &Rules::default());
    if let Ok(record) = Record::decode(bytes) {
        let mut json = Vec::new();
        record.write_json(&mut json, false);
        serde_json::from_slice::<serde_json::Value>(&json).expect("valid JSON");
        record.event().expect("a decoded record holds an event");
    }
});
