//! Checks the documents against the code and against each other.

use pixelgate::custom::FaultKind;
use pixelgate::internals::event::{Ignored, Reason};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");
const MIGRATION: &str = include_str!("../../docs/migration.md");
const OPERATING: &str = include_str!("../../docs/operating.md");
const ALERTS: &str = include_str!("../../packaging/prometheus/alerts.yml");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md and docs/*.md.
fn documents() -> Vec<PathBuf> {
    let mut found = vec![root().join("README.md")];
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    assert!(found.len() > 5, "{found:?}");
    found
}

/// The targets of a text's links, except for links in code.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("```").step_by(2);
    let links = prose.flat_map(|part| part.split("](").skip(1));
    links.filter_map(|rest| rest.split(')').next()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose: String = text.split("```").step_by(2).collect();
    let headings = prose.lines().filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let allowed =
            heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        allowed.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut wrong = Vec::new();
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let there = match anchor {
                "" => target.exists(),
                anchor => std::fs::read_to_string(&target)
                    .is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !there {
                wrong.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The names of the sections, or of the table rows, that stand for a code: `` ### `a_b` ``.
fn codes(text: &str, mark: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix(mark));
    lines.filter_map(|rest| rest.split('`').next()).map(str::to_owned).collect()
}

#[test]
fn operating_has_every_fault() {
    const HEAD: &str = "| `what` | condition | to do |";
    let section = OPERATING.split("## Faults").nth(1).and_then(|rest| rest.split("\n## ").next());
    let rows = section.unwrap().lines().filter(|line| line.starts_with("| `") && *line != HEAD);
    let named = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    let faults = FaultKind::ALL.map(FaultKind::as_str);
    assert_eq!(named.collect::<BTreeSet<_>>(), BTreeSet::from(faults));
}

#[test]
fn troubleshooting_has_every_reason_in_the_order_of_the_checks() {
    let expect: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(codes(TROUBLESHOOTING, "### `"), expect);
    for reason in Reason::ALL {
        let start = TROUBLESHOOTING.find(&format!("### `{}`", reason.as_str())).unwrap();
        let section = TROUBLESHOOTING[start + 4..].split("\n#").next().unwrap();
        let status = format!("**{}**", reason.status());
        assert!(section.contains(&status), "{} is answered {status}", reason.as_str());
        for part in ["Commonest cause", "Change"] {
            assert!(section.contains(part), "{}: {part}", reason.as_str());
        }
    }
}

#[test]
fn troubleshooting_has_every_cause_of_a_dropped_parameter() {
    let expect: Vec<&str> = Ignored::ALL.iter().map(|why| why.as_str()).collect();
    let causes = TROUBLESHOOTING.split("\n## Parameters that are dropped").nth(1).unwrap();
    assert_eq!(codes(causes, "| `"), expect);
}

#[test]
fn migration_has_every_status() {
    for reason in Reason::ALL {
        let row = MIGRATION.lines().find(|line| line.contains(&format!("`{}`", reason.as_str())));
        let row = row.unwrap_or_else(|| panic!("docs/migration.md lacks {}", reason.as_str()));
        assert!(row.contains(&reason.status().to_string()), "{row}");
    }
}

#[test]
fn the_operators_page_has_every_alert() {
    let names: Vec<&str> =
        ALERTS.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 7, "{names:?}");
    assert_eq!(codes(OPERATING, "| `Pixelgate").len(), names.len());
    for name in names {
        assert!(OPERATING.contains(&format!("\n| `{name}` |")), "docs/operating.md lacks {name}");
    }
}
