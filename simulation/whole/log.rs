//! What nodes log goes into the trace, as text beside the events: it decides nothing and is no part of the hash.

use super::stage::{now_us, Stage};
use slog::{o, Drain, Key, Logger, OwnedKVList, Record, Serializer, KV};
use std::fmt::{Arguments, Write};

/// A logger for a node's lines; one that drops them if no text is kept.
pub fn logger(stage: &Stage, node: u32) -> Logger {
    if !stage.lock().trace.keeps_text() {
        return Logger::root(slog::Discard, o!());
    }
    Logger::root(IntoTrace { stage: stage.clone(), node }.ignore_res(), o!())
}

struct IntoTrace {
    stage: Stage,
    node: u32,
}

impl Drain for IntoTrace {
    type Ok = ();
    type Err = slog::Error;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> slog::Result {
        if !record.level().is_at_least(slog::Level::Info) {
            return Ok(());
        }
        let mut line = Line(format!("{}: {}", record.level().as_short_str(), record.msg()));
        record.kv().serialize(record, &mut line)?;
        values.serialize(record, &mut line)?;
        self.stage.lock().trace.note(now_us(), self.node, "log", || line.0);
        Ok(())
    }
}

struct Line(String);

impl Serializer for Line {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::Fmt)
    }
}
