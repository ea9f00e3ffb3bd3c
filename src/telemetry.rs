//! The slog root: where log lines go and how they look.
//!
//! Lines go to standard error; data alone goes to standard output. The level comes from the command line or the
//! configuration. Nothing here is global: a logger is handed down.

use slog::{o, Drain, Level, Logger};

/// A logger that writes human-readable lines of at least `level` to standard error.
pub fn stderr_logger(level: Level) -> Logger {
    let decorator = slog_term::TermDecorator::new().stderr().build();
    let format = slog_term::FullFormat::new(decorator).use_utc_timestamp().build().fuse();
    let drain = slog_async::Async::new(format).chan_size(4096).build().fuse();
    Logger::root(drain.filter_level(level).fuse(), o!())
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// A logger that drops everything.
pub fn silent_logger() -> Logger {
    Logger::root(slog::Discard, o!())
}
