//! The command line on a terminal and in a pipe, its completions and its manual (SPEC 8).

use crate::backend::{Act, Backend};
use crate::delivery::{RUNTIME, http_upstream};
use crate::harness::{Setup, command};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const ESCAPE: char = '\u{1b}';
/// Variables that decide about colours beside the terminal. The machine that runs the tests may set
/// any of them; CI sets `CI`, which alone makes a dumb terminal coloured.
const COLOURING: [&str; 5] = ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "CI"];
/// How a colour begins; a bar moves the cursor by other sequences.
const RED_OR_GREEN: [&str; 2] = ["\u{1b}[31m", "\u{1b}[32m"];

/// Removes from a command the variables of the test's environment that decide about colours.
fn uncoloured(command: &mut Command) -> &mut Command {
    COLOURING.iter().fold(command, |command, name| command.env_remove(name))
}

/// Runs a command at a terminal of its own. Returns its exit code and all output to the terminal.
fn at_terminal(mut command: Command, environment: &[(&str, &str)]) -> (i32, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let open = || rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    uncoloured(&mut command).env("TERM", "xterm").envs(environment.iter().copied());
    let mut child =
        command.stdout(Stdio::from(open())).stderr(Stdio::from(open())).spawn().unwrap();
    // The command holds copies of the terminal's other side; while they live, reading does not end.
    drop(command);
    let mut shown = Vec::new();
    let mut master = File::from(master);
    let mut part = [0; 4096];
    // The last one to close the other side ends it with EIO.
    while let Ok(length @ 1..) = master.read(&mut part) {
        shown.extend_from_slice(&part[..length]);
    }
    let code = child.wait().unwrap().code().unwrap();
    (code, String::from_utf8_lossy(&shown).into_owned())
}

/// Runs a command in pipes. Returns its exit code, standard output and standard error.
fn in_pipes(mut command: Command) -> (i32, String, String) {
    let output = uncoloured(&mut command).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn pixelgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixelgate"));
    command.args(arguments).env_remove("RUST_LOG").env_remove("PIXELGATE_CONFIG");
    command
}

/// The folder of a stopped edge whose spool has many segments.
fn long_spool() -> Arc<tempfile::TempDir> {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(503)));
    let setup =
        Setup::default().spool("segment_bytes = \"4KiB\"").upstreams(&http_upstream(&backend, ""));
    let edge = setup.start();
    let mut connection = edge.connect();
    let long = "x".repeat(500);
    for _ in 0..200 {
        let target = format!("/v1/event/?_a=62515&_n=a&note={long}");
        assert_eq!(connection.get(&target, "").status, 200);
    }
    edge.stop()
}

#[test]
fn a_long_command_shows_a_bar_to_a_terminal_and_lines_to_a_pipe() {
    let dir = long_spool();
    let verify = || command(&dir.path().join("edge.toml"), &["spool", "verify"]);

    let (code, shown) = at_terminal(verify(), &[]);
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("verifying the spool [="), "a bar: {shown:?}");
    assert!(shown.contains(RED_OR_GREEN[1]) && shown.contains("200 sound records"), "{shown:?}");
    assert!(!shown.contains("10 % of"), "no lines beside the bar: {shown:?}");

    let (code, out, err) = in_pipes(verify());
    assert_eq!(code, 0);
    assert!(out.starts_with("200 sound records, ") && out.lines().count() == 1, "{out:?}");
    assert!(err.starts_with("verifying the spool: 10 % of "), "{err:?}");
    assert_eq!(err.lines().count(), 9, "a line for each tenth but the last: {err:?}");
    assert!(!out.contains(ESCAPE) && !err.contains(ESCAPE), "{out:?} {err:?}");

    let (_, shown) = at_terminal(verify(), &[("NO_COLOR", "1")]);
    assert!(shown.contains("verifying the spool [="), "{shown:?}");
    assert!(RED_OR_GREEN.iter().all(|colour| !shown.contains(colour)), "{shown:?}");
    let (_, shown) = at_terminal(verify(), &[("TERM", "dumb")]);
    assert!(shown.contains("10 % of") && !shown.contains(ESCAPE), "{shown:?}");
}

