//! What judging a query costs: time, allocations and instructions, beside the mere splitting and
//! decoding of the same query by `url::form_urlencoded`, which judges nothing and keeps nothing.
//!
//! `cargo bench --bench event` prints the table. Rounds of the two alternate, so that a load on
//! the machine slows both; the figure is the median round. Instructions are counted by
//! `valgrind --tool=callgrind`, if it is there: the benchmark runs itself under it twice, for two
//! numbers of repetitions, and the difference is theirs. The counts also show that no query of
//! twice the length takes more than about twice the work, without a clock.
//!
//! Run without `--bench`, as tests are, it only makes sure that the results are right.

#[path = "../tests/support/counting.rs"]
mod counting;

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use counting::{Counting, allocations};
use pixelgate::internals::event::{self, Rules};
use url::form_urlencoded;

const ROUNDS: usize = 41;
/// About how long a round takes.
const ROUND_NS: f64 = 2e6;
/// More instructions than this for a query of twice the length are more than linear.
const DOUBLING_MAX: f64 = 2.2;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A query, and how many properties and ignored parameters its event has.
struct Case {
    name: &'static str,
    query: String,
    properties: usize,
    ignored: usize,
}

fn cases(bytes_max: usize) -> Vec<Case> {
    let case = |name, query: &str, properties, ignored| Case {
        name,
        query: query.to_owned(),
        properties,
        ignored,
    };
    vec![
        case("short, plain", "_a=62515&_n=000000001625", 0, 0),
        case(
            "typical, plain",
            "_a=62515&_n=000000001625&email=person@company.com&_m=20.5&id=ext-77812\
             &favorite_color=orange&plan=business-annual&utm_source=newsletter\
             &birthday=1734652800000",
            4,
            0,
        ),
        case(
            "typical, encoded",
            "_a=62515&_n=Bought+Item&email=person%40company.com&_m=20.5&id=ext-77812\
             &firstname=J%C3%BCrgen+M.&page=%2Fshop%2Fcart&plan=business&t=1734652800000",
            3,
            1,
        ),
        Case { name: "worst: one long encoded value", properties: 1, ..grown(bytes_max, 1) },
        Case { name: "worst: 98 properties, unsorted", properties: 98, ..grown(bytes_max, 2) },
        Case { name: "worst: one property 98 times", properties: 1, ..grown(bytes_max, 3) },
        Case { name: "worst: 98 encoded names, ignored", ignored: 98, ..grown(bytes_max, 4) },
        Case { name: "worst: ampersands alone", ..grown(bytes_max, 5) },
        Case { name: "worst: a long number", ..grown(bytes_max, 6) },
    ]
}

/// A query of about so many bytes, in one of the shapes that could be slow.
fn grown(bytes: usize, shape: u8) -> Case {
    let start = "_a=62515&_n=x";
    let each = (bytes - start.len()) / 98;
    let query = match shape {
        1 => format!("{start}&a={}", "%c3%bc".repeat((bytes - start.len() - 3) / 6)),
        2 => (0..98).fold(start.to_owned(), |query, i| {
            let name = format!("&p{:02}", i * 37 % 98);
            query + &name + "=" + &"v".repeat(each - name.len() - 1)
        }),
        3 => (0..98).fold(start.to_owned(), |query, i| {
            query + "&p=" + &"v".repeat(each - 5) + &format!("{:02}", i * 37 % 98)
        }),
        4 => (0..98)
            .fold(start.to_owned(), |query, _| query + "&" + &"%C3".repeat((each - 3) / 3) + "=1"),
        5 => start.to_owned() + &"&".repeat(bytes - start.len()),
        _ => format!("{start}&_m=1.{}", "0".repeat(bytes - start.len() - 6)),
    };
    Case { name: "", query, properties: 0, ignored: 0 }
}

fn judge(query: &str, rules: &Rules) {
    let _ = black_box(event::parse(black_box(query.as_bytes()), rules));
}

/// Splits and decodes, and no more.
fn yardstick(query: &str) {
    form_urlencoded::parse(black_box(query.as_bytes())).for_each(|pair| drop(black_box(pair)));
}

