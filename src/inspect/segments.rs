//! A group's folder, or one of its segment files: frames, what became of their commands, and damage.
//!
//! What follows the last good frame of the newest segment may be a torn write or damage; the segment alone can't tell. The
//! journal of the same node can: what its base covers was synced, so it must be there.

use super::Report;
use crate::disk::Disk;
use crate::ids::{GroupId, LogIndex, Offset};
use crate::journal;
use crate::journal::format::FrameKind;
use crate::segments::inspect::{inspect, Ending, FrameReport, HeaderReport, IndexStatus, SegmentReport};
use crate::segments::verdict::Verdict;
use crate::segments::{EntryKind, Item};
use crate::telemetry::chain;
use serde_json::{json, Value};
use std::path::{Path, PathBuf};

pub(super) async fn report(disk: &dyn Disk, path: &Path, report: &mut Report<'_>) -> Result<(), String> {
    let files = files_of(disk, path).await?;
    let mut next: Option<LogIndex> = None;
    for (at, file) in files.iter().enumerate() {
        let found = inspect(disk, file, |frame| report.line(frame_text(frame), frame_json(frame)));
        let found = found.await.map_err(|error| chain(&error))?;
        for damage in &found.damage {
            report.damage(file, damage.position, &damage.what);
        }
        let base = found.header.as_ref().ok().map(|header| header.base.index);
        if let (Some(next), Some(base)) = (next, base) {
            if base != next {
                let what = format!("it goes on behind entry {base}; the segment before it ends with entry {next}");
                report.damage(file, 0, &what);
            }
        }
        next = found.last_index.or(base);
        summary_lines(file, &found, report);
        if at + 1 < files.len() {
            if let Ending::Torn { position } | Ending::Zeros { position } = found.ending {
                report.damage(file, position, "a sealed segment ends with its last frame");
            }
        } else {
            hold_against_journal(disk, file, &found, report).await?;
        }
    }
    Ok(())
}

async fn files_of(disk: &dyn Disk, path: &Path) -> Result<Vec<PathBuf>, String> {
    let is_segment = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "seg");
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let names = disk.list(path).await.map_err(|error| format!("cannot list {}: {error}", path.display()))?;
    let files: Vec<PathBuf> = names.into_iter().filter(is_segment).collect();
    if files.is_empty() {
        return Err(format!(
            "{} holds no segments; name a folder below `groups` of a node's data directory, or a .seg file",
            path.display()
        ));
    }
    Ok(files)
}

/// The last segment must hold everything through the base that the node's journal recorded for the group, if that journal
/// is where it should be.
async fn hold_against_journal(
    disk: &dyn Disk,
    file: &Path,
    found: &SegmentReport,
    report: &mut Report<'_>,
) -> Result<(), String> {
    let (Ok(header), Ending::Torn { position } | Ending::Zeros { position }) = (&found.header, found.ending) else {
        return Ok(());
    };
    let last = found.last_index.unwrap_or(header.base.index);
    let data_dir = std::path::absolute(file).ok().and_then(|file| Some(file.ancestors().nth(3)?.to_owned()));
    let base = match data_dir.map(|dir| dir.join("journal")).filter(|journal| journal.is_dir()) {
        Some(journal) => recorded_base(disk, &journal, header.group).await?,
        None => None,
    };
    match base {
        Some(base) if base > last => {
            let what = format!("entries through {base} were synced, says the journal; the last one here is {last}");
            report.damage(file, position, &what);
        }
        Some(_) => {}
        None if matches!(found.ending, Ending::Torn { .. }) => report.line(
            format!("  {position:>10}  no frame: a write that a crash cut short, or damage; without its journal nobody can tell"),
            json!({"what": "torn", "position": position}),
        ),
        None => {}
    }
    Ok(())
}

