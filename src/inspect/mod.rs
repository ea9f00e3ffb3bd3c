//! Read-only tools over data directories: what a journal or a segment holds, as lines for people and for programs.
//!
//! Refuses to change anything, and to guess: damage is reported with its file and position. Lines are handed on as they are
//! found, so that a large file takes no memory.

mod journal;
mod segments;

use crate::disk::real::RealDisk;
use std::path::Path;

/// What is looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A node's journal.
    Journal,
    /// A group's segments.
    Segment,
}

/// One line of a report.
#[derive(Clone, Debug)]
pub struct Line {
    /// For people.
    pub text: String,
    /// The same for programs.
    pub json: serde_json::Value,
}

/// Where lines go, and what was wrong.
struct Report<'a> {
    on_line: &'a mut (dyn FnMut(Line) + Send),
    damage: Option<String>,
}

impl Report<'_> {
    fn line(&mut self, text: String, json: serde_json::Value) {
        (self.on_line)(Line { text, json });
    }

    /// Notes damage in `file`; the first one is what the whole report ends with.
    fn damage(&mut self, file: &Path, position: u64, what: &str) {
        let text = format!("{} is damaged at position {position}: {what}", file.display());
        let json = serde_json::json!({
            "what": "damage", "file": file.display().to_string(), "position": position, "reason": what,
        });
        self.line(format!("! {text}"), json);
        self.damage.get_or_insert(text);
    }
}

/// Looks into `path`: a journal's or group's folder, or one file of it. Gives the first damage, if there is any: file, position
/// and what is wrong.
///
/// # Errors
/// In words, if the files cannot be read at all, or are none of that kind.
pub async fn report(kind: Kind, path: &Path, on_line: &mut (dyn FnMut(Line) + Send)) -> Result<Option<String>, String> {
    let disk = RealDisk::new().map_err(|error| format!("cannot start the disk's threads: {error}"))?;
    let mut report = Report { on_line, damage: None };
    match kind {
        Kind::Journal => journal::report(&disk, path, &mut report).await?,
        Kind::Segment => segments::report(&disk, path, &mut report).await?,
    }
    Ok(report.damage)
}
