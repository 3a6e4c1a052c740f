//! What `--help` teaches below the options. The manual pages are made of the same text: a line
//! that ends in a colon and begins at the margin is a heading.

/// Of `pixelgate` itself.
pub const ALL: &str = "\
Examples:
  pixelgate check                        validate config/pixelgate.toml and all it names
  pixelgate run                          run the edge
  pixelgate explain '_a=62515&_n=buy'    why does an event count, or not?
  pixelgate spool stat                   what waits for each upstream?
  pixelgate dead list                    what did an upstream refuse for good?
  pixelgate help spool                   help on a command

Exit codes:
  0  done
  1  the answer is no, or the command failed
  2  the command line or the configuration cannot be used

Environment:
  PIXELGATE_CONFIG          the configuration file, where --config names none
  PIXELGATE__SECTION__KEY   any key of the configuration, as in PIXELGATE__EDGE__THREADS=4
  RUST_LOG                  what is logged: error, warn, info or debug
  NO_COLOR                  any value: no colours on a terminal
  NOTIFY_SOCKET             set by systemd: told when the edge is ready, reloads and stops

Files:
  config/pixelgate.toml     the configuration, unless told otherwise
  config/reference.toml     every key with its default and unit";

/// Of `pixelgate run`.
pub const RUN: &str = "\
Examples:
  pixelgate run
  PIXELGATE__EDGE__LISTEN='[\"0.0.0.0:80\"]' pixelgate run --config /etc/pixelgate/pixelgate.toml

Signals:
  SIGTERM, SIGINT, SIGQUIT   stop: requests in flight are answered; an idle edge stops at once
  SIGHUP                     read the portal list and the certificates again

Exit codes:
  0  stopped by a signal, and every answered event is on disk
  2  the edge did not start, and said why";

/// Of `pixelgate check`.
pub const CHECK: &str = "\
Examples:
  pixelgate check
  pixelgate check --config new.toml && mv new.toml /etc/pixelgate/pixelgate.toml

Exit codes:
  0  everything is valid; a summary is printed
  2  something is not: one line with file, key and reason";

/// Of `pixelgate explain`.
pub const EXPLAIN: &str = "\
Examples:
  pixelgate explain 'https://track.example.com/v1/event/?_a=62515&_n=buy&email={{contact.email}}'
  pixelgate explain '_a=62515&_n=buy&_m=20,50'
  pixelgate explain --json '/v1/event/?_a=62515&_n=buy' | jq .verdict

Exit codes:
  0  the event would be accepted
  1  it would be rejected
  2  the configuration cannot be used, or the address is no event's";

/// Of `pixelgate spool`.
pub const SPOOL: &str = "\
Examples:
  pixelgate spool stat
  pixelgate spool verify && echo sound
  pixelgate spool dump | jq -r .portal | sort | uniq -c

Exit codes:
  0  done; verify: every record is sound
  1  a record is damaged, or the folder cannot be read";

/// Of `pixelgate dead`.
pub const DEAD: &str = "\
Examples:
  pixelgate dead list | jq -r '[.upstream, .reason, .status] | @tsv' | sort | uniq -c
  pixelgate dead replay

Exit codes:
  0  done; what was refused again is a dead letter again
  1  some could not be sent now and were put back, or a file could not be read";

/// Of `pixelgate probe`.
pub const PROBE: &str = "\
Examples:
  pixelgate probe                        does the edge take events?
  pixelgate probe livez                  does it run at all?

Exit codes:
  0  yes
  1  no, with the reasons; or nobody answers
  2  there is no admin listener to ask";

/// Of `pixelgate completions`.
pub const COMPLETIONS: &str = "\
Examples:
  pixelgate completions bash > /usr/share/bash-completion/completions/pixelgate
  pixelgate completions zsh  > /usr/local/share/zsh/site-functions/_pixelgate
  pixelgate completions fish > ~/.config/fish/completions/pixelgate.fish";

/// Of `pixelgate man`.
pub const MAN: &str = "\
Examples:
  pixelgate man > pixelgate.1 && man ./pixelgate.1
  pixelgate man --dir /usr/local/share/man/man1";