/// The newest base of a group in a journal.
async fn recorded_base(disk: &dyn Disk, dir: &Path, group: GroupId) -> Result<Option<LogIndex>, String> {
    let journal = journal::inspect::inspect(disk, dir).await.map_err(|error| chain(&error))?;
    let mut base = None;
    for file in &journal.files {
        let found = journal.read_file(disk, file).await.map_err(|error| chain(&error))?;
        let frames = found.rounds.iter().filter(|_| found.named).flat_map(|round| &round.frames);
        let bases = frames
            .filter(|frame| frame.group == group && matches!(frame.kind, FrameKind::Base | FrameKind::RestatedBase));
        base = base.max(bases.map(|frame| LogIndex(frame.index)).max());
    }
    Ok(base)
}

fn summary_lines(file: &Path, found: &SegmentReport, report: &mut Report<'_>) {
    let name = file.display().to_string();
    let ending = match found.ending {
        Ending::Exact => "nothing behind them".to_string(),
        Ending::Zeros { position } => format!("zeros from {position} on"),
        Ending::Torn { position } => format!("no frame from {position} on"),
    };
    let index = match found.index {
        IndexStatus::Good => "good",
        IndexStatus::SoFar => "of its first part",
        IndexStatus::Absent => "none",
        IndexStatus::Differs => "of another content; it is rebuilt when needed",
    };
    let last = found.last_index.map_or("none".to_string(), |index| index.to_string());
    let SegmentReport { file_bytes, frames, tail, .. } = found;
    let head = found.header.as_ref().map_or("header damaged".to_string(), header_text);
    report.line(
        format!("{name}: {head}; {file_bytes} bytes, {frames} frames, last index {last}, tail {tail}, {ending}; index file: {index}"),
        json!({
            "what": "segment", "file": name, "header": found.header.as_ref().ok().map(header_json), "bytes": file_bytes,
            "frames": frames, "last_index": found.last_index.map(|index| index.0), "tail": tail.0,
            "index_file": matches!(found.index, IndexStatus::Good | IndexStatus::SoFar),
        }),
    );
}

fn header_text(header: &HeaderReport) -> String {
    let HeaderReport { group, starts_log, base, .. } = header;
    let start = if *starts_log { ", the log's first" } else { "" };
    format!("group {group} behind index {} term {} offset {}{start}", base.index, base.term, base.tail)
}

fn header_json(header: &HeaderReport) -> Value {
    let base = &header.base;
    json!({
        "group": header.group.0, "starts_log": header.starts_log, "index": base.index.0, "term": base.term.0,
        "offset": base.tail.0, "hash": base.chain.to_string(),
    })
}

fn frame_text(frame: &FrameReport) -> String {
    let FrameReport { position, index, term, timestamp, bytes, .. } = frame;
    let what = match frame.kind {
        EntryKind::Empty => "a leader's first entry".to_string(),
        EntryKind::ConfChange => "a change of members".to_string(),
        EntryKind::Commands => frame.items.iter().map(item_text).collect::<Vec<_>>().join("; "),
    };
    format!("  {position:>10}  index {index} term {term} time {timestamp}, {bytes} bytes: {what}")
}

fn item_text(item: &Item) -> String {
    let range = |offset: Offset, count: u32| format!("offsets {offset}..{}", offset.plus(u64::from(count)));
    match item.verdict {
        Verdict::Appended { offset, count } => range(offset, count),
        Verdict::Repeated { offset, count } => format!("{} again, not appended", range(offset, count)),
        Verdict::Done { value, extra } => format!("done ({value}, {extra})"),
        Verdict::Refused(refusal) => format!("refused: {refusal:?}"),
    }
}

fn frame_json(frame: &FrameReport) -> Value {
    let kind = match frame.kind {
        EntryKind::Empty => "empty",
        EntryKind::Commands => "commands",
        EntryKind::ConfChange => "conf_change",
    };
    json!({
        "what": "frame", "position": frame.position, "bytes": frame.bytes, "index": frame.index.0, "term": frame.term.0,
        "kind": kind, "timestamp": frame.timestamp.0, "hash": frame.chain.to_string(),
        "commands": frame.items.iter().map(item_text).collect::<Vec<_>>(),
    })
}
