//! `pixelgate send`: sends events from files to one upstream (SPEC 8).

use super::exit::{NO, UNUSABLE, fail};
use super::resend::{Session, unix_ms};
use super::terminal::{Progress, Unit};
use crate::causes::with_causes;
use crate::config::Config;
use clap::Args;
use pixelgate::PixelGate;
use pixelgate::tools::backfill::{self, Backfill, BackfillError, Counts, Filter, Options, Totals};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The file name that stands for standard input.
const STDIN: &str = "-";
/// The number of bytes of a file that are read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// The arguments: which events are sent, and to which upstream.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The upstream, by its name in the configuration.
    #[arg(long, value_name = "NAME")]
    upstream: String,
    /// Only events of this portal.
    #[arg(long, value_name = "PORTAL")]
    portal: Option<u64>,
    /// Only events of exactly this name.
    #[arg(long, value_name = "EVENT")]
    event: Option<String>,
    /// Only events that were received at this time or later: RFC 3339, or a date (00:00 UTC).
    #[arg(long, value_name = "TIME", value_parser = unix_ms)]
    since: Option<i64>,
    /// Only events that were received before this time: RFC 3339, or a date (00:00 UTC).
    #[arg(long, value_name = "TIME", value_parser = unix_ms)]
    until: Option<i64>,
    /// Send at most this many events per second.
    #[arg(long, value_name = "EVENTS", allow_negative_numbers = true)]
    per_second: Option<NonZeroU32>,
    /// Count what would be sent; send nothing and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Files with one event per line, as kind `file` writes them; `-` is standard input.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// The files of the command, its progress, and its exit code so far.
struct Files<'a> {
    paths: &'a [PathBuf],
    progress: Progress,
    /// The bytes of all files whose length is known; 0 if none is.
    total: u64,
    /// The bytes of the files before the current one.
    before: u64,
    code: ExitCode,
}

/// Runs the command. After a file that cannot be read, it goes on with the next one.
pub fn run(config: Config, arguments: &Arguments) -> ExitCode {
    let name = &arguments.upstream;
    let known = config.gate.upstreams().iter().find(|upstream| upstream.name == *name);
    let Some(upstream) = known.cloned() else {
        return fail(UNUSABLE, format!("--upstream: {name:?} is not configured"));
    };
    let (spool, batch) = (config.gate.spool.dir.clone(), config.gate.batch.clone());
    let mut options = match options(config, arguments) {
        Ok(options) => options,
        Err(code) => return code,
    };
    let verb = if arguments.dry_run { "counting for" } else { "sending to" };
    let files = Files::new(&arguments.files, format!("{verb} {name}"));
    if arguments.dry_run {
        return survey(files, &options);
    }
    // Before the first run of an edge the folder of the spool does not exist.
    if let Err(e) = std::fs::create_dir_all(&spool) {
        return fail(NO, format!("{}: {e}", spool.display()));
    }
    match Session::open(&upstream, &batch) {
        Err(why) => fail(UNUSABLE, format!("{name}: {why}")),
        Ok(session) => {
            options.batch = session.batch.clone();
            send(files, &options, session)
        }
    }
}

fn options(config: Config, arguments: &Arguments) -> Result<Options, ExitCode> {
    let (sent_dir, dead_dir) = (config.gate.sent_dir(), config.gate.dead_dir());
    let batch = config.gate.batch.clone();
    let builder = PixelGate::builder(config.gate).state_dir(&config.edge.state_dir);
    let gate = builder.gate().map_err(|e| fail(UNUSABLE, with_causes(&e)))?;
    if let Some(why) = gate.portals().status().refuses_all() {
        let need = "the portal list is needed, because it names the upstreams of portals";
        return Err(fail(NO, format!("{need}: {why}")));
    }
    Ok(Options {
        upstream: arguments.upstream.clone(),
        batch,
        filter: Filter {
            portal: arguments.portal,
            event: arguments.event.clone(),
            since_ms: arguments.since,
            until_ms: arguments.until,
        },
        portals: gate.portals().clone(),
        per_second: arguments.per_second,
        sent_dir,
        dead_dir,
    })
}