fn check(case: &Case, rules: &Rules) {
    let judged = event::parse(case.query.as_bytes(), rules);
    let judged = judged.unwrap_or_else(|reject| panic!("{}: {reject:?}", case.name));
    assert_eq!(judged.event.portal, 62515, "{}", case.name);
    assert_eq!(judged.event.properties.len(), case.properties, "{}", case.name);
    assert_eq!(judged.ignored.len(), case.ignored, "{}", case.name);
    let canonical = event::canonical_query(&judged.event);
    if canonical.len() <= rules.limits().query_bytes_max {
        let again = event::parse(canonical.as_bytes(), rules).expect("a canonical query passes");
        assert!(again.event == judged.event, "{}", case.name);
    }
    if case.name.ends_with(", plain") {
        assert_eq!(allocations(|| judge(&case.query, rules)), 0, "{}", case.name);
    }
}

/// Nanoseconds per call, of each kind: the median of rounds that alternate.
fn time(mut kinds: [&mut dyn FnMut(); 2]) -> [f64; 2] {
    let once = |work: &mut dyn FnMut(), count: usize| {
        let start = Instant::now();
        (0..count).for_each(|_| work());
        start.elapsed().as_nanos() as f64 / count as f64
    };
    let counts = [0, 1].map(|kind| {
        let estimate = once(kinds[kind], 50).max(1.0);
        (ROUND_NS / estimate).ceil() as usize
    });
    let mut rounds = [vec![], vec![]];
    for _ in 0..ROUNDS {
        for kind in [0, 1] {
            rounds[kind].push(once(kinds[kind], counts[kind]));
        }
    }
    rounds.map(|mut rounds| {
        rounds.sort_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    })
}

/// Instructions per call, by running this program under callgrind.
fn instructions(kind: &str, query: &str) -> Option<f64> {
    let program = std::env::current_exe().ok()?;
    let run = |count: u64| -> Option<f64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(&program)
            .args(["--repeat", kind, &count.to_string(), query])
            .output()
            .ok()?;
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = report.lines().find(|line| line.contains("Collected :"))?;
        line.split_whitespace().last()?.parse().ok()
    };
    Some((run(110)? - run(10)?) / 100.0)
}

fn repeat(arguments: &[String], rules: &Rules) {
    let [kind, count, query] = arguments else { panic!("--repeat KIND COUNT QUERY") };
    for _ in 0..count.parse().expect("a count") {
        match kind.as_str() {
            "judge" => judge(query, rules),
            _ => yardstick(query),
        }
    }
}

fn main() {
    let rules = Rules::default();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--repeat") {
        return repeat(&arguments[1..], &rules);
    }
    let cases = cases(rules.limits().query_bytes_max);
    cases.iter().for_each(|case| check(case, &rules));
    if !arguments.iter().any(|argument| argument == "--bench") {
        return println!("the results are right; `cargo bench` measures");
    }
    println!(
        "| query | bytes | judged, ns | split only, ns | ratio | allocations | instructions |"
    );
    println!("|---|---|---|---|---|---|---|");
    for Case { name, query, .. } in &cases {
        let [judged, split] = time([&mut || judge(query, &rules), &mut || yardstick(query)]);
        let allocated = allocations(|| judge(query, &rules));
        let allocated_by_split = allocations(|| yardstick(query));
        let count =
            |kind| instructions(kind, query).map_or("–".into(), |count| format!("{count:.0}"));
        println!(
            "| {name} | {} | {judged:.0} | {split:.0} | {:.2} | {allocated} \
             (split {allocated_by_split}) | {} (split {}) |",
            query.len(),
            judged / split,
            count("judge"),
            count("split"),
        );
    }
    show_growth();
}

fn show_growth() {
    println!("\n| shape | instructions at 2048 | 4096 | 8192 bytes |\n|---|---|---|---|");
    for shape in 1..=6 {
        let counts =
            [2048, 4096, 8192].map(|bytes| instructions("judge", &grown(bytes, shape).query));
        let [Some(quarter), Some(half), Some(whole)] = counts else {
            return println!("valgrind is not installed: no instructions counted");
        };
        println!("| {shape} | {quarter:.0} | {half:.0} | {whole:.0} |");
        assert!(half / quarter < DOUBLING_MAX && whole / half < DOUBLING_MAX, "not linear");
    }
}
