//! Runs the commands that the documents show.

use crate::harness::Setup;
use std::path::Path;
use std::process::Command;

const TROUBLESHOOTING: &str = include_str!("../../docs/troubleshooting.md");

/// The portals in the examples of the page.
const PORTALS: &str = "portals = [62515]\n[[portal]]\nid = 12345\nevents = [\"signup*\"]\n";

/// Runs a line in bash, where `pixelgate` is the binary with this configuration.
fn in_shell(line: &str, config: &Path) -> String {
    let folder = Path::new(env!("CARGO_BIN_EXE_pixelgate")).parent().unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let mut bash = Command::new("bash");
    bash.args(["-c", line]).env("PATH", path).env("PIXELGATE_CONFIG", config);
    String::from_utf8(bash.output().unwrap().stdout).unwrap()
}

#[test]
fn troubleshooting_shows_each_reason_by_a_command_that_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().portals(PORTALS).write(dir.path());
    let mut shown = 0;
    for section in TROUBLESHOOTING.split("\n### `").skip(1) {
        let reason = section.split('`').next().unwrap();
        let see = section.split("- See it: ").nth(1).unwrap_or_else(|| panic!("{reason}"));
        let Some(line) = see.strip_prefix('`').and_then(|see| see.split('`').next()) else {
            continue;
        };
        let Some(line) = line.starts_with("pixelgate explain ").then_some(line) else { continue };
        let said = in_shell(line, &config);
        assert!(said.starts_with(&format!("rejected: {reason} (")), "{line}: {said}");
        shown += 1;
    }
    assert!(shown >= 14, "{shown} of the reasons can be seen with explain");
}