fn survey(mut files: Files<'_>, options: &Options) -> ExitCode {
    let mut counts = Counts::default();
    for path in files.paths {
        let done = files.open(path).and_then(|(reader, length)| {
            let show = |read| files.show(read);
            let done = backfill::survey(options, path, reader, &mut counts, show);
            files.before += length;
            done
        });
        files.note(path, done);
    }
    let line = format!("{}: {} would be sent, {}", options.upstream, counts.picked, left(&counts));
    files.end(&line, &counts)
}

fn send(mut files: Files<'_>, options: &Options, session: Session) -> ExitCode {
    let Session { runtime, built, stop, .. } = session;
    let name = &options.upstream;
    let mut backfill = Backfill::new(options, &*built, stop);
    runtime.block_on(async {
        for path in files.paths {
            let done = match files.open(path) {
                Err(e) => Err(e),
                Ok((reader, length)) => {
                    let done = backfill.send(path, reader, |read| files.show(read)).await;
                    files.before += length;
                    done
                }
            };
            let is_over = matches!(done, Err(BackfillError::Dead(_) | BackfillError::Room(_)));
            files.note(path, done);
            if is_over || backfill.has_ended() {
                break;
            }
        }
        built.close().await;
    });
    let Totals { counts, delivered, refused, undelivered, left: reason, gave_up } =
        backfill.totals();
    if let Some(why) = gave_up {
        let rest = "the same command sends the rest";
        files.code = fail(NO, format!("{name}: {why}; {rest}"));
    } else if let Some(why) = reason {
        let rest = "these events are left out, and the same command tries them again";
        files.code = fail(NO, format!("{name}: {why}; {rest}"));
    }
    let line = format!(
        "{name}: {delivered} delivered, {refused} refused, {undelivered} not delivered, {}",
        left(counts)
    );
    files.end(&line, counts)
}

/// Names the numbers of events that were not sent, by reason.
fn left(counts: &Counts) -> String {
    let Counts { sent_before, unmatched, of_others, .. } = counts;
    format!("{sent_before} sent before, {unmatched} not chosen, {of_others} of other upstreams")
}

impl<'a> Files<'a> {
    fn new(paths: &'a [PathBuf], what: String) -> Files<'a> {
        let length = |path: &PathBuf| path.metadata().map_or(0, |file| file.len());
        let total = paths.iter().filter(|path| !is_stdin(path)).map(length).sum();
        let progress = match total {
            0 => Progress::spinner(what),
            _ => Progress::new(what, Unit::Bytes),
        };
        Files { paths, progress, total, before: 0, code: ExitCode::SUCCESS }
    }

    /// Opens a file. Returns its content and its length in bytes; the length of standard input is
    /// 0, because it is unknown.
    fn open(&self, path: &Path) -> Result<(Box<dyn BufRead>, u64), BackfillError> {
        if is_stdin(path) {
            return Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, io::stdin())), 0));
        }
        let file = File::open(path).map_err(BackfillError::Read)?;
        let length = file.metadata().map_err(BackfillError::Read)?.len();
        Ok((Box::new(BufReader::with_capacity(BUFFER_BYTES, file)), length))
    }

    fn show(&mut self, read: u64) {
        if self.total > 0 {
            self.progress.update(self.before + read, self.total);
        }
    }

    fn note(&mut self, path: &Path, done: Result<(), BackfillError>) {
        if let Err(e) = done {
            self.code = fail(NO, format!("{}: {}", path.display(), with_causes(&e)));
        }
    }

    /// Prints the lines that are not events on standard error, and `line`, the result, on standard
    /// output.
    fn end(self, line: &str, counts: &Counts) -> ExitCode {
        let Files { progress, mut code, .. } = self;
        drop(progress);
        for (place, why) in &counts.places {
            _ = fail(NO, format!("{place}: {why}; the line is left out"));
        }
        if counts.malformed > 0 {
            code = fail(
                NO,
                match counts.malformed {
                    1 => "1 line is not an event".to_owned(),
                    malformed => format!("{malformed} lines are not events"),
                },
            );
        }
        if let Err(e) = writeln!(io::stdout(), "{line}") {
            code = fail(NO, format!("standard output: {e}"));
        }
        code
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}
