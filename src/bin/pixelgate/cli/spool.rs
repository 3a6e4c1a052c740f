//! `pixelgate spool`: inspects the spool, with or without a running edge. Changes nothing.

use super::exit::{NO, fail};
use super::terminal::{BAD, GOOD, Progress, Unit};
use crate::config::Config;
use clap::Subcommand;
use pixelgate::tools::{Record, escape_hidden, inspect};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print lanes, bytes and the pending events of each upstream.
    Stat,
    /// Check every record; exit 0 if all are intact, else 1 with the damaged places.
    Verify,
    /// Print every stored record, one JSON object per line. Shows personal data.
    Dump,
}

/// Runs the command.
pub fn run(config: &Config, command: &Command) -> ExitCode {
    let dir = &config.gate.spool.dir;
    let sound = match command {
        Command::Stat => print(|out| stat(dir, out)).map(|()| true),
        Command::Verify => verify(dir),
        Command::Dump => print(|out| dump(dir, out)).map(|()| true),
    };
    match sound {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        // The reader of a pipe may stop early, as `head` does.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(e) => fail(NO, format!("{}: {e}", dir.display())),
    }
}

fn print(
    to: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'_>>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    to(&mut out)?;
    out.flush()
}

fn stat(dir: &Path, out: &mut impl Write) -> io::Result<()> {
    let stat = inspect::stat(dir)?;
    for lane in &stat.lanes {
        let held = lane.end_seq.saturating_sub(lane.first_seq);
        let life = if lane.living { "in use" } else { "left behind" };
        let (id, segments, bytes) = (lane.id, lane.segments, lane.file_bytes);
        writeln!(out, "lane {id}: {life}, {held} records, {segments} segments, {bytes} bytes")?;
    }
    for upstream in &stat.upstreams {
        writeln!(
            out,
            "upstream {}: {} accepted, {} delivered, {} dead, {} lost, {} pending",
            upstream.name,
            upstream.accepted,
            upstream.delivered,
            upstream.dead,
            upstream.lost,
            upstream.pending
        )?;
    }
    writeln!(out, "quarantined: {} bytes", stat.quarantined_bytes)
}

fn verify(dir: &Path) -> io::Result<bool> {
    let mut progress = Progress::new("verifying the spool", Unit::Bytes);
    let report = inspect::verify(dir, &mut |done, total| progress.update(done, total))?;
    drop(progress);
    let mut out = io::BufWriter::new(anstream::stdout().lock());
    for finding in &report.findings {
        let (file, offset, what) = (finding.file.display(), finding.offset, &finding.what);
        writeln!(out, "{file}:{offset}: {BAD}{what}{BAD:#}")?;
    }
    if report.findings_unlisted > 0 {
        writeln!(out, "and {} places more", report.findings_unlisted)?;
    }
    let (records, bytes) = (report.records, report.payload_bytes);
    let style = if report.ok { GOOD } else { BAD };
    writeln!(out, "{style}{records} sound records, {bytes} bytes{style:#}")?;
    out.flush()?;
    Ok(report.ok)
}

fn dump(dir: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut written = Ok(());
    let mut line = Vec::new();
    inspect::dump(dir, |_, payload| {
        line.clear();
        match Record::decode(payload) {
            // Bots are detected at delivery, not here.
            Ok(record) => record.write_json(&mut line, false),
            Err(why) => line.extend_from_slice(format!("{{\"damaged\":\"{why}\"}}").as_bytes()),
        }
        // An event's JSON is UTF-8, so nothing is replaced here.
        let shown = String::from_utf8_lossy(&line);
        written = writeln!(out, "{}", escape_hidden(&shown));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written
}
