//! The notifications that the edge sends to systemd, and whether systemd accepts the unit.

use crate::harness::{Edge, PATIENCE, Setup};
use crate::terminal::is_there;
use rustix::process::Signal;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::Arc;

const UNIT: &str = include_str!("../../packaging/systemd/pixelgate.service");

/// The most that `systemd-analyze security` may find exposed, in tenths: 17 is for the network and
/// what a server cannot do without; a unit without any hardening has 96.
const EXPOSURE_MAX: &str = "--threshold=17";

struct Manager(UnixDatagram);

impl Manager {
    fn hears(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.0.recv(&mut message).expect("a message in time");
        let text = std::str::from_utf8(&message[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn systemd_hears_of_start_reload_and_stop() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().write(dir.path());
    let path = dir.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    manager.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut edge = Edge::start_with(dir, &[("NOTIFY_SOCKET", path.to_str().unwrap())]);

    let ready = ["READY=1".to_owned(), format!("MAINPID={}", edge.pid())];
    assert_eq!(manager.hears(), ready);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200, "ready is ready");

    edge.signal(Signal::HUP);
    let reloading = manager.hears();
    assert_eq!((reloading.len(), reloading[0].as_str()), (2, "RELOADING=1"));
    let at = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap();
    assert!(at.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.hears(), ready);

    edge.signal(Signal::TERM);
    assert_eq!(manager.hears(), ["STOPPING=1"]);
    assert_eq!(edge.wait().code(), Some(0));
}

#[test]
fn an_edge_that_does_not_start_is_never_ready() {
    let dir = tempfile::tempdir().unwrap();
    let config = Setup::default().portals("portals = [0]\n").write(dir.path());
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut command = crate::harness::command(&config, &["run"]);
    let output = command.env("NOTIFY_SOCKET", &path).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    manager.set_nonblocking(true).unwrap();
    assert!(manager.recv(&mut [0; 64]).is_err(), "nothing was said");
}

#[test]
fn a_service_manager_that_is_gone_keeps_no_edge_from_starting() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    Setup::default().write(dir.path());
    let nowhere = dir.path().join("nowhere");
    let edge = Edge::start_with(dir, &[("NOTIFY_SOCKET", nowhere.to_str().unwrap())]);
    assert_eq!(edge.event("_a=62515&_n=a").status, 200);
    crate::harness::wait_for("a warning", || edge.log().contains("systemd cannot be notified"));
    edge.stop();
}

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    if !is_there("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("pixelgate.service");
    // The unit as it is, but for the place of the binary, which must be there.
    let text = UNIT.replace("/usr/bin/pixelgate", env!("CARGO_BIN_EXE_pixelgate"));
    assert_ne!(text, UNIT);
    std::fs::write(&unit, text).unwrap();
    for arguments in
        [&["verify", "--man=no"][..], &["security", "--offline=true", EXPOSURE_MAX, "--no-pager"]]
    {
        let mut analyze = Command::new("systemd-analyze");
        let output = analyze.args(arguments).arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("Unknown operation") || said.contains("unrecognized option") {
            eprintln!("SKIPPED: this systemd-analyze is too old for {arguments:?}");
            continue;
        }
        let table = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{arguments:?}: {said}{table}");
        assert!(arguments[0] != "verify" || said.is_empty(), "it warns: {said}");
    }
}
