//! `pixelgate completions` and `man`, which are made from the same definitions as `--help`, and
//! `schema`, which prints a file that is part of the binary (SPEC 8).

use super::args::Cli;
use super::exit::{NO, fail, unwritten};
use crate::config::schema::SCHEMA;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

/// Prints the completion script of a shell.
pub fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pixelgate", &mut script);
    written(&script)
}

/// Prints the manual page `pixelgate(1)`, or writes it and a page for each command into `dir`.
pub fn man(dir: Option<&Path>) -> ExitCode {
    let mut command = Cli::command().disable_help_subcommand(true);
    // This sets the full name of each command, such as `pixelgate-spool-verify`.
    command.build();
    let made = match dir {
        None => page(&command).map(|page| written(&page)),
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| write_all(&command, dir))
            .map(|()| ExitCode::SUCCESS),
    };
    made.unwrap_or_else(|e| fail(NO, e))
}

/// Prints the JSON Schema of the configuration.
pub fn schema() -> ExitCode {
    written(SCHEMA.as_bytes())
}

fn written(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => unwritten(&e),
    }
}

fn write_all(command: &Command, dir: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(dir.join(format!("{name}.1")), page(command)?)?;
    command.get_subcommands().try_for_each(|below| write_all(below, dir))
}

/// Returns the manual page of one command. `clap_mangen` would print the sections below the options
/// as one paragraph, so [`sections`] renders them.
fn page(command: &Command) -> io::Result<Vec<u8>> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let version = concat!("pixelgate ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(version);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(text) = command.get_after_long_help() {
        sections(&text.to_string()).to_writer(&mut page)?;
    }
    Ok(page)
}

/// Renders the sections of a help text: each heading in capitals, and the lines below it as they
/// are.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut open = false;
    for line in text.lines().filter(|line| !line.is_empty()) {
        match line.strip_suffix(':').filter(|heading| !heading.starts_with(' ')) {
            Some(heading) => {
                if std::mem::replace(&mut open, true) {
                    roff.control("fi", []);
                }
                roff.control("SH", [heading.to_uppercase().as_str()]).control("nf", []);
            }
            None => _ = roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]),
        }
    }
    if open {
        roff.control("fi", []);
    }
    roff
}
