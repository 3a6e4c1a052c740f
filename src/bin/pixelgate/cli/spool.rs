//! `pixelgate spool`: reads the spool, while an edge runs or not, and forgets an upstream that is
//! not configured any more (SPEC 8).

use super::exit::{NO, UNUSABLE, fail, unwritten};
use super::terminal::{BAD, GOOD, Progress, Unit};
use crate::causes::with_causes;
use crate::config::Config;
use crate::plural::counted;
use clap::Subcommand;
use pixelgate::custom::is_bot;
use pixelgate::errors::RecordError;
use pixelgate::tools::backfill;
use pixelgate::tools::dead_letters::{self, Filter};
use pixelgate::tools::{EVENT_METERING, EVENT_ROUTING, Record, escape_hidden, forget, inspect};
use std::error::Error;
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
    /// Give up the pending events and the dead letters of an upstream that was removed from the
    /// configuration, and what `send` noted for it. No edge may run on this spool.
    Forget {
        /// The exact name of the upstream.
        name: String,
    },
}

/// Runs the command and returns its exit code.
pub fn run(config: &Config, command: &Command) -> ExitCode {
    let dir = &config.gate.spool.dir;
    let sound = match command {
        Command::Stat => print(|out| stat(dir, out)).map(|()| true),
        Command::Verify => verify(dir),
        Command::Dump => print(|out| dump(dir, out)).map(|()| true),
        Command::Forget { name } => {
            return match forget_upstream(config, name) {
                Ok(()) => ExitCode::SUCCESS,
                Err((code, why)) => fail(code, why),
            };
        }
    };
    match sound {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(NO),
        Err(Failure::Spool(e)) => fail(NO, format!("{}: {e}", dir.display())),
        Err(Failure::Output(e)) => unwritten(&e),
    }
}

/// Why a command failed.
enum Failure {
    /// The spool cannot be read.
    Spool(io::Error),
    /// Standard output cannot be written.
    Output(io::Error),
}

fn print(
    to: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'_>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    to(&mut out)?;
    out.flush().map_err(Failure::Output)
}

fn stat(dir: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let stat = inspect::stat(dir, &EVENT_ROUTING).map_err(Failure::Spool)?;
    print_stat(&stat, out).map_err(Failure::Output)
}

fn print_stat(stat: &inspect::Stat, out: &mut impl Write) -> io::Result<()> {
    for lane in &stat.lanes {
        let records = counted(lane.end_seq.saturating_sub(lane.first_seq), "record");
        let segments = counted(lane.segments as u64, "segment");
        let life = if lane.living { "in use" } else { "left behind" };
        let (id, bytes) = (lane.id, lane.file_bytes);
        writeln!(out, "lane {id}: {life}, {records}, {segments}, {bytes} bytes")?;
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
    let inspect::PortalSums { portals, accepted, rejected, delivered, .. } = stat.portals;
    writeln!(
        out,
        "portals: {portals} with totals, {accepted} accepted, {rejected} rejected, {delivered} \
         delivered"
    )?;
    writeln!(out, "quarantined: {} bytes", stat.quarantined_bytes)
}

fn verify(dir: &Path) -> Result<bool, Failure> {
    let mut progress = Progress::new("verifying the spool", Unit::Bytes);
    let report = inspect::verify(dir, &mut |done, total| progress.update(done, total));
    drop(progress);
    let report = report.map_err(Failure::Spool)?;
    print_report(&report).map_err(Failure::Output)?;
    Ok(report.ok)
}

fn print_report(report: &inspect::VerifyReport) -> io::Result<()> {
    let mut out = io::BufWriter::new(anstream::stdout().lock());
    for finding in &report.findings {
        let (file, offset, what) = (finding.file.display(), finding.offset, &finding.what);
        writeln!(out, "{file}:{offset}: {BAD}{what}{BAD:#}")?;
    }
    if report.findings_unlisted > 0 {
        writeln!(out, "and {} more", counted(report.findings_unlisted, "place"))?;
    }
    let (records, bytes) = (counted(report.records, "sound record"), report.payload_bytes);
    let style = if report.ok { GOOD } else { BAD };
    writeln!(out, "{style}{records}, {bytes} bytes{style:#}")?;
    out.flush()
}

fn dump(dir: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let mut written = Ok(());
    let mut line = Vec::new();
    inspect::dump(dir, |_, payload| {
        line.clear();
        match Record::decode(payload) {
            // As at delivery, bots are found by the user agent: the spool stores no result.
            Ok(record) => {
                let is_bot = is_bot(record.context.user_agent.as_deref());
                record.write_json(&mut line, is_bot);
            }
            // A newer version of pixelgate wrote the record, so it is not damaged.
            Err(RecordError::UnknownVersion(version)) => {
                line.extend_from_slice(format!("{{\"unknown_version\":{version}}}").as_bytes());
            }
            Err(why) => line.extend_from_slice(format!("{{\"damaged\":\"{why}\"}}").as_bytes()),
        }
        // The JSON of an event is UTF-8, so this replaces nothing.
        let shown = String::from_utf8_lossy(&line);
        written = writeln!(out, "{}", escape_hidden(&shown));
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })
    .map_err(Failure::Spool)?;
    written.map_err(Failure::Output)
}

/// Removes the pending events and the dead letters of an upstream that is not configured. The error
/// is an exit code and a text.
fn forget_upstream(config: &Config, name: &str) -> Result<(), (u8, String)> {
    if config.gate.upstreams().iter().any(|upstream| upstream.name == name) {
        let why = format!("{name} is configured: remove it from the configuration first");
        return Err((UNUSABLE, why));
    }
    let (spool, dead) = (&config.gate.spool.dir, config.gate.dead_dir());
    let at = |dir: &Path, why: &dyn Error| (NO, format!("{}: {}", dir.display(), with_causes(why)));
    // The name comes from the command line, so a path is made of it only if a file of this name
    // was found.
    let known = dead_letters::upstreams(&dead).map_err(|why| at(&dead, &why))?;
    let has_letters = known.iter().any(|known| known == name);
    let forgotten = forget::forget(spool, name, &EVENT_ROUTING, &EVENT_METERING)
        .map_err(|why| at(spool, &why))?;
    let sent = config.gate.sent_dir();
    let was_sent_to = backfill::forget(&sent, name).map_err(|why| at(&sent, &why))?;
    let (mut letters, mut others) = (0, String::new());
    if has_letters {
        let all = Filter::default();
        letters = dead_letters::remove(&dead, name, &all).map_err(|why| at(&dead, &why))?;
        let left = dead_letters::list(&dead, name, &all, |_| {}).map_err(|why| at(&dead, &why))?;
        others = not_letters(&dead, left.damaged);
    }
    if forgotten.lanes == 0 && letters == 0 && !was_sent_to {
        let unknown =
            "there is nothing to forget, the spool knows no upstream of exactly this name";
        return Err((NO, format!("{name}: {unknown}{others}")));
    }
    let pending = counted(forgotten.pending, "pending event");
    let letters = counted(letters, "dead letter");
    let line = format!("{name}: {pending} and {letters} were removed{others}");
    writeln!(io::stdout(), "{line}").map_err(|why| (NO, format!("standard output: {why}")))
}

/// The end of a message about lines of the dead letters' files that stay there.
fn not_letters(dead: &Path, lines: u64) -> String {
    match lines {
        0 => String::new(),
        _ => format!(
            "; {} in {} that no edge wrote: remove the file by hand",
            counted(lines, "line"),
            dead.display()
        ),
    }
}