/// Runs a command with a full device as its standard output, and checks that its message says so.
fn fails_to_write(config: &Path, arguments: &[&str]) {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = command(config, arguments).stdout(full).output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let last = err.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {err}");
    assert!(last.starts_with("pixelgate: "), "{arguments:?}: {err}");
    assert!(last.contains("standard output: No space left"), "{arguments:?}: {err}");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure_of_standard_output() {
    let dir = long_spool();
    let config = dir.path().join("edge.toml");
    for arguments in [
        &["check"][..],
        &["explain", "_a=62515&_n=a"],
        &["spool", "stat"],
        &["spool", "verify"],
        &["spool", "dump"],
        &["completions", "bash"],
        &["man"],
    ] {
        fails_to_write(&config, arguments);
    }
}

#[test]
fn a_replay_shows_how_far_it_is() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(400)));
    let upstream = http_upstream(&backend, "") + "events_max = 4\n";
    let edge = Setup::default().upstreams(&upstream).start();
    for _ in 0..20 {
        assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    }
    edge.wait_delivered("collector");
    fails_to_write(&edge.dir().join("edge.toml"), &["dead", "list"]);
    let replay = || command(&edge.dir().join("edge.toml"), &["dead", "replay"]);
    let (code, out, err) = in_pipes(replay());
    assert_eq!(code, 0);
    assert_eq!(out, "collector: 0 delivered, 20 refused again, 0 not delivered\n");
    let lines: Vec<&str> = err.lines().collect();
    let expect = [2, 4, 6, 8].map(|n| format!("replaying for collector: {n}0 % of 20 events"));
    assert_eq!(lines, expect);
    let (code, shown) = at_terminal(replay(), &[]);
    assert!(code == 0 && shown.contains("replaying for collector ["), "{shown:?}");
    assert!(shown.contains("20 refused again"), "{shown:?}");
}

#[test]
fn a_closed_pipe_ends_a_command_without_a_message() {
    let backend = RUNTIME.block_on(Backend::start(|_| Act::Refuse(400)));
    let edge = Setup::default().upstreams(&http_upstream(&backend, "")).start();
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    edge.wait_delivered("collector");
    let config = edge.dir().join("edge.toml");
    for arguments in [
        &["explain", "_a=62515&_n=a"][..],
        &["dead", "list"],
        &["spool", "stat"],
        &["spool", "dump"],
        &["spool", "verify"],
        &["man"],
        &["completions", "zsh"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = match arguments[0] {
            "man" | "completions" => pixelgate(arguments),
            _ => command(&config, arguments),
        };
        let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn check_shows_that_it_is_at_work_and_colours_its_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let (code, shown) = at_terminal(command(&config, &["check"]), &[]);
    assert!(code == 0 && shown.contains("reading the portal list"), "{shown:?}");
    assert!(shown.contains("\u{1b}[32mconfiguration is valid"), "{shown:?}");
    let (_, out, err) = in_pipes(command(&config, &["check"]));
    assert!(out.ends_with("configuration is valid\n") && err.is_empty(), "{out:?} {err:?}");
    assert!(!out.contains(ESCAPE));

    std::fs::write(dir.path().join("portals.toml"), "portals = [0]\n").unwrap();
    let (code, shown) = at_terminal(command(&config, &["check"]), &[]);
    assert!(code == 2 && shown.contains("31mpixelgate:"), "{shown:?}");
    let (_, _, err) = in_pipes(command(&config, &["check"]));
    assert!(err.starts_with("pixelgate: ") && !err.contains(ESCAPE), "{err:?}");
}

#[test]
fn help_teaches_and_is_coloured_on_a_terminal_alone() {
    let commands = ["run", "check", "explain", "spool", "dead", "send", "probe"];
    let (code, all, _) = in_pipes(pixelgate(&["--help"]));
    assert_eq!(code, 0);
    for part in ["Examples:", "Exit codes:", "Environment:", "PIXELGATE__SECTION__KEY", "NO_COLOR"]
    {
        assert!(all.contains(part), "{part:?} is not in {all}");
    }
    for name in commands {
        assert!(all.contains(&format!("\n  {name} ")), "{name}");
        let (code, help, _) = in_pipes(pixelgate(&[name, "--help"]));
        assert!(code == 0 && help.contains("Examples:\n  pixelgate"), "{name}: {help}");
        assert!(help.contains("Exit codes:\n  0  "), "{name}: {help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{name}: {help}");
        assert!(!help.contains(ESCAPE), "{name}: {help}");
    }
    let (_, shown) = at_terminal(pixelgate(&["--help"]), &[]);
    assert!(shown.contains(ESCAPE), "{shown:?}");
    let (_, shown) = at_terminal(pixelgate(&["--help"]), &[("NO_COLOR", "1")]);
    assert!(!shown.contains(ESCAPE), "{shown:?}");
}

#[test]
fn the_configuration_can_be_named_by_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().write(dir.path());
    let mut check = pixelgate(&["check"]);
    check.env("PIXELGATE_CONFIG", &config);
    let (code, out, _) = in_pipes(check);
    assert!(code == 0 && out.contains("portals: 2"), "{out}");
    let mut both = pixelgate(&["check", "--config", "nowhere.toml"]);
    both.env("PIXELGATE_CONFIG", &config);
    let (code, _, err) = in_pipes(both);
    assert!(code == 2 && err.contains("nowhere.toml"), "{err}");
}

#[test]
fn completions_complete() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, _) = in_pipes(pixelgate(&["completions", shell]));
        assert!(code == 0 && script.contains("explain"), "{shell}");
    }
    // The script as bash runs it when a user has typed this and presses the tabulator.
    let complete = |words: &[&str]| {
        let ask = "source <(\"$1\" completions bash); shift; COMP_WORDS=(\"$@\"); \
                   COMP_CWORD=$(($# - 1)); _pixelgate pixelgate \"${COMP_WORDS[-1]}\" \
                   \"${COMP_WORDS[-2]}\"; echo \"${COMPREPLY[@]}\"";
        let mut bash = Command::new("bash");
        bash.args(["-c", ask, "bash", env!("CARGO_BIN_EXE_pixelgate")]).args(words);
        in_pipes(bash).1.trim_end().to_owned()
    };
    assert_eq!(complete(&["pixelgate", "expl"]), "explain");
    assert_eq!(complete(&["pixelgate", "spool", "ver"]), "verify");
    assert_eq!(complete(&["pixelgate", "probe", "live"]), "livez");
}

