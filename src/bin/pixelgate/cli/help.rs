//! The sections that `--help` prints below the options: examples, exit codes, signals and files.
//! The manual pages are made from the same texts. A line that is not indented and ends in a colon
//! is a heading.

/// Sections of `pixelgate --help`.
pub const ALL: &str = "\
Examples:
  pixelgate check                        validate config/pixelgate.toml and all it names
  pixelgate run                          run the edge
  pixelgate explain '_a=62515&_n=buy'    is this event accepted, and why?
  pixelgate spool stat                   how many events wait for each upstream?
  pixelgate dead list                    which events did an upstream refuse for good?
  pixelgate help spool                   help on a command

Exit codes:
  0  done
  1  the answer is no, or the command failed
  2  the command line or the configuration cannot be used

Environment:
  PIXELGATE_CONFIG          the configuration file, unless --config is given
  PIXELGATE__SECTION__KEY   a configuration key, such as PIXELGATE__EDGE__THREADS=4
  RUST_LOG                  the log level: error, warn, info or debug
  NO_COLOR                  set to any value: no colours on a terminal
  NOTIFY_SOCKET             set by systemd: where the edge reports ready, reloading and stopping

Files:
  config/pixelgate.toml     the default configuration file
  config/reference.toml     every key with its default and unit";

/// Sections of `pixelgate run --help`.
pub const RUN: &str = "\
Examples:
  pixelgate run
  PIXELGATE__EDGE__LISTEN='[\"0.0.0.0:80\"]' pixelgate run --config /etc/pixelgate/pixelgate.toml

Signals:
  SIGTERM, SIGINT, SIGQUIT   stop: requests in flight are answered; an idle edge stops at once
  SIGHUP                     read the configuration, the portals and the certificates again

Exit codes:
  0  stopped by a signal; every event answered with 200 is on disk
  1  a signal began the stop, but it took too long or the spool could not be closed
  2  the edge did not start; standard error has the reason";

/// Sections of `pixelgate check --help`.
pub const CHECK: &str = "\
Examples:
  pixelgate check
  pixelgate check --config new.toml && mv new.toml /etc/pixelgate/pixelgate.toml
  pixelgate check --diff                 what would a reload change, and what needs an upgrade?

Exit codes:
  0  everything is valid; a summary or the changed keys are printed. An address in use is named:
     `run` ends with 2 there, unless it is that of an edge which `run --upgrade` replaces
  1  for --diff: no edge runs with this edge.state_dir, or it could not store its values there
  2  something is invalid; one line names the file, the key and the reason";

/// Sections of `pixelgate schema --help`.
pub const SCHEMA: &str = "\
Examples:
  pixelgate schema > schema.json   then begin the configuration with: #:schema ./schema.json";

/// Sections of `pixelgate explain --help`.
pub const EXPLAIN: &str = "\
Examples:
  pixelgate explain 'https://track.example.com/v1/event/?_a=62515&_n=buy&email={{contact.email}}'
  pixelgate explain '_a=62515&_n=buy&_m=20,50'
  pixelgate explain --json '/v1/event/?_a=62515&_n=buy' | jq .verdict

Exit codes:
  0  the event would be accepted
  1  it would be rejected
  2  the configuration cannot be used, or the argument is not an event request";

/// Sections of `pixelgate spool --help`.
pub const SPOOL: &str = "\
Examples:
  pixelgate spool stat
  pixelgate spool verify && echo intact
  pixelgate spool dump | jq -r .portal | sort | uniq -c
  pixelgate spool forget old-collector   after it was removed from the configuration

Exit codes:
  0  done; for verify: every record is intact
  1  a record is damaged, or the folder cannot be read; for forget: an edge runs on the spool,
     or there is nothing to forget, because it knows no upstream of this name
  2  for forget: the upstream is configured";

/// Sections of `pixelgate dead --help`.
pub const DEAD: &str = "\
Examples:
  pixelgate dead list | jq -r '[.upstream, .reason, .status] | @tsv' | sort | uniq -c
  pixelgate dead replay                                   send all of them again
  pixelgate dead replay --upstream crm --portal 62515     those of one portal
  pixelgate dead drop --reason rejected --until 2026-11-01

Signals:
  SIGINT, SIGTERM   end a replay after the attempt under way; the next replay sends the rest, and
                    no event that the upstream has acknowledged

Exit codes:
  0  done; events that were refused again are dead letters again
  1  events could not be delivered now and stay dead letters, a line of a file is damaged, or a
     file could not be read
  2  an option names an upstream that is not known";

/// Sections of `pixelgate send --help`.
pub const SEND: &str = "\
Examples:
  pixelgate send --upstream crm --dry-run data/events/*.ndjson    count what would be sent
  pixelgate send --upstream crm --per-second 100 data/events/*.ndjson
  pixelgate send --upstream crm --portal 62515 --since 2026-11-01 data/events/*.ndjson
  zstd -dc week.ndjson.zst | pixelgate send --upstream crm -

Files:
  One event per line, as an upstream of kind `file` writes it; `-` is standard input. Which lines
  were sent is stored in <spool.dir>/sent/NAME, under the id of a file's first event: the same
  command sends the rest after a crash, and nothing that was sent before. Events that the upstream
  refuses become its dead letters. An edge may run meanwhile.

Signals:
  SIGINT, SIGTERM   end the command after the attempt under way

Exit codes:
  0  done; events that were refused are dead letters
  1  events could not be delivered now, a line is not an event, or a file could not be read
  2  the configuration has no upstream of this name, or cannot be used";

/// Sections of `pixelgate probe --help`.
pub const PROBE: &str = "\
Examples:
  pixelgate probe                        does the edge accept events?
  pixelgate probe livez                  does the edge run?

Exit codes:
  0  yes
  1  no, and the reasons are printed; or the edge does not answer
  2  the configuration has no admin listener";

/// Sections of `pixelgate completions --help`.
pub const COMPLETIONS: &str = "\
Examples:
  pixelgate completions bash > /usr/share/bash-completion/completions/pixelgate
  pixelgate completions zsh  > /usr/local/share/zsh/site-functions/_pixelgate
  pixelgate completions fish > ~/.config/fish/completions/pixelgate.fish";

/// Sections of `pixelgate man --help`.
pub const MAN: &str = "\
Examples:
  pixelgate man > pixelgate.1 && man ./pixelgate.1
  pixelgate man --dir /usr/local/share/man/man1";
