//! Request targets that some origin may take for the event path: well-known ones, and any number
//! of generated ones.

/// Targets that have reached the handler of a real origin.
pub const KNOWN: &[&str] = &[
    "/v1/event/",
    "/v1/event",
    "/v1/event/x",
    "/v1/event/..",
    "/v1/event/../",
    "/v1/event/..%2fx",
    "/v1/event//../",
    "/v1/event/..;x/../",
    "/v1/event/..\\/../",
    "/v1/event/..%5c/../",
    "/v1/event/%252e%252e/../",
    "/v1/event/.%20./../",
    "/v1/event/.%00./../",
    "/x%3f/../v1/event/",
    "/x%23/../v1/event/",
    "/x#/../v1/event/",
    "/x%3b/../v1/event/",
    "//h/v1/event/",
    "///h/v1/event/",
    "/\\h/v1/event/",
    "/%2fh/v1/event/",
    "/%5ch/v1/event/",
    "/x/..//h/v1/event/",
    "/x//../../v1/event/",
    "/v1/x//../event/",
    "/v1/x%2fy/../event/",
    "/v1/x%5cy/../event/",
    "/v1/x\\y/../event/",
    "/v1;a/event;b/",
    "/v1/x;y%2fz/../event/",
    "/%76%31/x;y%2fz/../event/",
    "/x/a%2fb/%2e%2e/../v1/event/",
    "/x/a%2fb/../%2e%2e/v1/event/",
    "/x/a%5cb/%2e%2e/../v1/event/",
    "/v1/%2565vent/",
    "/V1/EVENT/",
    "/v1\\event\\",
    "/v1%2fevent%2f",
    "/v1%5cevent",
    "/./v1/./event/.",
    "/x/../v1/x/../event",
];

/// Targets that no reading takes for the event path. All but the last five are plain.
pub const PASSED: &[&str] = &[
    "/",
    "/x/v1/event/",
    "/v1/events/",
    "/v1/event.gif",
    "/v1-event/",
    "/static/app.3f2a.js?v=1",
    "/search?q=/v1/event/",
    "/redirect?to=%2Fv1%2Fevent%2F",
    "/a/b/../c",
    "/js/v1;x/app.js",
    "/files/a%20b//c%2fd.png",
    "/v1/even%74s/",
    "/x%2fv1/event/",
];

/// Put in before a slash, or at the end.
const PIECES: &[&str] = &[
    "/..",
    "/../",
    "/.",
    "/",
    "//",
    "/x",
    "/x/..",
    "/%2e%2e",
    "/.%2e",
    "/%252e%252e",
    "/%2e",
    "/..;x",
    "/x;y",
    ";x",
    ";y%2fz",
    "/;x",
    "/..%2f",
    "/..%2fx",
    "/x%2fy/..",
    "/x%2fy/%2e%2e",
    "/x%5cy/..",
    "/x\\y/..",
    "\\..",
    "\\",
    "%5c..",
    "%2f..",
    "%2f",
    "/.%20.",
    "/.%00.",
    "/..%09",
    "%20",
    "%00",
    "%3f",
    "%23",
    "%253f",
    "%3bx",
    "#",
];

/// Put in at the beginning.
const BEGINNINGS: &[&str] = &[
    "//h",
    "/\\h",
    "/%2fh",
    "/%5ch",
    "\\\\h",
    "/x%3f/..",
    "/x%23/..",
    "/x#/..",
    "/x/..",
    "/..",
    "/.",
    "/x",
    "/x/y%2fz/..",
    "/%00",
    "/;x",
];

/// A generator with a seed (SplitMix64), so that a run can be repeated.
pub struct Random(pub u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed >> 33) as usize % limit
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from[self.below(from.len())]
    }

    /// The event path, changed at one to six places.
    pub fn target(&mut self) -> String {
        let mut target = self.pick(&["/v1/event/", "/v1/event"]).to_owned();
        for _ in 0..=self.below(6) {
            let at = self.below(target.len());
            let byte = target.as_bytes()[at];
            match self.below(10) {
                0..=4 => {
                    let slashes: Vec<usize> = target.match_indices('/').map(|(at, _)| at).collect();
                    let places = [slashes, vec![target.len()]].concat();
                    target.insert_str(places[self.below(places.len())], self.pick(PIECES));
                }
                5 => target.insert_str(0, self.pick(BEGINNINGS)),
                6 => target.push_str(self.pick(PIECES)),
                7 if byte == b'/' => {
                    target.replace_range(at..=at, self.pick(&["\\", "%2f", "%5c", "%252f", "//"]));
                }
                8 => target.replace_range(at..=at, &(byte as char).to_uppercase().to_string()),
                _ => target.replace_range(at..=at, &format!("%{byte:02x}")),
            }
        }
        target
    }
}