#[test]
fn the_manual_says_what_help_says_and_is_sound() {
    let (code, page, _) = in_pipes(pixelgate(&["man"]));
    assert_eq!(code, 0);
    for part in [".TH pixelgate 1", ".SH EXAMPLES", ".SH \"EXIT CODES\"", ".SH ENVIRONMENT"] {
        assert!(page.contains(part), "{part:?} is not in {page}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = in_pipes(pixelgate(&["man", "--dir", dir.path().to_str().unwrap()]));
    assert_eq!(code, 0, "{err}");
    let mut pages: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    assert!(pages.iter().any(|page| page.ends_with("pixelgate-spool-verify.1")), "{pages:?}");
    if !is_there("groff") {
        return;
    }
    for page in pages {
        let mut groff = Command::new("groff");
        groff.args(["-man", "-Tutf8", "-ww", "-z"]).arg(&page);
        let (code, _, err) = in_pipes(groff);
        assert!(code == 0 && err.is_empty(), "{}: {err}", page.display());
    }
}

/// Whether a command is on this machine. Prints a line if it is not.
pub fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    if !there {
        eprintln!("SKIPPED in part: {tool} is not on this machine");
    }
    there
}

#[test]
fn a_probe_asks_the_running_edge() {
    let edge = Setup::default().sections("token = \"sixteen bytes ok\"").start();
    let config = edge.dir().join("probe.toml");
    let text = std::fs::read_to_string(edge.dir().join("edge.toml")).unwrap();
    let admin = format!("[admin]\nlisten = \"{}\"", edge.admin);
    let text = text.replace("[admin]\nlisten = \"127.0.0.1:0\"", &admin);
    assert!(text.contains(&admin));
    std::fs::write(&config, &text).unwrap();
    let probe = |config: &Path, page| in_pipes(command(config, &["probe", page]));
    assert_eq!(probe(&config, "readyz"), (0, "ready\n".to_owned(), String::new()));
    assert_eq!(probe(&config, "livez"), (0, "ok\n".to_owned(), String::new()));

    // An edge whose portal list has a mistake is ready, and names the mistake.
    std::fs::write(edge.dir().join("portals.toml"), "portals = [0]\n").unwrap();
    crate::harness::wait_for("the mistake to be named", || {
        let (code, out, _) = probe(&config, "readyz");
        assert_eq!(code, 0, "{out}");
        out.contains("portals.toml:1:")
    });
    std::fs::write(edge.dir().join("portals.toml"), crate::harness::PORTALS).unwrap();
    let wrong = edge.dir().join("wrong.toml");
    std::fs::write(&wrong, text.replace("sixteen bytes ok", "sixteen bytes no")).unwrap();
    let (code, _, err) = probe(&wrong, "livez");
    assert!(code == 1 && err.contains("/livez answered 401"), "{err}");
    let (code, _, err) = probe(&edge.dir().join("edge.toml"), "livez");
    assert!(code == 2 && err.contains("admin.listen"), "{err}");
    let dir = edge.stop();
    assert_eq!(probe(&dir.path().join("probe.toml"), "livez").0, 1, "the edge has stopped");
}
